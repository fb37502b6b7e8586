"""The semantic decoder: accumulated semantic codes back to the teacher's features.

At full size a small vision transformer over code cells: a linear embedding of each cell, learned positions on a square
that is resized to the picture's grid, pre-norm blocks, a final norm; then linear, tanh, linear. At toy size one
residual block instead of the transformer. Only training looks at its output: it is what makes the semantic codes keep
the teacher's features.

Shapes: codes (B, semantic_dim, H, W), features (B, teacher_dim, H, W).
Source: NextFlow (arXiv 2601.02204) 3.1; sizes of the transformer after TokenFlow (arXiv 2412.03069).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextloom.tokenize.cnn import ResBlock
from nextloom.tokenize.tokenizer_config import TokenizerConfig, VitConfig


class Vit(nn.Module):
    """A vision transformer whose patches are single cells.

    Args:
        width_in: channels of a cell.
        config: sizes.
    """

    def __init__(self, width_in: int, config: VitConfig) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Conv2d(width_in, width, 1)
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width, config.side, config.side), std=0.02))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width,
                    config.heads,
                    config.mlp_ratio * width,
                    dropout=0.0,
                    activation="gelu",
                    layer_norm_eps=1e-6,
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(config.depth)
            )
        )
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) of cells x (B, width_in, H, W)."""
        grid = (x.shape[-2], x.shape[-1])
        x = self.embed(x) + F.interpolate(self.positions, size=grid, mode="bilinear", antialias=True)
        x = self.norm(self.blocks(x.flatten(2).transpose(1, 2)))
        return x.transpose(1, 2).unflatten(2, grid)


def semantic_decoder(config: TokenizerConfig) -> nn.Sequential:
    """The decoder that a configuration asks for, with random weights."""
    if config.semantic_decoder is not None:
        return nn.Sequential(
            Vit(config.semantic_dim, config.semantic_decoder),
            two_layers(config.semantic_decoder.width, config.teacher_dim),
        )
    width = config.semantic_width
    return nn.Sequential(
        nn.Conv2d(config.semantic_dim, width, 1),
        ResBlock(width, width, config.semantic_groups),
        two_layers(width, config.teacher_dim),
    )


def two_layers(width_in: int, width_out: int) -> nn.Sequential:
    """Linear, tanh, linear on every cell."""
    return nn.Sequential(nn.Conv2d(width_in, width_in, 1), nn.Tanh(), nn.Conv2d(width_in, width_out, 1))
