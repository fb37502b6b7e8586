"""A tokenizer as a folder, without torch: `config.json`, `model.safetensors`, and the digest that is its
identity.

Planning reads only this file, so that asking what is stale loads no network. Index columns store codes as
little-endian unsigned 16-bit numbers; a codebook that would not fit is refused here, before anything is
trained.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from nextloom.config import Model
from nextloom.errors import UserError
from nextloom.io import digest_path
from nextloom.model_files import read_json
from nextloom.tokenize.siglip_config import SiglipConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_CODES = 65_536
INDEX_DTYPE = np.dtype("<u2")
"""How indices lie in `binary` columns, for codebooks of up to `MAX_CODES` codes."""


class CnnConfig(Model):
    """A VQGAN encoder or decoder; the defaults are the full size (29.3 M and 42.4 M weights)."""

    channels: int = Field(128, ge=1, le=2**14)
    """Width of the first level."""
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 1, 2, 2, 4), min_length=1, max_length=8)
    """Width of each level in `channels`; between levels the grid halves."""
    blocks: int = Field(2, ge=0, le=64)
    """Residual blocks per level of the encoder; the decoder has one more."""
    z_channels: int = Field(256, ge=1, le=2**14)
    """Width of the features at the code grid, outside the projections to code dimensions."""
    unshuffle: int = Field(1, ge=1, le=64)
    """Side of the pixel blocks folded into channels before the first convolution (and unfolded after the
    last).

    1 is the published network; 4 runs about 4 times faster at small sizes."""
    level_attention: bool = True
    """Attention after every block of the coarsest level; the middle has it always."""
    groups: int = Field(32, ge=1, le=2**10)
    """Groups of every GroupNorm; each level's width must be a multiple."""

    @property
    def patch(self) -> int:
        """Pixels per code along a side."""
        return self.unshuffle * 2 ** (len(self.multipliers) - 1)

    @model_validator(mode="after")
    def _divisible(self) -> CnnConfig:
        for multiplier in self.multipliers:
            if self.channels * multiplier % self.groups:
                raise ValueError(f"{self.channels} x {multiplier} channels are no multiple of groups={self.groups}")
        return self


class VitConfig(Model):
    """A transformer over code cells; the defaults are TokenFlow's semantic decoder."""

    width: int = Field(1152, ge=1, le=2**16)
    """Width of the hidden states."""
    depth: int = Field(3, ge=1, le=256)
    """Blocks."""
    heads: int = Field(12, ge=1, le=2**10)
    """Attention heads."""
    mlp_ratio: int = Field(4, ge=1, le=64)
    """Width inside the MLPs, in widths."""
    side: int = Field(16, ge=1, le=2**10)
    """Side of the square of learned positions, which is resized to the picture's grid."""

    @model_validator(mode="after")
    def _divisible(self) -> VitConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads={self.heads}")
        return self


def _kind(value: Any) -> str:
    """Which network a semantic encoder's fields describe: a CNN unless they say `kind: siglip2`."""
    if isinstance(value, dict):
        return "siglip2" if value.get("kind") == "siglip2" else "cnn"
    return "siglip2" if isinstance(value, SiglipConfig) else "cnn"


SemanticEncoder = Annotated[
    Annotated[CnnConfig, Tag("cnn")] | Annotated[SiglipConfig, Tag("siglip2")], Discriminator(_kind)
]
TEACHER_DIM = {"efficientnet_lite0": 112}
"""Channels of a teacher's features, where they are fixed."""


class TokenizerConfig(Model):
    """Everything that shapes a dual-codebook tokenizer. Two codebooks share one index: a semantic and a pixel part."""

    codes: int = Field(32_768, ge=2)
    """Codebook size V, at most 65,536: indices are stored in 16 bits."""
    semantic_dim: int = Field(32, ge=0, le=2**14)
    """Dimensions of a code's semantic part; 0 is a single-branch VQGAN, without semantic networks."""
    pixel_dim: int = Field(8, ge=1, le=2**14)
    """Dimensions of a code's pixel part."""
    pixel_weight: float = 1.0
    """w_dis: weight of the pixel distance against the semantic one when a code is chosen."""
    beta: float = 0.25
    """Weight of the commitment term in the quantiser's loss."""
    pixel_encoder: CnnConfig = CnnConfig()
    """Pictures to pixel features."""
    pixel_decoder: CnnConfig = CnnConfig()
    """Pixel codes to pictures; same patch as the encoder, often wider."""
    semantic_encoder: SemanticEncoder = CnnConfig()
    """Pictures to semantic features; same patch as the pixel encoder. A CNN, or with `kind: siglip2` a SigLIP2
    tower."""
    semantic_decoder: VitConfig | None = None
    """The transformer that turns semantic codes into the teacher's features; None is a small CNN."""
    semantic_width: int = Field(256, ge=1, le=2**14)
    """Width of that CNN."""
    teacher: Literal["efficientnet_lite0", "siglip2"] = "efficientnet_lite0"
    """The frozen network whose features the semantic codes must keep. Only training needs it."""
    teacher_dim: int = Field(112, ge=1, le=2**14)
    """Channels of the teacher's features."""

    @model_validator(mode="after")
    def _coherent(self) -> TokenizerConfig:
        if self.codes > MAX_CODES:
            raise ValueError(f"{self.codes:,} codes; indices are stored in 16 bits, so at most {MAX_CODES:,}")
        patches = {self.pixel_encoder.patch, self.pixel_decoder.patch}
        if self.semantic_dim:
            patches.add(self.semantic_encoder.patch)
        if len(patches) > 1:
            raise ValueError(f"encoders and decoder disagree on pixels per code: {sorted(patches)}")
        if self.semantic_dim and self.semantic_decoder is None and self.semantic_width % self.semantic_groups:
            raise ValueError(f"semantic_width {self.semantic_width} is no multiple of groups={self.semantic_groups}")
        dim = TEACHER_DIM.get(self.teacher, self.teacher_dim)
        if self.semantic_dim and self.teacher_dim != dim:
            raise ValueError(f"teacher_dim is {self.teacher_dim}; {self.teacher} has {dim} channels")
        return self

    @property
    def patch(self) -> int:
        """Pixels per code along a side."""
        return self.pixel_encoder.patch

    @property
    def semantic_groups(self) -> int:
        """Groups of the GroupNorms in a CNN semantic decoder: as in the semantic encoder, or else the pixel decoder."""
        encoder = self.semantic_encoder
        return encoder.groups if isinstance(encoder, CnnConfig) else self.pixel_decoder.groups

    @property
    def dim(self) -> int:
        """Dimensions D of a whole code."""
        return self.semantic_dim + self.pixel_dim


