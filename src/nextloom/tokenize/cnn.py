"""The pixel networks: VQGAN's convolutional encoder and its mirror, the decoder.

Fully convolutional, so any picture whose sides are multiples of the patch gives exactly one feature per code
cell, square or not. Per level: residual blocks (GroupNorm, swish, 3x3); between levels the encoder halves the
grid (pad one row and column at the end, 3x3, stride 2) and the decoder doubles it (nearest, 3x3). The
middle and, if wanted, the coarsest level carry attention. `unshuffle` folds pixel blocks into channels first:
the same code is then a toy that trains on a CPU.

Shapes: x (B, 3, patch * H, patch * W), features (B, z_channels, H, W).
Source: VQGAN (arXiv 2012.09841) as configured by LlamaGen and TokenFlow.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from nextloom.tokenize.tokenizer_config import CnnConfig


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 convolution on x where the width changes."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, width_in, 1e-6), nn.GroupNorm(groups, width_out, 1e-6)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class Attention(nn.Module):
    """x + single-head attention over all cells."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.q, self.k, self.v, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


class Down(nn.Module):
    """Half the grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Twice the grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Sequential):
    """Pictures to features at the code grid."""

    def __init__(self, config: CnnConfig) -> None:
        groups, levels = config.groups, [config.channels * m for m in config.multipliers]
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.unshuffle),
            nn.Conv2d(3 * config.unshuffle**2, config.channels, 3, padding=1),
        ]
        width = config.channels
        for level, wanted in enumerate(levels):
            last = level == len(levels) - 1
            for _ in range(config.blocks):
                layers.append(ResBlock(width, wanted, groups))
                if last and config.level_attention:
                    layers.append(Attention(wanted, groups))
                width = wanted
            if not last:
                layers.append(Down(width))
        layers += [ResBlock(width, width, groups), Attention(width, groups), ResBlock(width, width, groups)]
        layers += [nn.GroupNorm(groups, width, 1e-6), nn.SiLU()]
        layers += [nn.Conv2d(width, config.z_channels, 3, padding=1)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Features at the code grid to pictures in about [-1, 1] (not clipped)."""

    def __init__(self, config: CnnConfig) -> None:
        groups, levels = config.groups, [config.channels * m for m in config.multipliers]
        width = levels[-1]
        layers: list[nn.Module] = [nn.Conv2d(config.z_channels, width, 3, padding=1)]
        layers += [ResBlock(width, width, groups), Attention(width, groups), ResBlock(width, width, groups)]
        for level, wanted in reversed(list(enumerate(levels))):
            for _ in range(config.blocks + 1):
                layers.append(ResBlock(width, wanted, groups))
                if level == len(levels) - 1 and config.level_attention:
                    layers.append(Attention(wanted, groups))
                width = wanted
            if level > 0:
                layers.append(Up(width))
        layers += [nn.GroupNorm(groups, width, 1e-6), nn.SiLU()]
        layers += [nn.Conv2d(width, 3 * config.unshuffle**2, 3, padding=1), nn.PixelShuffle(config.unshuffle)]
        super().__init__(*layers)
