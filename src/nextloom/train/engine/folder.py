"""What a run keeps on disk beside its checkpoints: small documents, and folders that are replaced as a whole.

<output>.run/run.json        the training that is under way: its identity and its start; gone when it has finished
<output>.run/receipt.json    the finished training: identity, start, digest of the output, figures
<output>.run/failure.json    an error that a worker hands to the driver
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN, RECEIPT, FAILURE = "run.json", "receipt.json", "failure.json"


def read(path: Path) -> Any:
    """The document at `path`, None when there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Create or replace a document; a reader sees all of it or none."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1, ensure_ascii=False))
    part.replace(path)


def replace(part: Path, target: Path) -> None:
    """Put the folder `part` (named ``*.part``) in the place of `target`, which may exist.

    A kill leaves the old folder, none, or the new one, never a mixture.
    """
    old = part.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
