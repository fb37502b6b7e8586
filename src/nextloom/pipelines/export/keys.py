"""``--to keys``: CSV files with `key`, `caption` and the chosen columns; nothing is read of the rows themselves.

A spreadsheet takes a cell that begins with = + - @ for a formula and runs it, and control characters break readers.
Such texts are written behind a `'` with controls percent-encoded; so is a text that begins with `'` itself. To read a
text back: where it begins with `'`, take that off and `urllib.parse.unquote` the rest. Numbers stay numbers.
"""

from __future__ import annotations

import csv
import io
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from nextloom.curation.sources.jsontext import dumps
from nextloom.pipelines.export.place import Sink
from nextloom.pipelines.export.rows import Chosen, Sample
from nextloom.printable import printable

FORMULA = tuple("=+-@\t\r'＝＋－＠|%")
"""How a text begins that some spreadsheet takes for more than text."""


class KeysFormat:
    """Writes CSV files."""

    pattern: ClassVar[str] = "keys-{:06d}.csv"
    needs_bytes: ClassVar[bool] = False
    rows: ClassVar[int] = 1_000_000
    """Most rows of a shard, unless told."""

    def __init__(self, chosen: Chosen) -> None:
        self._names = list(chosen.fields)
        self._csv: Any = None
        self._text: io.TextIOWrapper | None = None

    def begin(self, sink: Sink) -> None:
        """Start a shard."""
        self._text = text = io.TextIOWrapper(sink, "utf-8", newline="")  # type: ignore[arg-type]
        self._csv = csv.writer(text, lineterminator="\n")
        self._csv.writerow(["key", "caption", *self._names])

    def add(self, sample: Sample) -> None:
        """Add a row."""
        self._csv.writerow([cell(value) for value in (sample.key, sample.caption, *sample.values.values())])

    def end(self) -> None:
        """Finish the shard."""
        assert self._text is not None
        self._text.flush()
        self._text.detach()


def cell(value: Any) -> Any:
    """A value as a cell: texts made harmless, lists and objects as JSON, null as nothing."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, bytes):
        return value.hex()
    text = value if isinstance(value, str) else dumps(value)
    if text.lstrip().startswith(FORMULA) or printable(text, lines=True) != text:
        return "'" + "".join(quote(c, safe="") if c == "%" or printable(c, lines=True) != c else c for c in text)
    return text


def read_cell(text: str) -> str:
    """The text that `cell` made harmless."""
    return unquote(text[1:]) if text.startswith("'") else text
