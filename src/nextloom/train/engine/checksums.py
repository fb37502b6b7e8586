"""The receipt of a checkpoint: size and sha256 of each of its files, and of the receipt itself.

A flipped bit in a weight resumes like any other weight, so every byte is compared before one is used. The price is
reading a checkpoint twice, and about a second a gigabyte when it is written. Imports neither ray nor torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKSUMS = "checksums.json"
MOST_BYTES = 2**20
"""Of a receipt."""


def seal(folder: Path) -> None:
    """Write the receipt of all files in a folder."""
    paths = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    files = {path.name: [path.stat().st_size, _sha256(path)] for path in paths}
    (folder / CHECKSUMS).write_text(json.dumps({"files": files, "receipt": _of(files)}, indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, naming one; None where all are as they were written."""
    path = folder / CHECKSUMS
    try:
        if path.stat().st_size > MOST_BYTES:
            return f"{CHECKSUMS} is too large to be a receipt"
        document: Any = json.loads(path.read_bytes())
        files = document["files"]
        if document["receipt"] != _of(files):
            return f"{CHECKSUMS} is damaged: it does not fit its own checksum"
        wanted = {name: (int(size), str(digest)) for name, (size, digest) in files.items()}
    except FileNotFoundError:
        return f"lacks its receipt ({CHECKSUMS})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{CHECKSUMS} is damaged: it cannot be read"
    here = {entry.name: entry for entry in os.scandir(folder) if entry.name != CHECKSUMS}
    if absent := sorted(wanted.keys() - here.keys()):
        return f"{absent[0]} is missing"
    if extra := sorted(here.keys() - wanted.keys()):
        return f"{extra[0]} is no file of this checkpoint"
    for name, (size, digest) in wanted.items():
        if not here[name].is_file(follow_symlinks=False):
            return f"{name} is no plain file"
        found = here[name].stat().st_size
        if found != size:
            return f"{name} has {found:,} bytes instead of {size:,}"
        if _sha256(folder / name) != digest:
            return f"{name} is damaged: its checksum differs"
    return None


def _of(files: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
