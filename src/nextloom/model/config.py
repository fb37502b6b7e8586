"""Sizes of the decoder and of its one vocabulary; the same code runs from toy width to 7B.

Ids: text, then `<boi>` and `<eoi>`, then the codes, then padding rows that nothing refers to. Only text, `<boi>`
and `<eoi>` have rows in the embedding table: codes enter through their code vectors and the connector.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nextloom.config import Model


class ModelConfig(Model):
    """Everything that fixes the shapes and the positions of a decoder."""

    text_vocab: int = Field(gt=0, le=2**24)
    """Number of text ids; `<boi>`, `<eoi>` and the codes follow them."""
    codes: int = Field(gt=0, le=2**20)
    """Codebook size of the image tokenizer."""
    semantic_dim: int = Field(default=32, ge=0, le=2**14)
    """Width of the semantic part of a code vector, unit norm; 0 with a single-branch tokenizer."""
    pixel_dim: int = Field(default=8, gt=0, le=2**14)
    """Width of the pixel part of a code vector, unit norm."""
    width: int = Field(gt=0, le=2**18)
    """Width of the residual stream."""
    layers: int = Field(gt=0, le=2**10)
    """Number of decoder layers."""
    heads: int = Field(gt=0, le=2**12)
    """Query heads."""
    kv_heads: int = Field(gt=0, le=2**12)
    """Key and value heads, each shared by `heads / kv_heads` query heads."""
    head_dim: int = Field(gt=0, le=2**12, multiple_of=2)
    """Width of one head."""
    mlp: int = Field(gt=0, le=2**20)
    """Inner width of the gated MLP."""
    rope_theta: float = Field(default=1e6, gt=0)
    """Base of the rotary frequencies."""
    rope_range: float = Field(default=64.0, gt=0)
    """C of Eq. 1: a square grid spans [0, C] on both spatial axes, whatever its number of cells."""
    rope_axes: Literal["interleaved", "sections"] = "interleaved"
    """How frequency pairs belong to (time, row, column): pair i to axis i mod 3, or three contiguous sections."""
    sections: tuple[int, int, int] = (16, 24, 24)
    """Pairs per axis when `rope_axes` is "sections" (Qwen2.5-VL's split); unused otherwise."""
    max_scales: int = Field(default=18, gt=0, le=2**8)
    """The most scales an image may have."""
    rms_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in RMSNorm."""
    pad_vocab: int = Field(default=128, gt=0, le=2**20)
    """The head's rows are padded to a multiple of this."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.rope_axes == "sections" and 2 * sum(self.sections) != self.head_dim:
            raise ValueError(
                f"sections {self.sections} must add up to half of head_dim ({self.head_dim // 2}); "
                "rope_axes: interleaved has no such condition"
            )
        return self

    @property
    def code_dim(self) -> int:
        """Width of a code vector: semantic part, then pixel part."""
        return self.semantic_dim + self.pixel_dim

    @property
    def boi(self) -> int:
        """Id of `<boi>`, which predicts the single code of scale 1."""
        return self.text_vocab

    @property
    def eoi(self) -> int:
        """Id of `<eoi>`; appended when the last scale is done, never predicted."""
        return self.text_vocab + 1

    @property
    def code_offset(self) -> int:
        """Id of code 0, and the number of rows of the embedding table."""
        return self.text_vocab + 2

    @property
    def vocab(self) -> int:
        """Rows of the head, padding included."""
        return -(-(self.code_offset + self.codes) // self.pad_vocab) * self.pad_vocab

    @classmethod
    def qwen2_5_7b(cls) -> Self:
        """The published size: Qwen2.5-VL-7B's text model with 32,768 codes."""
        return cls(text_vocab=152064, codes=32768, width=3584, layers=28, heads=28, kv_heads=4, head_dim=128, mlp=18944)
