"""Pieces of a table in a file: Parquet and Arrow here, CSV and JSON in `delimited` and `records`.

Only what a listing needs is read: of images that are bytes nothing but whether they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nextloom.arrow_files import ArrowFile, open_parquet
from nextloom.curation.sources.budget import Budget, Unpacked, expect_columns
from nextloom.curation.sources.delimited import read_csv
from nextloom.curation.sources.finding import Shard
from nextloom.curation.sources.input import Choose, Dialect, Input
from nextloom.curation.sources.packing import PACKINGS, packing_of
from nextloom.curation.sources.piece import Piece, checked, images_of, labels_of, opened, reduced
from nextloom.curation.sources.records import read_json, read_jsonl
from nextloom.curation.sources.roles import Roles, is_list
from nextloom.curation.sources.shards import Refusal
from nextloom.io import is_uri
from nextloom.untrusted import Door

CHUNK = 1 << 16
"""Most rows read at once."""
LARGE = 64 << 20
"""Bytes of values of which a group of rows is read bit by bit."""


def pieces(shard: Shard, choose: Choose, door: Door, dialect: Dialect) -> Iterator[tuple[Piece, Roles, Budget]]:
    """The table in `shard`, piece by piece.

    Args:
        shard: its suffix says what it is.
        choose: which column is what, from the schema.
        door: of the source.
        dialect: how a CSV file is written.

    Raises:
        Refusal: another kind of file, `choose` refuses its columns, or it unfolds without bound.
        pa.ArrowInvalid: it is broken.
    """
    name = shard.name.lower()
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    kind = name.removesuffix(packed).rpartition(".")[2]
    reader = READERS.get(kind)
    if reader is None or (packed and kind not in TEXT):
        raise Refusal(f"found {shard.name}, expected {', '.join('.' + known for known in READERS)}", "convert it")
    with door.open(shard.uri, mapped=reader is _arrow).file as file:  # of a mapped file what is asked for is read
        size = file.size()
        budget = Budget(size)
        head = file.read_at(min(8, size), 0)
        found = packing_of(head)
        if found and found.name != PACKED.get(packed):
            raise Refusal(f"{found.suffixes[0]} inside, which its name does not say", found.unpack(shard.uri))
        if packed and size and not found:
            raise Refusal(f"its name says {packed}, and it is not that inside", "rename it")
        file.seek(0)
        stream = Unpacked(file, PACKED[packed], budget) if packed else file
        again = partial(door.open, shard.uri)
        for piece, role in reader(Input(file, stream, again, kind, shard.uri, packed, dialect, budget), choose):
            budget.rows(piece.table.num_rows + len(piece.problems))
            weight = piece.weight()
            budget.texts(weight)
            for part in piece.cut(weight):
                good = part if kind in TEXT else checked(part)
                if role.listed and kind not in JSON:
                    budget.rows(images_of(good, role) - part.table.num_rows)
                    good = opened(good, role)
                yield good, role, budget


def _parquet(source: Input, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    ahead = is_uri(source.uri)  # many requests at once; on a disk they cost more than they save
    table = open_parquet(source.file, pre_buffer=ahead)
    meta, schema = table.metadata, table.schema_arrow
    expect_columns(meta.num_columns)
    source.budget.rows(meta.num_rows)
    source.budget.rows(-meta.num_rows)
    role = choose(schema)
    paths = role.needed(schema)
    if role.listed and role.cells:
        paths += _beside_bytes(table, role) or [role.picture]
    leaves = [at for at in range(meta.num_columns) if _below(table.schema.column(at).path, paths)]
    groups = [meta.row_group(at) for at in range(meta.num_row_groups)]
    weight = sum(group.column(at).total_uncompressed_size for group in groups for at in leaves)
    if not (role.listed and role.cells and role.picture in paths):  # else images are read, a few at a time
        source.budget.unpacked(weight)
    if weight * max(1, meta.num_rows) > LARGE:  # a value of a dictionary may stand for each row
        coded = [table.schema.column(at).path for at in leaves if _may_unfold(groups, at)]
        large = weight > meta.num_rows << 12
        how: dict[str, Any] = {"pre_buffer": ahead and not large} | ({"buffer_size": 1 << 20} if large else {})
        table = open_parquet(source.file, metadata=meta, read_dictionary=coded, **how)
    size = max(1, min(CHUNK, LARGE // max(1, weight // max(1, meta.num_rows))))
    start, held = 0, list[int]()
    for number in range(len(groups)):
        held.append(number)
        count = sum(groups[at].num_rows for at in held)
        if count < CHUNK and number + 1 < len(groups):
            continue
        empty = None if role.listed else _empty(source.file, table, held, role)
        at = 0
        for data in _batches(table, held, paths, size, count):
            if role.listed and role.cells:
                data = data.set_column(data.column_names.index(role.picture), role.picture, reduced(data[role.picture]))
            mask = None if empty is None else empty.slice(at, data.num_rows)
            yield Piece(data, labels_of(start + at, data.num_rows), mask), role
            at += data.num_rows
        start, held = start + count, []


def _batches(table: pq.ParquetFile, groups: list[int], paths: list[str], size: int, count: int) -> Iterator[pa.Table]:
    if not paths:  # nothing but images
        for start in range(0, count, CHUNK):
            yield pa.table({"": pa.nulls(min(CHUNK, count - start))})
        return
    for batch in table.iter_batches(size, row_groups=groups, columns=paths, use_threads=False):
        yield pa.table(batch)


def _below(path: str, wanted: list[str]) -> bool:
    return any(path == want or path.startswith(f"{want}.") for want in wanted)


def _may_unfold(groups: list[Any], at: int) -> bool:
    """Whether a column of text is written with a dictionary somewhere."""
    columns = [group.column(at) for group in groups[:1] + groups[-1:]]
    return any(c.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in e for e in c.encodings) for c in columns)


def _beside_bytes(table: pq.ParquetFile, role: Roles) -> list[str]:
    """Of a column of lists of {bytes, path} the path alone, where the file's statistics say that no bytes are null."""
    schema, meta = table.schema, table.metadata
    leaves = {schema.column(at).path: at for at in range(len(schema))}
    inner = [path for path in leaves if path.startswith(f"{role.picture}.")]
    paths = [path for path in inner if path.endswith(".path")]
    raw = [path for path in inner if path.endswith(".bytes")]
    if len(paths) != 1 or len(raw) != 1 or is_list(table.schema_arrow.field(role.picture).type.value_type):
        return []
    for at in range(meta.num_row_groups):
        found = [meta.row_group(at).column(leaves[name]) for name in (raw[0], paths[0])]
        if any(column.statistics is None or not column.statistics.has_null_count for column in found):
            return []
        if found[0].statistics.null_count > 0:
            return []
    return paths


