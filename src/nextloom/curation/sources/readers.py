"""Pieces of a table in a file: Parquet, Arrow, CSV, JSONL. Only what a listing needs is read, never a picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from nextloom.arrow_files import ArrowFile, open_parquet
from nextloom.curation.sources.columns import CHUNK, Roles
from nextloom.curation.sources.jsontext import dumps
from nextloom.curation.sources.shards import Refusal, Shard, utf8
from nextloom.untrusted import Door

Choose = Callable[[pa.Schema], Roles]
BLOCK = 16 << 20
"""Bytes of a CSV file parsed at once; a longer record cannot be read."""


@dataclass(slots=True)
class Piece:
    """Some rows of a table."""

    table: pa.Table
    numbers: np.ndarray
    """Their numbers in the file, from 0, rows that cannot be read counted too."""
    empty: pa.ChunkedArray | None = None
    """Where the bytes of the picture are null; None: nowhere."""
    problems: list[tuple[int, str]] = field(default_factory=list)
    """Rows that cannot be read: number and reason."""
    spelled: bool = False
    """Whether numbers are spelled out in text."""
    sidecar: pa.ChunkedArray | None = None
    """The sidecars, where they are not the columns of `table`."""


def pieces(shard: Shard, choose: Choose, door: Door) -> Iterator[tuple[Piece, Roles]]:
    """The table in `shard`, piece by piece.

    Args:
        shard: its suffix says what it is.
        choose: which column is what, from the schema.
        door: of the source.

    Raises:
        Refusal: another kind of file, or `choose` refuses its columns.
        pa.ArrowInvalid: it is broken.
    """
    name = shard.name.lower()
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    kind = name.removesuffix(packed).rpartition(".")[2]
    reader = READERS.get(kind)
    if reader is None or (packed and kind not in TEXT):
        raise Refusal(f"found {shard.name}, expected {', '.join('.' + known for known in READERS)}", "convert it")
    opened = door.open(shard.uri, mapped=reader is _arrow).file  # of a mapped file only what is asked for is read
    with opened, pa.CompressedInputStream(opened, PACKED[packed]) if packed else opened as file:
        yield from reader(file, kind, choose)


def _parquet(file: Any, kind: str, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    table = open_parquet(file, pre_buffer=True)
    role = choose(table.schema_arrow)
    paths = role.needed(table.schema_arrow)
    start, groups, meta = 0, list[int](), table.metadata
    for group in range(meta.num_row_groups):
        groups.append(group)
        count = sum(meta.row_group(at).num_rows for at in groups)
        if count < CHUNK and group + 1 < meta.num_row_groups:
            continue
        data = table.read_row_groups(groups, columns=paths, use_threads=False)
        if not paths:  # nothing but pictures
            data = pa.table({"": pa.nulls(count)})
        yield Piece(data, np.arange(start, start + count), _empty(file, table, groups, role)), role
        start, groups = start + count, []


def _empty(file: Any, table: pq.ParquetFile, groups: list[int], role: Roles) -> pa.ChunkedArray | None:
    """Where the bytes beside a path are null: by the file's statistics, and only where they leave it open by reading.

    A null without a path beside it shows when it is fetched.
    """
    kind = table.schema_arrow.field(role.picture).type
    if not role.cells or not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    leaf = f"{role.picture}.bytes"
    at = [table.schema.column(i).path for i in range(len(table.schema))].index(leaf)
    careful = open_parquet(file, metadata=table.metadata, buffer_size=1 << 16)  # reads a page, not the column
    out: list[pa.Array] = []
    for group in groups:
        # pyarrow ends the process where statistics belong to a column of a forged type; reading it raises
        next(careful.iter_batches(1, row_groups=[group], columns=[leaf], use_threads=False), None)
        meta = table.metadata.row_group(group)
        stats = meta.column(at).statistics
        nulls = stats.null_count if stats is not None and stats.has_null_count else None
        if nulls in (0, meta.num_rows):
            out.append(pa.repeat(nulls != 0, meta.num_rows))
        else:
            column = table.read_row_group(group, columns=[leaf], use_threads=False)[role.picture]
            out += pc.is_null(pc.struct_field(column, "bytes")).chunks
    mask = pa.chunked_array(out, pa.bool_())
    return mask if pc.any(mask).as_py() else None


def _arrow(file: Any, kind: str, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    batches = ArrowFile(file)
    role = choose(batches.schema)
    start, held = 0, list[pa.RecordBatch]()
    for batch in batches:
        held.append(batch)
        if sum(b.num_rows for b in held) >= CHUNK:
            piece = _of_batches(held, start, role)
            yield piece, role
            start, held = start + piece.table.num_rows, []
    if held:
        yield _of_batches(held, start, role), role


def _of_batches(batches: list[pa.RecordBatch], start: int, role: Roles) -> Piece:
    table = pa.Table.from_batches(batches)
    mask = None
    if role.cells:
        column = table[role.picture]
        bare = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        mask = pc.is_null(bare)
        mask = mask if pc.any(mask).as_py() else None
    needed = role.needed(table.schema)
    columns = {name: _pruned(table[name], name, needed) for name in table.column_names}
    table = pa.table(
        {name: column for name, column in columns.items() if column is not None} or {"": pa.nulls(len(table))}
    )
    return Piece(table, np.arange(start, start + table.num_rows), mask)


def _pruned(column: pa.ChunkedArray, path: str, needed: list[str]) -> pa.ChunkedArray | None:
    """A column with the leaves in `needed` alone."""
    if path in needed:
        return column
    if not any(leaf.startswith(f"{path}.") for leaf in needed):
        return None
    inner = {f.name: _pruned(pc.struct_field(column, f.name), f"{path}.{f.name}", needed) for f in column.type}
    kept = {name: child.combine_chunks() for name, child in inner.items() if child is not None}
    mask = pc.is_null(column).combine_chunks()
    return pa.chunked_array([pa.StructArray.from_arrays(list(kept.values()), names=list(kept), mask=mask)])


def _csv(file: Any, kind: str, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    problems: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        told = f"{row.actual_columns} fields, expected {row.expected_columns}: {row.text[:200]}"
        problems.append((row.number - 2, told))  # its numbers begin with 1, at the header
        return "skip"

    options = pacsv.ParseOptions(
        delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True, invalid_row_handler=skip
    )
    read = pacsv.ReadOptions(use_threads=False, block_size=BLOCK)
    text = pacsv.ConvertOptions(
        default_column_type=pa.string(),  # a type would be guessed from the first rows: 007 is text, and stays so
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    reader = pacsv.open_csv(file, read_options=read, parse_options=options, convert_options=text)
    role = choose(reader.schema)
    start = 0
    for batch in reader:
        table = pa.table(batch)
        bad = [number for number, _ in problems]  # the parser may be ahead of this batch
        numbers = np.setdiff1d(np.arange(start, start + table.num_rows + len(bad)), bad)[: table.num_rows]
        start = int(numbers[-1]) + 1 if len(numbers) else start
        yield Piece(table, numbers, problems=[p for p in problems if p[0] < start], spelled=True), role
        problems[:] = [p for p in problems if p[0] >= start]
    empty = pa.table({name: pa.array([], pa.string()) for name in reader.schema.names})
    yield Piece(empty, np.empty(0, np.int64), problems=problems), role


def _jsonl(file: Any, kind: str, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    """Lines, each an object; a line that is none is a problem, and the next one is read."""
    lines = io.BufferedReader(file, 1 << 20)
    role: Roles | None = None
    found: list[tuple[int, dict[str, Any]]] = []
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            value = json.loads(
                line.decode("utf-8-sig" if number == 0 else "utf-8"), parse_float=_finite, parse_constant=_null
            )
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, found {type(value).__name__}")
        except (ValueError, RecursionError) as error:
            problems.append((number, f"line {number + 1}: not JSON: {utf8(str(error))}"))
            continue
        if role is None:
            role = choose(_schema(value))
        found.append((number, value))
        if len(found) + len(problems) >= CHUNK:
            yield _of_objects(found, problems, role), role
            found, problems = [], []
    if role is None:
        if problems:
            raise ValueError(f"no line of it is an object; {problems[0][1]}")
        return
    yield _of_objects(found, problems, role), role


def _finite(text: str) -> float | None:
    return number if math.isfinite(number := float(text)) else None


def _null(name: str) -> None:
    """NaN, Infinity."""


def _schema(first: dict[str, Any]) -> pa.Schema:
    """Kinds of the fields of an object, as far as the choice of roles asks."""
    kinds: dict[type, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return pa.schema([(name, kinds.get(type(value), pa.null())) for name, value in first.items()])


def _of_objects(found: list[tuple[int, dict[str, Any]]], problems: list[tuple[int, str]], role: Roles) -> Piece:
    columns: dict[str, list[str | None]] = {name: [] for name in (role.picture, role.key, role.caption) if name}
    sidecars: list[str | None] = []
    for _, value in found:
        rest = {name: inner for name, inner in value.items() if name in role.rest or role.ragged}
        for name, column in columns.items():
            inner = value.get(name)
            if name == role.key and isinstance(inner, int) and not isinstance(inner, bool):
                inner = str(inner)
            taken = isinstance(inner, str)
            column.append(utf8(inner) if taken else None)
            if taken and name not in role.rest:
                rest.pop(name, None)
        sidecars.append(dumps(rest) if rest else None)
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    numbers = np.array([number for number, _ in found], np.int64)
    sidecar = pa.chunked_array([pa.array(sidecars, pa.string())])
    return Piece(table, numbers, problems=problems, sidecar=sidecar)


Reader = Callable[[Any, str, Choose], Iterator[tuple[Piece, Roles]]]
TEXT = ("csv", "tsv", "jsonl", "ndjson")
READERS: dict[str, Reader] = {
    **dict.fromkeys(("parquet", "pq"), _parquet),
    **dict.fromkeys(("arrow", "feather", "ipc"), _arrow),
    **dict.fromkeys(("csv", "tsv"), _csv),
    **dict.fromkeys(("jsonl", "ndjson"), _jsonl),
}
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
SUFFIXES = (*(f".{kind}" for kind in READERS), *(f".{kind}{packed}" for kind in TEXT for packed in PACKED))
"""What a table's name may end with."""
