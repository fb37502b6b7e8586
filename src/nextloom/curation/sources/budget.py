"""What a shard may unfold to, against its size: a few kilobytes must not become gigabytes of rows.

Links compress well, and a row is some 300 bytes here, so the limits leave room: a row needs a byte of its file, and
text may be a hundred times as long as its file; both count only above what is harmless anyway. Beyond them the shard
is refused before the memory is taken.
"""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa

from nextloom.curation.sources.shards import Refusal

FREE_ROWS, ROWS_PER_BYTE = 100_000, 1
FREE_BYTES, RATIO = 256 << 20, 100
MAX_COLUMNS = 10_000
"""Most columns of a table."""
NEXT = "no table of images is like that; leave the file out"


class Budget:
    """Limits of one shard.

    Args:
        size: of its file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows = self._unpacked = self._texts = 0

    def rows(self, more: int) -> None:
        """Count rows; a `Refusal` beyond the limit."""
        self._rows += more
        most = max(FREE_ROWS, self._size * ROWS_PER_BYTE)
        if self._rows > most:
            raise Refusal(f"more than {most:,} rows in a file of {self._size:,} bytes", NEXT)

    def unpacked(self, more: int) -> None:
        """Count bytes that were compressed, or are announced to be; a `Refusal` beyond the limit."""
        self._unpacked += more
        self._expect(self._unpacked, "it unpacks")

    def texts(self, more: int) -> None:
        """Count bytes of values as they will lie in memory; a `Refusal` beyond the limit."""
        self._texts += more
        self._expect(self._texts, "its values unfold")

    def _expect(self, count: int, what: str) -> None:
        most = max(FREE_BYTES, self._size * RATIO)
        if count > most:
            raise Refusal(f"{what} to more than {most:,} bytes, {RATIO} times its size", NEXT)


class Unpacked(io.RawIOBase):
    """A compressed file as a stream of what is in it, counted."""

    def __init__(self, file: pa.NativeFile, compression: str, budget: Budget) -> None:
        self._stream = pa.CompressedInputStream(file, compression)
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._budget.unpacked(len(data))
        buffer[: len(data)] = data
        return len(data)


def expect_columns(count: int) -> None:
    """A `Refusal` of a table with more than `MAX_COLUMNS`."""
    if count > MAX_COLUMNS:
        raise Refusal(f"more than {MAX_COLUMNS:,} columns", NEXT)
