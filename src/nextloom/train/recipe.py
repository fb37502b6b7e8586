"""Training as data: what to train, on what, for how long; and what of that is the identity of the result.

`train: decoder | tokenizer` says which recipe a file is. Fields that change the result are identity; where things
lie and how they run (`execution:`) is not. This module imports neither ray nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from nextloom.config import RootPath, load_yaml, override, validate
from nextloom.errors import UserError, did_you_mean
from nextloom.model.config import ModelConfig
from nextloom.train.tokenizer_recipe import TokenizerRecipe
from nextloom.train.training import Training


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


TrainRecipe = DecoderRecipe | TokenizerRecipe
KINDS: dict[str, type[DecoderRecipe] | type[TokenizerRecipe]] = {"decoder": DecoderRecipe, "tokenizer": TokenizerRecipe}


def load(path: str, *, root: str, sets: list[str] | None = None) -> TrainRecipe:
    """Read a training recipe; `sets` are ``a.b=c`` overrides, relative paths lie below `root`.

    Raises:
        UserError: no such file, an unknown field (with the nearest known one), or a value out of range.
    """
    return build(override(load_yaml(path), sets or []), root=root)


def build(data: dict[str, Any], *, root: str = ".") -> TrainRecipe:
    """A training recipe from plain data."""
    kind = data.get("train")
    if kind not in KINDS:
        raise UserError(f"unknown training {kind!r}; {did_you_mean(str(kind), KINDS)}", where="train")
    recipe = validate(KINDS[kind], data, where="", root=root)
    share = recipe.packs_per_step if isinstance(recipe, DecoderRecipe) else recipe.batch
    name = "packs_per_step" if isinstance(recipe, DecoderRecipe) else "batch"
    workers = max(recipe.execution.workers, 1)
    if share % workers:
        raise UserError(
            f"{share} is no multiple of {workers} workers",
            where=name,
            next=f"--set {name}={-(-share // workers) * workers}, or another execution.workers",
        )
    return recipe


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, as ``path old -> new``."""
    out = []
    for key in sorted({*old, *new}):
        before, after, path = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            out += differences(before, after, f"{path}.")
        elif before != after:
            out.append(f"{path} {before} -> {after}")
    return out