def toy() -> TokenizerConfig:
    """Eight pixels per code, 512 codes: trains to recognisable 48-pixel pictures in a minute on two cores."""
    flat = {"multipliers": (1,), "blocks": 1, "unshuffle": 8, "groups": 8, "level_attention": False}
    pixel = CnnConfig(channels=128, z_channels=64, **flat)
    return TokenizerConfig(
        codes=512,
        semantic_dim=16,
        pixel_dim=8,
        pixel_weight=3.0,
        pixel_encoder=pixel,
        pixel_decoder=pixel,
        semantic_encoder=CnnConfig(channels=64, z_channels=64, **flat),
        semantic_width=64,
    )


def toy_vqgan() -> TokenizerConfig:
    """The pixel branch of `toy` alone: its stage 1, and its single-branch baseline."""
    return toy().model_copy(update={"semantic_dim": 0})


def vqgan() -> TokenizerConfig:
    """The published pixel branch alone: stage 1, and the single-branch baseline."""
    return TokenizerConfig(semantic_dim=0)


def full() -> TokenizerConfig:
    """The published tokenizer: 32,768 codes of 32 + 8 dimensions, SigLIP2-so400m as semantic encoder and teacher."""
    return TokenizerConfig(
        semantic_encoder=SiglipConfig(), semantic_decoder=VitConfig(), teacher="siglip2", teacher_dim=1152
    )


def full_double() -> TokenizerConfig:
    """`full` after stage 3: a pixel decoder of twice the channels and twice the blocks."""
    return full().model_copy(update={"pixel_decoder": CnnConfig(channels=256, blocks=4)})


PROFILES = {"toy": toy, "toy_vqgan": toy_vqgan, "vqgan": vqgan, "full": full, "full_double": full_double}
"""Named configurations; `vqgan` is stage 1 of `full`, as `toy_vqgan` is of `toy`."""


def read_config(folder: str | Path) -> TokenizerConfig:
    """The configuration in a tokenizer's folder."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise UserError("no tokenizer in this folder", where=str(folder), next="nextloom train RECIPE")
    document = read_json(path)
    try:
        return TokenizerConfig.model_validate(document)
    except ValueError as error:
        raise UserError(
            f"no configuration of a tokenizer: {error}", where=str(path), next="train it again: nextloom train RECIPE"
        ) from None


def digest(folder: str | Path) -> str:
    """Identity of a tokenizer: sha256 (16 hex digits) over the names and contents of its two files.

    Whatever else lies in the folder does not count: a README makes no token stale.

    Raises:
        FileNotFoundError: one of the files is not there.
    """
    lines = [f"{name}\0{digest_path(str(Path(folder) / name))}\n" for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def pack_indices(indices: np.ndarray, codes: int) -> bytes:
    """Indices (n,) below `codes` as little-endian u2 bytes.

    Raises:
        ValueError: the codebook has more than 65,536 codes, or an index lies outside it.
    """
    if codes > MAX_CODES:
        raise ValueError(f"{codes:,} codes; indices are stored in 16 bits, so at most {MAX_CODES:,}")
    indices = np.asarray(indices)
    if indices.size and (indices.min() < 0 or indices.max() >= codes):
        raise ValueError(f"index outside 0 .. {codes - 1}: {indices.min()} .. {indices.max()}")
    return indices.astype(INDEX_DTYPE).tobytes()


def unpack_indices(raw: bytes) -> np.ndarray:
    """(n,) int64 indices from their stored bytes."""
    return np.frombuffer(raw, INDEX_DTYPE).astype(np.int64)