def _empty(file: Any, table: pq.ParquetFile, groups: list[int], role: Roles) -> pa.Array | None:
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
    mask = pa.concat_arrays(out) if out else pa.array([], pa.bool_())
    return mask if pc.any(mask).as_py() else None


def _arrow(source: Input, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    batches = ArrowFile(source.file)
    role = choose(batches.schema)
    start, held = 0, list[pa.RecordBatch]()
    for batch in batches:
        source.budget.rows(batch.num_rows)
        source.budget.rows(-batch.num_rows)
        held.append(batch)
        if sum(b.num_rows for b in held) >= CHUNK:
            piece = _of_batches(held, start, role)
            yield piece, role
            start, held = start + piece.table.num_rows, []
    if held:
        yield _of_batches(held, start, role), role


def _of_batches(batches: list[pa.RecordBatch], start: int, role: Roles) -> Piece:
    table = pa.Table.from_batches(batches)
    count, mask, lists = table.num_rows, None, None
    if role.cells and role.listed:
        lists = reduced(table[role.picture])
    elif role.cells:
        column = table[role.picture]
        bare = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        found = pc.is_null(bare)
        mask = pa.concat_arrays(found.chunks) if pc.any(found).as_py() else None
    needed = role.needed(table.schema)
    columns = {name: _pruned(table[name], name, needed) for name in table.column_names}
    kept = {name: column.cast(_without_views(column.type)) for name, column in columns.items() if column is not None}
    if lists is not None:
        kept[role.picture] = lists
    return Piece(pa.table(kept or {"": pa.nulls(count)}), labels_of(start, count), mask)


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


def _without_views(kind: pa.DataType) -> pa.DataType:
    """The type with its text as all of Arrow's functions take it: few take views, as which polars writes it."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _without_views(kind.value_type), kind.ordered)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_without_views(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_without_views(kind.value_type)), kind.list_size)
    return kind


Reader = Callable[[Input, Choose], Iterator[tuple[Piece, Roles]]]
JSON = ("jsonl", "ndjson", "json")
TEXT = ("csv", "tsv", *JSON)
READERS: dict[str, Reader] = {
    **dict.fromkeys(("parquet", "pq"), _parquet),
    **dict.fromkeys(("arrow", "feather", "ipc"), _arrow),
    **dict.fromkeys(("csv", "tsv"), read_csv),
    **dict.fromkeys(("jsonl", "ndjson"), read_jsonl),
    "json": read_json,
}
PACKED = {packing.suffixes[0]: packing.name for packing in PACKINGS if packing.name}
_TABLES = [f".{kind}" for kind in READERS if kind != "json"]
SUFFIXES = (*_TABLES, *(f".{kind}{packed}" for kind in TEXT if kind != "json" for packed in PACKED))
"""What a table's name may end with."""
SECOND = (".json", *(f".json{packed}" for packed in PACKED))
"""The same, in a folder that holds no other table: beside those a .json is about them."""
