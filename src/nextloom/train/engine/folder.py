"""What a run keeps on disk beside its checkpoints: small documents, and folders that are replaced as a whole.

<output>.run/run.json        the training that is under way: its identity and its start; gone when it has finished
<output>.run/receipt.json    the finished training: identity, start, digest and files of the output, figures
<output>.run/failure.json    an error that a worker hands to the driver
<output>.run/stop.json       the driver's wish that workers stop after the step they are in
<output>.run/progress.json   steps done, rewritten every few seconds

A folder is that of a run when one of the first two says so; of it, only what we write by name is ever removed.
Documents are on disk before a rename makes them count.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextloom.errors import UserError
from nextloom.outputs import remove_own

RUN, RECEIPT, FAILURE, STOP, PROGRESS = "run.json", "receipt.json", "failure.json", "stop.json", "progress.json"
CHECKPOINTS, TENSORBOARD, PICTURES, METRICS, LEASE = "checkpoints", "tensorboard", "pictures", "metrics.jsonl", "lease"
LEFT_OVER = r"\.[0-9a-f]{32}"
"""Name of a checkpoint that was in work when its writer was killed."""
LEASE_NAMES = re.compile(r"\d{9}\.json")
MODEL_PART = "model.part"
CLEARING = "clearing"
"""Field of `RUN` while an earlier training is being removed."""


def read(path: Path) -> Any:
    """The document at `path`, None when there is none.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return None
    raw = path.read_bytes()
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UserError(
            f"this document is damaged: it is no JSON mapping ({len(raw)} bytes)",
            where=str(path),
            next=f"put back a copy, or move it away: mv {path} {path}.damaged; then the same command judges anew",
        )
    return document


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Create or replace a document; a reader sees all of it or none, also after a loss of power."""
    part = path.with_suffix(".part")
    with part.open("w") as file:
        file.write(json.dumps(document, indent=1, ensure_ascii=False))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(part: Path, target: Path) -> None:
    """Put the folder `part` (named ``*.part``) in the place of `target`, which may exist and must be ours.

    A kill leaves the old folder, none, or the new one, never a mixture.
    """
    for path in (*part.iterdir(), part):
        sync(path)
    old = part.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def check_run_folder(folder: Path, *, where: str = "output") -> None:
    """Refuse a folder ``X.run`` that no training of ours made, and links in it.

    Raises:
        UserError: it is a link or a file, holds something but neither `RUN` nor `RECEIPT` of ours, or a link stands
            where we write.
    """
    if not folder.is_symlink() and not folder.exists():
        return
    hint = "name another output, or move it away: --fresh does not replace it either"
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder}, where a training keeps its files, is a link or a file", where=where, next=hint)
    names = sorted(os.listdir(folder))
    links = [name for name in names if (folder / name).is_symlink()]
    if links:
        raise UserError(f"{folder / links[0]} is a link; nothing is written through links", where=where, next=hint)
    lease = os.listdir(folder / LEASE) if (folder / LEASE).is_dir() else []
    if set(names) <= {LEASE} and all(LEASE_NAMES.fullmatch(name) for name in lease):
        return  # killed before its first document
    states = sorted((folder / CHECKPOINTS).glob("step-*/state.json"))[-1:]
    if not any(is_ours(read(path)) for path in (folder / RUN, folder / RECEIPT, *states)):
        raise UserError(
            f"{folder} was not made by `nextloom train`, and a training would keep its files there; "
            f"it holds {', '.join(names[:3])}",
            where=where,
            next=hint,
        )


def start_over(folder: Path, identity: Mapping[str, Any]) -> None:
    """Begin the training of `identity`: remove what an earlier one left, names that we write and no others.

    Its receipt stays until the new model is there. A kill in between leaves a `RUN` that says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = {"identity": identity, "start": uuid.uuid4().hex}
    write(folder / RUN, {**run, CLEARING: True})
    remove_own(folder / CHECKPOINTS, rf"step-\d{{9}}|{LEFT_OVER}")
    remove_own(folder / TENSORBOARD, r"events\.out\.tfevents\..*")
    remove_own(folder / PICTURES, r"step-\d{9}\.png")
    for name in (METRICS, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    write(folder / RUN, run)


def is_ours(document: Any) -> bool:
    """Whether a document is one that a training wrote: it says of which, and of which start or how far it is."""
    if not isinstance(document, dict) or not isinstance(document.get("identity"), dict):
        return False
    return isinstance(document.get("start"), str) or isinstance(document.get("lr_step"), int)
