"""The bytes of a row, wherever its source found them: a file, a range of a tar, a cell of a table.

    uri                       the whole object
    uri, offset, size         a byte range: the member of an uncompressed tar
    uri, member "jpg#12"      row 12 of column `jpg` in a Parquet or Arrow file; a struct column gives its `bytes`
    uri, member "!..."        nothing: what the source found there is broken, and this says how
    uri, member "?..."        nothing: the source could not read this unit, and the next listing tries again

Neighbours share what was opened: the last object, the last handle, the last row group stay in memory. References
into a shard hold for the very object that was listed; one that changed since gives an error, never other bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nextloom.io import fetch, filesystem, is_uri

WEB = ("http://", "https://")
BROKEN, UNREAD = "!", "?"


class ContentError(ValueError):
    """The bytes of a row cannot be had; trying again does not help."""


class Content:
    """Reads the bytes of rows, best in the order of their ids."""

    def __init__(self) -> None:
        self._whole: tuple[str, bytes] | None = None
        self._opened: tuple[str, str, Any] | None = None
        self._group: tuple[tuple[str, str, str, int], pa.ChunkedArray] | None = None

    def fetch(self, row: Mapping[str, Any]) -> bytes:
        """Bytes of a row.

        Args:
            row: `uri`, and `offset`, `size`, `member`, `version` where it lies inside a shard.

        Raises:
            OSError: the object is gone or cannot be read.
            ContentError: the shard changed since it was listed, its member is null, or the row is a URL.
        """
        uri, member = row["uri"], row.get("member")
        if member and member.startswith((BROKEN, UNREAD)):
            raise ContentError(member[1:])
        if uri.startswith(WEB):
            raise ContentError("the row is a URL and has no bytes; read a `download` step")
        if member is not None:
            return self._cell(uri, member, row["version"])
        if row.get("offset") is not None:
            return self._range(uri, row["offset"], row["size"], row["version"])
        if self._whole is None or self._whole[0] != uri:
            self._whole = (uri, fetch(uri))
        return self._whole[1]

    def _range(self, uri: str, offset: int, size: int, version: str) -> bytes:
        handle = self._open(uri, version)
        raw = handle.read_at(size, offset)
        if len(raw) != size:
            raise ContentError(f"{len(raw):,} of {size:,} bytes are there: the shard is cut off")
        return raw

    def _cell(self, uri: str, member: str, version: str) -> bytes:
        column, _, number = member.rpartition("#")
        at = int(number)
        table = self._open(uri, version, member=True)
        group = 0
        while at >= table.sizes[group]:
            at -= table.sizes[group]
            group += 1
        key = (uri, version, column, group)
        if self._group is None or self._group[0] != key:
            self._group = (key, table.read(group, column))
        value = self._group[1][at].as_py()
        if isinstance(value, Mapping):
            value = value.get("bytes")
        if value is None:
            raise ContentError(f"column {column!r} is null")
        return value.encode() if isinstance(value, str) else value

    def _open(self, uri: str, version: str, *, member: bool = False) -> Any:
        """The opened shard, once it is seen to be the one that was listed."""
        if self._opened and self._opened[:2] == (uri, version):
            return self._opened[2]
        system, inner = filesystem(uri)
        if stamp(system, system.get_file_info(inner)) != version.partition("+")[0]:
            raise ContentError("the shard changed since it was listed; run again")
        opened = _Cells(system, inner) if member else system.open_input_file(inner)
        self._opened = (uri, version, opened)
        return opened


class _Cells:
    """Row groups of a Parquet file, or record batches of an Arrow file, by number.

    A local Arrow file is mapped, so that of its batches only what is asked for is read.
    """

    def __init__(self, system: pafs.FileSystem, path: str) -> None:
        file = system.open_input_file(path)
        head = file.read_at(6, 0)
        self._parquet = head.startswith(b"PAR1")
        if self._parquet:
            self._file: Any = pq.ParquetFile(file, pre_buffer=True)
            meta = self._file.metadata
            self.sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
            return
        if isinstance(system, pafs.LocalFileSystem):
            file = pa.memory_map(path)
        if head == b"ARROW1":
            reader = pa.ipc.open_file(file)
            self._file = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        else:
            self._file = list(pa.ipc.open_stream(file))
        self.sizes = [batch.num_rows for batch in self._file]

    def read(self, group: int, column: str) -> pa.ChunkedArray:
        if self._parquet:
            return self._file.read_row_group(group, columns=[column])[column]
        return pa.chunked_array([self._file[group].column(column)])


def stamp(system: pafs.FileSystem, info: pafs.FileInfo) -> str:
    """Version of an object: time of its last change and size. FileNotFoundError where there is none.

    In a bucket the time is whole seconds: some servers tell more when they list than when one object is asked for.
    """
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(info.path)
    unit = 1 if isinstance(system, pafs.LocalFileSystem) else 10**9
    return f"{info.mtime_ns // unit * unit}-{info.size}"


def unit_stamp(uri: str) -> str:
    """`stamp` of the object at a path or URI.

    Raises:
        FileNotFoundError: there is none.
    """
    system, inner = filesystem(uri)
    return stamp(system, system.get_file_info(inner))


__all__ = ["BROKEN", "UNREAD", "WEB", "Content", "ContentError", "is_uri", "stamp", "unit_stamp"]
