"""The bytes of the rows of a release, as they were listed: the one way to them for training, export and Python.

A release lists files, it does not hold their bytes. They come from where the source found them, through the door of
the release, or, where a column of it brings bytes (`download`), out of that column. A file that changed since it was
listed is another row, so its bytes are refused even where it has the same size. A row that an Expand made is one frame
of its parent's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nextloom.content import Content, ContentError
from nextloom.io import is_uri
from nextloom.store.release import Release

HELD = 64
"""Rows of a column of bytes that lie in memory at once."""
_STAMP = re.compile(r"^\d+-\d+(?=\+|$)")


class Originals:
    """Reads bytes of rows, best in the order of their ids; what was opened last stays open."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._door = release.door
        self._content = Content(self._door)
        self._bringing = next(((step, c["content"]) for step, c in release.columns.items() if c.get("content")), None)

    def fetch(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes | Exception]:
        """Bytes of each row, or why they cannot be had, in order.

        Args:
            rows: as `Release.rows` gives them.
        """
        for start in range(0, len(rows), HELD):
            part = rows[start : start + HELD]
            brought = self._brought(part)
            for at, row in enumerate(part):
                try:
                    yield self._of_source(row) if brought is None else _of_column(brought[at])
                except Exception as error:  # whatever a decoder of foreign bytes raises costs this row
                    yield error

    def _of_source(self, row: Mapping[str, Any]) -> bytes:
        uri, version = row["uri"], row.get("version") or ""
        raw = self._content.fetch(row)
        if (size := row.get("size")) and size != len(raw):
            raise ContentError(
                "the file changed since it was listed", f"{len(raw):,} bytes, {size:,} when it was listed"
            )
        whole = row.get("member") is None and row.get("offset") is None and not is_uri(uri)
        if whole and (listed := _STAMP.match(version)) and self._door.stamp(uri) != listed[0]:
            raise ContentError("the file changed since it was listed", "another time of change")
        return raw

    def _brought(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
        if self._bringing is None:
            return None
        step, column = self._bringing
        ids = np.array([row["id"] for row in rows], np.int64)
        table = self._release.column(step, [column, "error"], ids)
        return table.rename_columns(["id", "bytes", "error"]).to_pylist()


def _of_column(cell: Mapping[str, Any]) -> bytes:
    if cell["bytes"] is None:
        error = cell["error"] or {}
        raise ContentError("no bytes came", ": ".join(filter(None, (error.get("type"), error.get("message")))))
    return cell["bytes"]
