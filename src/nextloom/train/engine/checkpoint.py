"""Checkpoints: everything that the next step depends on, complete or absent.

    checkpoints/step-000000120/model.safetensors      parameters and buffers
                               optimizer.safetensors  both moments and the step count of every parameter
                               average.safetensors    averaged weights, where the recipe asks for them
                               state.json             step, learning-rate step, cursor of the data, RNG of every
                                                      worker, seconds, identity of the training
                               checksums.json         size and sha256 of each of these files

A folder is written under another name, is on disk, and then is renamed, so a kill leaves the checkpoints before it.
Every byte is compared with its checksum before it is resumed from. Plain safetensors and JSON, because replicated
weights need no sharded format: any part can be read, named and missed without a process group. Trade-off: one worker
writes everything; sharded weights will bring `torch.distributed.checkpoint`.
"""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextloom.errors import UserError
from nextloom.outputs import remove_own
from nextloom.train.engine.checksums import damage, seal
from nextloom.train.engine.ema import Average
from nextloom.train.engine.folder import CHECKPOINTS, LEFT_OVER, sync
from nextloom.train.engine.training import differences

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
AVERAGE = "average.safetensors"
WHOLE = r"step-\d{9}"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
Rng = dict[str, Any]


@dataclass
class Progress:
    """Where a training stands."""

    lr_step: int = 0
    """Steps that the learning-rate schedule has taken."""
    cursor: int = 0
    """The next step of the data."""
    seconds: float = 0.0
    """Time spent in steps, over all runs."""
    counted: float = 0.0
    """Sum of the tasks' counts (codes, pictures)."""
    rng: list[Rng] = field(default_factory=list)
    """State of the random number generators, one entry per worker."""


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    identity: Mapping,
    keep: int,
    average: Average | None = None,
) -> Path:
    """Write the checkpoint of `progress.cursor`, have it on disk, and drop all but the newest `keep`."""
    base = folder / CHECKPOINTS
    target = base / f"step-{progress.cursor:09d}"
    part = base / f".{uuid.uuid4().hex}"
    part.mkdir(parents=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = {
        f"{key}.{names[id(parameter)]}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, part / MODEL)
    save_file(moments, part / OPTIMIZER)
    if average:
        save_file({name: value.cpu().contiguous() for name, value in average.values.items()}, part / AVERAGE)
    (part / STATE).write_text(json.dumps({**asdict(progress), "identity": identity}))
    seal(part)
    for path in (*part.iterdir(), part):
        sync(path)
    if target.exists():
        target.rename(base / f".{uuid.uuid4().hex}")
        part.rename(target)
        clean(folder)
    else:
        part.rename(target)
    sync(base)
    for old in saved(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def saved(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = (folder / CHECKPOINTS).glob("step-*")
    return sorted(p for p in found if re.fullmatch(WHOLE, p.name) and p.is_dir() and not p.is_symlink())


def clean(folder: Path) -> None:
    """Remove what a killed writer left behind."""
    remove_own(folder / CHECKPOINTS, LEFT_OVER)


def resume(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping,
    average: Average | None = None,
) -> Progress:
    """Load the newest checkpoint into `model`, `optimizer` and `average`; a new `Progress` when there is none.

    Raises:
        UserError: it is damaged, lacks a part, or belongs to another training.
    """
    found = saved(folder)
    return load(found[-1], model, optimizer, identity, average) if found else Progress()


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: Mapping, average: Average | None = None
) -> Progress:
    """Load one checkpoint; nothing is changed when it is refused."""
    if wrong := damage(path):
        raise UserError(f"this checkpoint is not as it was written: {wrong}", where=str(path), next=_instead(path))
    state = _read_state(path)
    different = differences(state["identity"], identity)
    if different:
        raise UserError(
            f"this checkpoint belongs to another training: {'; '.join(different)}",
            where=str(path),
            next="choose another output, or start over with --fresh",
        )
    parameters = _tensors(path, MODEL, "parameters", list(model.state_dict()))
    named = dict(model.named_parameters())
    wanted = [f"{key}.{name}" for group in optimizer.param_groups for name in _names(group, named) for key in MOMENTS]
    moments = _tensors(path, OPTIMIZER, "optimiser moments", wanted)
    averaged = _tensors(path, AVERAGE, "averaged weights", list(average.values)) if average else {}
    model.load_state_dict(parameters)
    if average:
        average.load(averaged)
    for group in optimizer.param_groups:
        for name in _names(group, named):
            parameter = named[name]
            optimizer.state[parameter] = {
                "step": moments[f"step.{name}"].to(parameter.device),  # where the fused AdamW wants it
                **{k: torch.empty_like(parameter).copy_(moments[f"{k}.{name}"]) for k in MOMENTS[1:]},
            }
    return Progress(**{name: state[name] for name in Progress.__dataclass_fields__})


def rng_state() -> Rng:
    """State of torch's (a GPU's too, where one is in use), numpy's and Python's generators, as plain data."""
    numpy = np.random.get_state(legacy=False)
    version, words, spare = random.getstate()
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "numpy": {**numpy, "state": {"key": numpy["state"]["key"].tolist(), "pos": numpy["state"]["pos"]}},
        "python": [version, list(words), spare],
        **({"cuda": torch.cuda.get_rng_state().numpy().tobytes().hex()} if torch.cuda.is_initialized() else {}),
    }


def set_rng_state(state: Rng) -> None:
    """Restore what `rng_state` gave."""
    torch.set_rng_state(_bytes(state["torch"]))
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": np.array(inner["key"], np.uint32)}})
    version, words, spare = state["python"]
    random.setstate((version, tuple(words), spare))


def _bytes(hexadecimal: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytes.fromhex(hexadecimal), np.uint8).copy())


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE).read_text())
    except (FileNotFoundError, ValueError):
        raise _lacks(path, f"its state ({STATE})") from None
    for name in (*Progress.__dataclass_fields__, "identity"):
        if name not in state:
            raise _lacks(path, f"{name} (in {STATE})")
    if not state["rng"]:
        raise _lacks(path, f"rng (in {STATE})")
    for number, rng in enumerate(state["rng"]):
        for name in ("torch", "numpy", "python"):
            if name not in rng:
                raise _lacks(path, f"rng.{name} of worker {number} (in {STATE})")
    return state


