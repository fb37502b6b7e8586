"""The bytes of a row, wherever its source found them: a file, a range of a tar, a cell of a table.

    uri                       the whole object
    uri, offset, size         a byte range: the member of an uncompressed tar
    uri, offset, size, "~"    a byte range of text: base64, or a `data:` URI
    uri, member "jpg#12"      row 12 of column `jpg` in a Parquet or Arrow file; a struct column gives its `bytes`, one
                              of text is decoded, and of a list ``#12/0`` is the first
    uri, member "!..."        nothing: what the source found there is broken, and this says how
    uri, member "^..."        nothing: what the row or shard names may not be read, and this says why
    uri, member "?..."        nothing: the source could not read this unit, and the next listing tries again

Neighbours share what was opened: the last object, handles and row groups stay in memory, also between threads, which
share one reader. References into a shard hold for the very object that was listed; one that changed since gives an
error, never other bytes. Everything is opened through the door of the source (`nextloom.untrusted`). A tab in the text
behind a mark parts what all rows of a fault say from what this one adds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from nextloom import encoded
from nextloom.arrow_files import PAR, ArrowFile, open_parquet
from nextloom.untrusted import Door, NotAllowed, TooLarge

WEB = ("http://", "https://")
TEXT = "~"
"""The `member` of a row whose bytes are written as text in a range of a text file."""
BROKEN, BARRED, UNREAD = "!", "^", "?"
MARKS = (BROKEN, BARRED, UNREAD)
"""How the `member` of a row begins that has no bytes."""
SHARDS, GROUPS = 4, 2
"""Opened shards, and row groups of tables, that stay in memory: threads that read in order are at two at most."""


class ContentError(ValueError):
    """The bytes of a row cannot be had; trying again does not help.

    Args:
        message: why, in words that are the same for all rows of this kind.
        detail: what this row adds.
    """

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail


class Content:
    """Reads the bytes of rows, best in the order of their ids; threads may share one, and read at the same time.

    Args:
        door: of the source that listed them.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._lock = threading.Lock()  # while a shard is opened or a row group read, so that it is done once
        self._whole: tuple[str, bytes] | None = None
        self._opened: dict[tuple[str, str], Any] = {}
        self._groups: dict[tuple[str, str, str, int], pa.ChunkedArray] = {}

    def fetch(self, row: Mapping[str, Any]) -> bytes:
        """Bytes of a row.

        Args:
            row: `uri`, and `offset`, `size`, `member`, `version` where it lies inside a shard.

        Raises:
            OSError: the object is gone or cannot be read.
            ContentError: the shard changed since it was listed, its member is null, or the row is a URL.
            NotAllowed: the row names what may not be read; `TooLarge`: it has too many bytes.
        """
        uri, member = row["uri"], row.get("member")
        if member and member.startswith(MARKS):
            message, _, detail = member[1:].partition("\t")
            raise (NotAllowed if member.startswith(BARRED) else ContentError)(message, detail or None)
        if uri.startswith(WEB):
            raise ContentError("the row is a URL and has no bytes; read a `download` step")
        if member == TEXT:
            self._expect_size(row["size"] * 3 // 4 - 64)
            return self._decoded(_unescaped(self._range(uri, row["offset"], row["size"], row["version"])))
        if member is not None:
            return self._cell(uri, member, row["version"])
        if row.get("offset") is not None:
            self._expect_size(row["size"])
            return self._range(uri, row["offset"], row["size"], row["version"])
        whole = self._whole
        if whole is None or whole[0] != uri:
            self._whole = whole = (uri, self._door.read(uri))
        return whole[1]

    def _range(self, uri: str, offset: int, size: int, version: str) -> bytes:
        with self._lock:
            handle = self._open(uri, version)
        raw = handle.read_at(size, offset)
        if len(raw) != size:
            raise ContentError("the shard is cut off", f"{len(raw):,} of {size:,} bytes are there")
        return raw

    def _cell(self, uri: str, member: str, version: str) -> bytes:
        column, _, number = member.rpartition("#")
        number, _, part = number.partition("/")
        at = int(number)
        with self._lock:
            table = self._open(uri, version, member=True)
            group = 0
            while at >= table.sizes[group]:
                at -= table.sizes[group]
                group += 1
            key = (uri, version, column, group)
            values = _kept(self._groups, key, GROUPS, lambda: table.read(group, column))
        value = values[at].as_py()
        if part and value is not None:
            value = value[int(part)]
        if isinstance(value, Mapping):
            value = value.get("bytes")
        if value is None:
            raise ContentError("bytes are null", f"column {column!r}")
        if isinstance(value, str):
            return self._decoded(value)
        if not isinstance(value, bytes):
            raise ContentError("the cell holds no bytes", f"column {column!r}")
        self._expect_size(len(value))
        return value

    def _decoded(self, text: str) -> bytes:
        self._expect_size(len(text) * 3 // 4 - 64)  # the beginning of a data: URI and the end of base64 are no bytes
        try:
            raw = encoded.decode(text)
        except ValueError as error:
            raise ContentError("a text that is no image in base64 and no data: URI", str(error)) from None
        self._expect_size(len(raw))
        return raw

    def _expect_size(self, size: int) -> None:
        if size > self._door.max_bytes:
            raise TooLarge(size, self._door.max_bytes)

    def _open(self, uri: str, version: str, *, member: bool = False) -> Any:
        """The opened shard, once it is seen to be the one that was listed."""
        return _kept(self._opened, (uri, version), SHARDS, lambda: self._opening(uri, version, member))

    def _opening(self, uri: str, version: str, member: bool) -> Any:
        found = self._door.open(uri)
        if member and found.file.read_at(len(PAR), 0) != PAR:
            found.file.close()
            found = self._door.open(uri, mapped=True)
        if found.stamp != version.partition("+")[0]:
            found.file.close()
            raise ContentError("the shard changed since it was listed; run again")
        return _Cells(found.file) if member else found.file


def _kept(known: dict[Any, Any], key: Any, most: int, make: Callable[[], Any]) -> Any:
    """What `known` has for `key`, or what `make` makes; `known` keeps the `most` that were used last."""
    value = known.pop(key) if key in known else make()
    known[key] = value
    while len(known) > most:
        del known[next(iter(known))]
    return value


def _unescaped(raw: bytes) -> str:
    r"""Text of base64 as a text file holds it: in UTF-16 or -32 with zeros between, in JSON perhaps with `\/`."""
    return raw.replace(b"\0", b"").replace(b"\\/", b"/").decode("utf-8", "replace")


class _Cells:
    """Row groups of a Parquet file, or record batches of an Arrow file, by number."""

    def __init__(self, file: pa.NativeFile) -> None:
        if file.read_at(len(PAR), 0) == PAR:
            self._parquet = open_parquet(file, pre_buffer=True)
            meta = self._parquet.metadata
            self.sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        else:
            self._parquet = None
            self._batches = ArrowFile(file)
            self.sizes = self._batches.sizes

    def read(self, group: int, column: str) -> pa.ChunkedArray:
        if self._parquet is not None:
            return self._parquet.read_row_group(group, columns=[column])[column]
        return pa.chunked_array([self._batches.batch(group).column(column)])
