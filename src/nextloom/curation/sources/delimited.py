"""CSV and TSV files: every value is text and keeps its spelling; records of another length are failed rows.

A quote that is not closed takes all that follows into one value, and the parser of Arrow says nothing of it. So a mark
is read behind the end of the file: where it is no record of its own, it ended up in that value.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from nextloom.curation.sources.budget import MAX_COLUMNS, expect_columns
from nextloom.curation.sources.columns import encoded_at
from nextloom.curation.sources.input import Choose, Finder, Input
from nextloom.curation.sources.piece import Piece, Problem
from nextloom.curation.sources.roles import Roles
from nextloom.curation.sources.shards import Refusal

BLOCK = 16 << 20
"""Bytes parsed at once; a longer record cannot be read."""
END = MAX_COLUMNS
"""Delimiters in the mark behind the end of a file: more than a record of a table has."""
UNCLOSED = "a quote is not closed, so what follows is not read"
BOMS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
BOMS |= {codecs.BOM_UTF16_BE: "utf-16"}
SEPARATORS = {"\t": r'"\t"', ";": '";"', "|": '"|"', ",": '","'}


def read_csv(source: Input, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    """Pieces of a CSV or TSV file.

    Raises:
        Refusal: it is in another encoding than the recipe says, has too many columns or a record that is too long.
    """
    try:
        yield from _pieces(source, choose)
    except UnicodeError:
        raise _other_encoding(source) from None
    except pa.ArrowInvalid as error:
        unread = "CSV parse error: Row" in str(error)  # a record that `skip` was to get, and that is no UTF-8
        if unread or "UTF8" in str(error).upper().replace("-", ""):
            raise _other_encoding(source) from None
        if "straddling object" in str(error):
            raise Refusal(f"a record longer than {BLOCK:,} bytes", "is a quote not closed? mend the file") from None
        raise


def _pieces(source: Input, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    problems: list[tuple[int, str, str]] = []
    refused: list[Refusal] = []
    delimiter = source.dialect.delimiter or ("\t" if source.kind == "tsv" else ",")
    mark = delimiter * END

    def skip(row: Any) -> str:
        if row.text.strip("\r\n") == mark:
            return "skip"
        told = "not as many fields as the header"
        detail = f"{row.actual_columns} fields, expected {row.expected_columns}: {row.text[:200]}"
        if (open_text := _before(row.text, mark)) is not None:
            told, detail = UNCLOSED, open_text
        problems.append((row.number - 2, told, detail))  # its numbers begin with 1, at the header
        try:
            source.budget.rows(1)
        except Refusal as refusal:  # the parser drops what is raised here
            refused.append(refusal)
            return "error"
        source.budget.rows(-1)
        return "skip"

    stream = io.BufferedReader(source.stream, BLOCK)
    first = stream.peek(BLOCK)
    if source.dialect.encoding is None and (bom := next((b for b in BOMS if first.startswith(b)), None)):
        raise _other_encoding(source, BOMS[bom])
    expect_columns(first.split(b"\n", 1)[0].count(delimiter.encode()))
    options = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip)
    encoding = source.dialect.encoding or "utf8"
    marked = _Marked(stream, f"\n{mark}\n".encode(_bare(encoding, first)))
    read = pacsv.ReadOptions(use_threads=False, block_size=BLOCK, encoding=encoding)
    text = pacsv.ConvertOptions(
        default_column_type=pa.string(),  # a type would be guessed from the first rows: 007 is text, and stays so
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    try:
        reader = pacsv.open_csv(
            io.BufferedReader(marked, BLOCK), read_options=read, parse_options=options, convert_options=text
        )
    except pa.ArrowInvalid as error:
        if refused:
            raise refused[0] from None
        if "Empty CSV file" in str(error):  # no line of it has an end
            raise Refusal(f"the first line: {UNCLOSED}", "mend the file") from None
        raise
    names = reader.schema.names
    if len(names) > END and not any(names):  # nothing but the mark
        return
    role = _chosen(reader.schema, choose, delimiter)
    finder = Finder(source, _bare(encoding, first))
    start = 0
    for batch in _batches(reader, refused):
        table = pa.table(batch)
        bad = [number for number, *_ in problems]  # the parser may be ahead of this batch
        numbers = np.setdiff1d(np.arange(start, start + table.num_rows + len(bad)), bad)[: table.num_rows]
        start = int(numbers[-1]) + 1 if len(numbers) else start
        if table.num_rows and (open_text := _before(table[-1][-1].as_py(), mark)) is not None:
            problems.append((int(numbers[-1]), UNCLOSED, open_text))
            table, numbers = table.slice(0, table.num_rows - 1), numbers[:-1]
        piece = Piece(table, pa.array(numbers).cast(pa.string()), spelled=True)
        piece.problems = _told(p for p in problems if p[0] < start)
        yield _placed(piece, role, source, finder), role
        problems[:] = [p for p in problems if p[0] >= start]
    empty = pa.table({name: pa.array([], pa.string()) for name in reader.schema.names})
    yield Piece(empty, pa.array([], pa.string()), problems=_told(problems), spelled=True), role


def _batches(reader: pacsv.CSVStreamingReader, refused: list[Refusal]) -> Iterator[pa.RecordBatch]:
    """Batches of a reader; what its handler `refused` in place of the error that the parser makes of it."""
    try:
        yield from reader
    except pa.ArrowInvalid:
        if refused:
            raise refused[0] from None
        raise


class _Marked(io.RawIOBase):
    """A stream, and some bytes behind its end."""

    def __init__(self, stream: io.BufferedReader, mark: bytes) -> None:
        self._stream, self._mark = stream, mark

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        if not data:
            data, self._mark = self._mark[: len(buffer)], self._mark[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _before(text: str | None, mark: str) -> str | None:
    """How a text begins that goes on to the mark behind the end of the file; None of any other."""
    text = (text or "").rstrip("\r\n")
    return text.removesuffix(mark).rstrip("\r\n")[:200] if text.endswith(mark) else None


def _told(problems: Any) -> list[Problem]:
    return [Problem(str(number), told, detail) for number, told, detail in problems]


def _chosen(schema: pa.Schema, choose: Choose, delimiter: str) -> Roles:
    try:
        return choose(schema)
    except Refusal as refusal:
        other = next((mark for mark in SEPARATORS if mark != delimiter and mark in schema.names[0]), None)
        if len(schema.names) > 1 or other is None:
            raise
        raise Refusal(refusal.what, f"set source.delimiter: {SEPARATORS[other]}") from None


def _placed(piece: Piece, role: Roles, source: Input, finder: Finder) -> Piece:
    """The piece with the places of images that are written as text."""
    values = piece.table[role.picture]
    rows = np.flatnonzero(encoded_at(values).to_numpy(zero_copy_only=False))
    if not len(rows):
        return piece
    source.expect_places()
    found = [finder.find(values[int(row)].as_py()) for row in rows]
    return piece.with_places(role.picture, dict(zip(rows.tolist(), found, strict=True)))


def _bare(encoding: str, first: bytes) -> str:
    """The encoding of a text inside of the file, without a byte order mark of its own."""
    name = codecs.lookup(encoding).name
    if name in ("utf-16", "utf-32"):
        big = first.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
        return f"{name}-{'be' if big else 'le'}"
    return "utf-8" if name == "utf-8-sig" else name


def _other_encoding(source: Input, guess: str = "") -> Refusal:
    """What to do with a file that is not in the encoding the recipe says."""
    said = source.dialect.encoding
    if said:
        return Refusal(f"it is not in the encoding {said!r}", "correct source.encoding")
    if guess:
        return Refusal(f"not UTF-8 but {guess}", f"set source.encoding: {guess}")
    return Refusal("not UTF-8", "say what it is: source.encoding: cp1252 (or latin-1, utf-16, gb18030, ...)")
