"""Rotary positions on three axes: (time, row, column) = (p_s, p_x, p_y), fractional, always in fp32.

Each frequency pair turns by the position on one axis. Text stands at (t, t, t), so any assignment of pairs to axes
gives the same text logits and a text model keeps its weights. Sections as in Qwen2.5-VL leave the column axis the
slowest pairs, which hardly turn over positions of [0, 64]; interleaving gives every axis fast and slow pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextloom.model.config import ModelConfig

Rope = tuple[Tensor, Tensor]
"""cos and sin, (B, 1, N, head_dim / 2) fp32."""


def pair_axes(config: ModelConfig) -> list[int]:
    """Axis (0 time, 1 row, 2 column) of each of the head_dim / 2 frequency pairs."""
    if config.rope_axes == "interleaved":
        return [pair % 3 for pair in range(config.head_dim // 2)]
    return [axis for axis, pairs in enumerate(config.sections) for _ in range(pairs)]


def rope(positions_B3N: Tensor, config: ModelConfig) -> Rope:
    """cos and sin of position times inverse frequency, pair by pair.

    Args:
        positions_B3N: float32 positions on the three axes.
    """
    device, dim = positions_B3N.device, config.head_dim
    frequency = 1.0 / config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    axes = torch.tensor(pair_axes(config), device=device)
    angle = positions_B3N.float().transpose(1, 2)[..., axes] * frequency
    return angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)


def rotate(x_BHNK: Tensor, turn: Rope) -> Tensor:
    """Rotate each pair (i, i + head_dim / 2) of every head; computed in the dtype of `x_BHNK`."""
    cos, sin = (part.to(x_BHNK.dtype) for part in turn)
    first, second = x_BHNK.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
