"""The rows of a release as pictures: what a tokenizer is trained on and what drawings are compared with.

A release lists files, it does not hold their bytes. So a file that vanished or changed since is an error that names
the row, the release and the way out. A release with a column that brings bytes (`download`) is read from that column.
A row that an Expand made is one frame of its parent's file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextloom import pixels
from nextloom.content import Content, ContentError
from nextloom.errors import UserError
from nextloom.store.release import Release
from nextloom.untrusted import NotAllowed

HELD = 64
"""Pictures of a column that lie in memory at once."""


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
    bringing = next(((step, c["content"]) for step, c in release.columns.items() if c.get("content")), None)
    content = _Brought(release, *bringing, [row["id"] for row in rows]) if bringing else Content(release.door)
    for row in rows:
        try:
            raw, size = content.fetch(row), row.get("size")
            if size and not bringing and size != len(raw):
                raise pixels.PictureError(f"it has {len(raw):,} bytes, {size:,} when it was listed")
            rgb = pixels.decode(raw, row.get("frame") or 0)
        except (OSError, ContentError, NotAllowed, pixels.PictureError) as error:
            raise UserError(
                f"{row['key']} of release {release.name} gives no picture any more: {error}",
                where=row["uri"],
                next="bring the file back, or leave it out: nextloom run RECIPE, then nextloom release RECIPE",
            ) from error
        yield Original(row["id"], row["key"], row.get("caption") or "", rgb)


class _Brought:
    """Bytes out of a column that brings them, for rows in the order of `ids`."""

    def __init__(self, release: Release, step: str, column: str, ids: list[int]) -> None:
        self._release, self._step, self._column, self._ids = release, step, column, ids
        self._at, self._held = 0, list[bytes | None]()

    def fetch(self, row: Mapping[str, Any]) -> bytes:
        """Bytes of the next row.

        Raises:
            ContentError: it has none.
        """
        at, self._at = self._at % HELD, self._at + 1
        if at == 0:
            wanted = np.array(self._ids[self._at - 1 : self._at - 1 + HELD], np.int64)
            self._held = self._release.column(self._step, [self._column], wanted)[self._column].to_pylist()
        if (raw := self._held[at]) is None:
            raise ContentError(f"column {self._step} has no bytes for it")
        return raw
