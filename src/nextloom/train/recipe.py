"""Recipes of trainings, read from YAML: `train: decoder | tokenizer` says which kind a file is.

A new kind is a recipe and a task, an entry here, a branch in `inputs` and in `work.make_task`. This module imports
neither ray nor torch.
"""

from __future__ import annotations

from typing import Any

from nextloom.config import load_yaml, override, validate
from nextloom.errors import UserError, did_you_mean
from nextloom.train.decoder.recipe import DecoderRecipe
from nextloom.train.tokenizer.recipe import TokenizerRecipe

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
