"""The shape of a SigLIP2 vision tower, and what a published folder says of it, without torch.

A published folder is one that transformers saves: `config.json`, whose `vision_config` leaves out what equals the
library's defaults, and `*.safetensors`. Only NaFlex towers fit: they take any grid of patches. The fixed SigLIP2
(`model_type` siglip) has a patch convolution and one size of picture, and is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from nextloom.config import Model
from nextloom.errors import UserError
from nextloom.io import digest_path
from nextloom.model_files import read_json
from nextloom.op import digest

NAME = "google/siglip2-so400m-patch16-naflex"
"""The published tower of the full profile."""
NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "patch": "patch_size",
    "positions": "num_patches",
}
"""Our name of a field -> transformers'."""
LIBRARY = {"width": 768, "layers": 12, "heads": 12, "mlp": 3072, "patch": 16, "positions": 256}
"""What transformers takes for a field that `config.json` leaves out."""
FIXED = {"num_channels": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0}
"""Fields that every published tower has alike; others are refused."""


class SiglipConfig(Model):
    """A SigLIP2 NaFlex vision tower; the defaults are so400m-patch16-naflex."""

    kind: Literal["siglip2"] = "siglip2"
    """Tells it from a CNN."""
    width: int = Field(1152, ge=1, le=2**16)
    """Width of the hidden states."""
    layers: int = Field(27, ge=2, le=256)
    """Blocks of the published tower; the last one is not built, since the state before it is what is used."""
    heads: int = Field(16, ge=1, le=2**10)
    """Attention heads."""
    mlp: int = Field(4304, ge=1, le=2**18)
    """Width inside the MLPs."""
    patch: int = Field(16, ge=1, le=2**8)
    """Pixels per code along a side."""
    positions: int = Field(256, ge=1, le=2**16)
    """Learned positions, a square; resized to the picture's grid."""

    @model_validator(mode="after")
    def _whole(self) -> SiglipConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads={self.heads}")
        if math.isqrt(self.positions) ** 2 != self.positions:
            raise ValueError(f"{self.positions} positions are no square")
        return self


def read_siglip(folder: str | Path, where: str) -> SiglipConfig:
    """The vision tower in a published folder.

    Args:
        folder: with `config.json`.
        where: config path of the folder, for errors.

    Raises:
        UserError: there is none, or of another kind.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise _absent(folder, where)
    try:
        document = read_json(path)
        kind, vision = document.get("model_type"), document.get("vision_config", document)
        fields = {name: vision.get(theirs, LIBRARY[name]) for name, theirs in NAMES.items()}
    except (UserError, ValueError, AttributeError) as error:
        what = error.what if isinstance(error, UserError) else error
        raise UserError(f"{path} is no configuration of a model: {what}", where=where, next=bring(folder)) from None
    if kind not in ("siglip2", "siglip2_vision_model"):
        raise UserError(f"{folder} holds a model of type {kind!r}, not siglip2", where=where, next=bring(folder))
    for name, value in FIXED.items():
        if vision.get(name, value) != value:
            raise UserError(f"{name} of {folder} is {vision[name]!r}, not {value!r}", where=where, next=bring(folder))
    try:
        return SiglipConfig(**fields)
    except ValueError as error:
        raise UserError(f"{folder} has no tower that fits: {error}", where=where, next=bring(folder)) from None


def siglip_digest(folder: str, where: str = "init_from.semantic") -> str:
    """Digest of a published SigLIP2's `config.json` and weights; other files in its folder do not count.

    Raises:
        UserError: it is not there.
    """
    files = [Path(folder) / "config.json", *sorted(Path(folder).glob("*.safetensors"))]
    if len(files) < 2 or not files[0].is_file():
        raise _absent(folder, where)
    return digest([[file.name, digest_path(str(file))] for file in files])


def _absent(folder: str | Path, where: str) -> UserError:
    return UserError(f"no SigLIP2 (config.json, *.safetensors) in {folder}", where=where, next=bring(folder))


def bring(folder: str | Path) -> str:
    """The command that brings the published tower into a folder."""
    return f"hf download {NAME} --local-dir {folder}"