def _tensors(path: Path, file: str, what: str, wanted: list[str]) -> dict[str, Tensor]:
    try:
        found = load_file(path / file)
    except (FileNotFoundError, SafetensorError):
        raise _lacks(path, f"its {what} ({file})") from None
    absent = [name for name in wanted if name not in found]
    if absent:
        raise _lacks(path, f"{len(absent)} of its {what}, the first is {absent[0]} (in {file})")
    return found


def _names(group: Mapping[str, Any], named: Mapping[str, nn.Parameter]) -> list[str]:
    members = {id(parameter) for parameter in group["params"]}
    return [name for name, parameter in named.items() if id(parameter) in members]


def _lacks(path: Path, part: str) -> UserError:
    return UserError(
        f"this checkpoint lacks {part}; resuming from it would not give the same training",
        where=str(path),
        next=_instead(path),
    )


def _instead(path: Path) -> str:
    """How to go on without the checkpoint at `path`: from the newest whole one before it."""
    before = [p for p in saved(path.parent.parent) if p.name < path.name]
    whole = next((p for p in reversed(before) if damage(p) is None), None)
    if whole is None:
        return f"no whole checkpoint is before it: start over with --fresh, or put back a copy of {path}"
    gone = " ".join(shlex.quote(str(p)) for p in (*before[before.index(whole) + 1 :], path))
    step = int(whole.name.removeprefix("step-"))
    return f"rm -r {gone}, and the same command goes on from {whole.name} ({step:,} steps done), which is whole"
