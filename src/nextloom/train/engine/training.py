"""What every training has as data: how long, how fast, how it runs; and which of that is the identity of the result.

Fields that change the result are identity; where things lie and how they run (`execution:`) is not. This module
imports neither ray nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from nextloom.config import Model, RootPath
from nextloom.outputs import RUN_SUFFIX, OutputPath

CODE_VERSION = 2
"""Bumped by hand when the same recipe and data would train to other weights."""


class Execution(Model):
    """How a training runs; nothing here is part of its identity."""

    workers: int = Field(1, ge=0)
    """Ray Train workers; 0 trains in this process, without Ray."""
    use_gpu: bool = False
    """Each worker has a GPU of its own, and they exchange gradients by NCCL; without, they train on CPUs, by gloo."""
    threads: int | None = Field(None, gt=0)
    """Torch threads per worker; default: the machine's cores shared among the workers. Resuming gives the same bits
    only at the same number."""
    checkpoint_every: int = Field(100, gt=0)
    """Steps between checkpoints; a kill costs at most that much work."""
    checkpoint_minutes: float | None = Field(None, gt=0)
    """A checkpoint also when so many minutes have gone by since the last one; default: steps alone count."""
    keep: int = Field(2, gt=0)
    """Checkpoints kept, the newest ones."""
    log_every: int = Field(10, gt=0)
    """Steps between lines of metrics; the first and the last step always have one."""
    eval_every: int | None = Field(None, gt=0)
    """Steps between judgements of the unfinished model: figures on a fixed set of pictures or samples, and a picture;
    default: only the finished one is judged."""
    max_failures: int = Field(2, ge=0)
    """Restarts after a worker died, before the training gives up."""


class Training(Model):
    """What every training has. A step's losses are summed over all workers and divided by their global count."""

    places: ClassVar[frozenset[str]] = frozenset({"output", "dataset", "release", "execution"})
    """Fields that are not identity; what they point to is, by its digest (`nextloom.train.inputs`)."""

    output: OutputPath
    """Folder of the finished model and of nothing else, since its digest is its identity; what else lies there is
    refused. `<output>.run` beside it holds checkpoints, metrics and the receipt."""
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
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the averaged weights, which then are what is judged and saved (0.999 is usual); 0 switches it off."""
    seed: int = 0
    """Of the first weights and of the order of the data."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Type of matrix products; weights, moments and losses are always fp32, without TF32 also on a GPU."""
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
        return Path(f"{self.output.rstrip('/')}{RUN_SUFFIX}")

    def reads(self) -> dict[str, str]:
        """Field -> path of every folder and file that the training reads."""
        return {"dataset": self.dataset}

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
