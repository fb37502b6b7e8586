"""LPIPS: the distance of two pictures in the features of VGG16, weighted by what people see.

Five feature maps of both pictures (after the last ReLU of each block of convolutions) are normalised over channels;
their squared difference is weighted per channel by a learnt head, averaged over the picture, and added up.

The weights are two files in one folder, as they are published, so nothing is converted: `vgg16*.pth` of torchvision
and `vgg.pth`, the heads, out of the package `lpips`. The price: a step costs a third more, and the backbone (528 MB,
its classifier is not read) must be brought by hand, since no package holds it.

Shapes: pictures (B, 3, h, w) in [-1, 1], h and w at least 16.
Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features" (arXiv 1801.03924), version 0.1 of the heads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from nextloom.errors import UserError
from nextloom.model_files import load_pickled
from nextloom.train.tokenizer.inputs import LPIPS_COMMANDS, lpips_files

BLOCKS = ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))
"""Layers of torchvision's `vgg16().features` in each block; each ends with a ReLU."""
WIDTHS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation, for pictures in [-1, 1]."""
EPSILON = 1e-10


class Lpips(nn.Module):
    """The frozen network, with random weights; `Lpips.load` brings the trained ones."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg16

        layers = list(vgg16(weights=None).features.children())
        self.blocks = nn.ModuleList([nn.Sequential(*[layers[i] for i in range(*block)]) for block in BLOCKS])
        self.heads = nn.ParameterList([nn.Parameter(torch.rand(1, width, 1, 1)) for width in WIDTHS])
        for module in self.blocks.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair, (B,) float32, at least 0; gradients flow into the pictures alone."""
        total = a.new_zeros(len(a), dtype=torch.float32)
        x, y = ((p.float() - self.shift) / self.scale for p in (a, b))
        for block, head in zip(self.blocks, self.heads, strict=True):
            x, y = block(x), block(y)
            total = total + (head * (_unit(x) - _unit(y)).square()).sum(dim=1).mean(dim=(1, 2))
        return total

    @classmethod
    def load(cls, folder: str | Path) -> Lpips:
        """The network with the weights in `folder`.

        Raises:
            UserError: a file is absent (with the commands that bring it), or holds something else.
        """
        backbone, heads = lpips_files(folder)
        names = {f"blocks.{k}.{i - low}": i for k, (low, high) in enumerate(BLOCKS) for i in range(low, high)}
        trunk, weights = (load_pickled(f, next=LPIPS_COMMANDS) for f in (backbone, heads))
        model, state = cls(), {}
        for name in model.state_dict():
            layer, _, kind = name.rpartition(".")
            file, key = (
                (heads, f"lin{kind}.model.1.weight")
                if layer == "heads"
                else (backbone, f"features.{names[layer]}.{kind}")
            )
            source = weights if layer == "heads" else trunk
            if key not in source or source[key].shape != model.state_dict()[name].shape:
                raise UserError(f"no {key} of the right shape in this file", where=str(file), next=LPIPS_COMMANDS)
            state[name] = source[key].float()
        model.load_state_dict(state)
        return model


def _unit(x: Tensor) -> Tensor:
    # where all channels are 0 the square root has an infinite slope; clamped, such cells have no gradient
    return x / (x.square().sum(dim=1, keepdim=True).clamp_min(EPSILON**2).sqrt() + EPSILON)
