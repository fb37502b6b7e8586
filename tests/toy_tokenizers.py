"""Very small tokenizers: of random weights, and one that was fitted to plain colours in a few seconds."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import CnnConfig, TokenizerConfig

SMALL_CNN = CnnConfig(channels=16, multipliers=(1,), blocks=1, z_channels=16, unshuffle=8, groups=4)
SMALL = TokenizerConfig(
    codes=64,
    semantic_dim=4,
    pixel_dim=8,
    pixel_encoder=SMALL_CNN,
    pixel_decoder=SMALL_CNN,
    semantic_encoder=SMALL_CNN,
    semantic_width=16,
)
"""Patch 8, 64 codes."""


def random_tokenizer(seed: int, config: TokenizerConfig = SMALL) -> Tokenizer:
    """Random weights that follow from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tokenizer(config).eval()


def colour_tokenizer() -> Tokenizer:
    """Fitted to two plain colours side by side or one above the other; about ten seconds."""
    model = random_tokenizer(3).train()
    grids = schedule(FINAL_GRIDS[10], 4)
    height, width = (8 * side for side in grids[-1])
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(150):
        colours = torch.randint(0, 2, (16, 2, 3, 1, 1), generator=generator) * 2.0 - 1
        x = colours[:, 0].expand(-1, -1, height, width).clone()
        x[:8, :, :, width // 2 :] = colours[:8, 1]
        x[8:, :, height // 3 * 2 :] = colours[8:, 1]
        out = model(x, grids)
        (F.mse_loss(out.picture, x) + out.vq).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()
