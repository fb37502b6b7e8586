"""A decoder's training as data."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from nextloom.config import RootPath
from nextloom.model.config import ModelConfig
from nextloom.train.engine.training import Training


class DecoderRecipe(Training):
    """A decoder's training on the packs of a release."""

    places: ClassVar[frozenset[str]] = Training.places | {"packs", "tokenizer"}

    train: Literal["decoder"] = "decoder"
    packs: str
    """Name of the pack plan."""
    tokenizer: RootPath
    """Folder of the tokenizer that made the release's codes; its codebook is where code vectors start."""
    release: str | None = None
    """A version such as tokens-0003, to stay on it while newer ones appear; default: the one the plan names."""
    packs_per_step: int = Field(8, ge=1)
    """Packs per step over all workers; a multiple of their number."""
    model: ModelConfig
    """The decoder."""
    null_prompt: float = Field(0.1, ge=0, le=1)
    """Share of samples without their caption, drawn anew in each epoch, so that guidance has a null prompt to learn."""
    alpha: float = Field(0.9, ge=0)
    """Exponent of the scale weights in the loss; 0 weighs every code the same."""

    def reads(self) -> dict[str, str]:
        """As in `Training`."""
        return {**super().reads(), "tokenizer": self.tokenizer}
