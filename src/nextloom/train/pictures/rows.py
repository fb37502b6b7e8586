"""The rows of a release as pictures: what a tokenizer is trained on and what drawings are compared with.

A release lists files, it does not hold their bytes. So a file that vanished or changed since is an error that names
the row, the release and the way out. A release with a column that brings bytes (`download`) is read from that column.
A row that an Expand made is one frame of its parent's file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nextloom import pixels
from nextloom.errors import UserError
from nextloom.store.originals import Originals
from nextloom.store.release import Release


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """One row of a release with its pixels."""

    id: int
    key: str
    caption: str
    """"" where the source has none; frames have none."""
    rgb: np.ndarray
    """(height, width, 3) uint8, upright, transparency on white."""


def originals(release: Release, ids: np.ndarray | None = None) -> Iterator[Original]:
    """Pictures of all rows, or of `ids` in that order; neighbours that share a file fetch it once.

    Raises:
        UserError: a file is gone, has another size than when it was listed, or gives no pixels any more.
    """
    rows = release.rows(ids).to_pylist()
    for row, raw in zip(rows, Originals(release).fetch(rows), strict=True):
        try:
            if isinstance(raw, Exception):
                raise raw
            rgb = pixels.decode(raw, row.get("frame") or 0)
        except Exception as error:
            detail = f" ({error.detail})" if getattr(error, "detail", None) else ""
            raise UserError(
                f"{row['key']} of release {release.name} gives no picture any more: {error}{detail}",
                where=row["uri"],
                next="bring the file back, or leave it out: nextloom run RECIPE, then nextloom release RECIPE",
            ) from error
        yield Original(row["id"], row["key"], row.get("caption") or "", rgb)
