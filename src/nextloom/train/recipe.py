"""Training as data: what to train, on what, for how long; and what of that is the identity of the result.

`train: decoder | tokenizer` says which recipe a file is. Fields that change the result are identity; where things
lie and how they run (`execution:`) is not. This module imports neither ray nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from nextloom.config import Model, RootPath, load_yaml, override, validate
from nextloom.errors import UserError, did_you_mean
from nextloom.model.config import ModelConfig
from nextloom.tokenize.tokenizer_config import TokenizerConfig, toy

CODE_VERSION = 1
"""Bumped by hand when the same recipe and data would train to other weights."""


class Execution(Model):
    """How a training runs; nothing here is part of its identity."""

    workers: int = Field(1, ge=0)
    """Ray Train workers; 0 trains in this process, without Ray."""
    threads: int | None = Field(None, gt=0)
    """Torch threads per worker; default: the machine's cores shared among the workers. Resuming gives the same bits
    only at the same number."""
    checkpoint_every: int = Field(100, gt=0)
    """Steps between checkpoints; a kill costs at most that much work."""
    keep: int = Field(2, gt=0)
    """Checkpoints kept, the newest ones."""
    log_every: int = Field(10, gt=0)
    """Steps between lines of metrics; the first and the last step always have one."""
    max_failures: int = Field(2, ge=0)
    """Restarts after a worker died, before the training gives up."""


class Training(Model):
    """What every training has. A step's losses are summed over all workers and divided by their global count."""

    places: ClassVar[frozenset[str]] = frozenset({"output", "dataset", "release", "execution"})
    """Fields that are not identity; what they point to is, by its digest (`nextloom.train.data.inputs`)."""

    output: RootPath
    """Folder of the finished model and of nothing else, since its digest is its identity. `<output>.run` beside it
    holds checkpoints, metrics and the receipt."""
    dataset: RootPath
    """Folder of the dataset."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    warmup: int = Field(50, ge=0)
    """Steps over which the learning rate rises from 0; at most `steps`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: down to 0 along a cosine, or level."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's two moments."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    seed: int = 0
    """Of the first weights and of the order of the data."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Type of matrix products; weights, moments and losses are always fp32."""
    execution: Execution = Execution()
    """How it runs."""

    @model_validator(mode="after")
    def _warm(self) -> Self:
        if self.warmup > self.steps:
            raise ValueError(
                f"warmup is {self.warmup}, but there are {self.steps} steps: the peak would never be reached; "
                f"--set warmup={self.steps // 10}"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where the training keeps its own files."""
        return Path(f"{self.output.rstrip('/')}.run")

    def identity(self) -> dict[str, Any]:
        """The fields that change the result, as plain data."""
        return {**self.model_dump(mode="json", exclude=set(self.places)), "code_version": CODE_VERSION}

    def learning_rate(self, step: int) -> float:
        """Learning rate of step `step`, from 0; a function of the step alone."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + cos(pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))


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


class TokenizerRecipe(Training):
    """A tokenizer's training on the pictures of a release."""

    train: Literal["tokenizer"] = "tokenizer"
    release: str
    """Name of the release whose rows are the pictures."""
    tokenizer: TokenizerConfig = Field(default_factory=toy)
    """The network; `toy` when left out."""
    scales: int = Field(6, ge=1, le=18)
    """Scales per picture; the picture's size is `patch` times the last grid."""
    batch: int = Field(16, ge=1)
    """Pictures per step over all workers; a multiple of their number."""
    lr: float = Field(2e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay, on matrices only."""
    drop: float = Field(0.5, ge=0, le=1)
    """Share of the scales after the first that each step leaves out."""
    drop_until: float = Field(1.0, ge=0, le=1)
    """Share of the steps that drop scales, from the first. At toy size all of them cost 0.7 dB against 0.1."""
    mse_weight: float = 1.0
    """Weight of the picture's mean squared error."""
    vq_weight: float = 1.0
    """Weight of the quantiser's loss. At toy size 0.25 uses more codes and trains faster."""
    semantic_weight: float = 1.0
    """Weight of 1 - cosine to the teacher."""


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
