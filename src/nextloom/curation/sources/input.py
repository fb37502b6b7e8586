"""What a reader of tables is given, and where in a text file a value stands that is an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nextloom.curation.sources.budget import Budget
from nextloom.curation.sources.packing import PACKINGS
from nextloom.curation.sources.roles import Roles
from nextloom.curation.sources.shards import Refusal
from nextloom.untrusted import Opened

Choose = Callable[[pa.Schema], Roles]
WINDOW = 4 << 20
AHEAD = 256 << 20
"""How far behind the value before it a value is looked for, in bytes."""
MISSES = 8
"""Values looked for in vain after which none is."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a CSV file is written."""

    encoding: str | None = None
    """A name that Python knows; default: UTF-8, and anything else is refused."""
    delimiter: str | None = None
    """Default: a comma, in a .tsv a tab."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file that is to be read as a table."""

    file: pa.NativeFile
    """As it lies there, for random access."""
    stream: Any
    """What is in it: itself, or unpacked."""
    again: Callable[[], Opened]
    """Opens it once more."""
    kind: str
    """Its suffix without that of a packer, such as ``csv``."""
    uri: str
    packed: str
    """The suffix of the packer, or ""."""
    dialect: Dialect
    budget: Budget

    def expect_places(self) -> None:
        """A `Refusal` of a packed file: nothing in it has a place to come back to."""
        if self.packed:
            packing = next(p for p in PACKINGS if p.suffixes[0] == self.packed)
            raise Refusal("images as text in a compressed file have no byte ranges", packing.unpack(self.uri))


class Finder:
    """Places of texts in a file, looked for in the order in which they stand there."""

    def __init__(self, source: Input, encoding: str = "utf-8") -> None:
        self._source, self._encoding = source, encoding
        self._file: pa.NativeFile | None = None
        self._at, self._misses = 0, 0
        self._window, self._start = b"", 0

    def find(self, text: str) -> tuple[int, int] | None:
        r"""Where it begins and how many bytes it has, as it is or with `\/` for `/` as some write JSON."""
        for spelling in (text, text.replace("/", "\\/")) if "/" in text else (text,):
            raw = spelling.encode(self._encoding)
            if self._misses < MISSES and (at := self._search(raw)) is not None:
                self._at = at + len(raw)
                return at, len(raw)
        self._misses += 1
        return None

    def _search(self, raw: bytes) -> int | None:
        if self._file is None:
            self._file = self._source.again().file
        begin = self._at
        while begin < self._at + AHEAD:
            if not self._start <= begin or begin + len(raw) > self._start + len(self._window):
                self._window, self._start = self._file.read_at(max(WINDOW, 2 * len(raw)), begin), begin
            at = self._window.find(raw, begin - self._start)
            if at >= 0:
                return self._start + at
            end = self._start + len(self._window)
            if end - len(raw) + 1 <= begin or len(self._window) < len(raw):
                return None
            begin = end - len(raw) + 1
            if end >= self._file.size():
                return None
        return None
