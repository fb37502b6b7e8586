"""Some rows of a table on their way to rows of a listing: cut to a size that memory holds, checked, lists opened up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.curation.sources.roles import Roles, is_list

STEP = 16 << 20
"""Bytes of values turned into rows at once."""


@dataclass(slots=True)
class Problem:
    """A row that cannot be read."""

    label: str
    """Its number, as in `Piece.labels`."""
    message: str
    detail: str = ""


@dataclass(slots=True)
class Piece:
    """Some rows of a table."""

    table: pa.Table
    """The columns of `Roles.needed`."""
    labels: pa.Array
    """The number of each row in its file, from 0, rows that cannot be read counted too."""
    empty: pa.Array | None = None
    """Where the bytes of the image are null; None: nowhere."""
    problems: list[Problem] = field(default_factory=list)
    spelled: bool = False
    """Whether numbers are spelled out in text."""
    sidecar: pa.Array | None = None
    """The sidecars, where they are not the columns of `table`."""
    parts: pa.Array | None = None
    """Which image of a list it is: ``/0``; null where there is no list."""
    broken: pa.Array | None = None
    """Why a row has no image, message and detail parted by a tab; null where it has."""
    offset: pa.Array | None = None
    """Where in the file the image lies as text; null elsewhere."""
    size: pa.Array | None = None

    def take(self, rows: pa.Array) -> Piece:
        """These rows, by index; problems stay."""
        columns = ("labels", "empty", "sidecar", "parts", "broken", "offset", "size")
        return replace(
            self,
            table=self.table.take(rows),
            **{name: None if getattr(self, name) is None else getattr(self, name).take(rows) for name in columns},
        )

    def with_places(self, picture: str, places: dict[int, tuple[int, int] | None]) -> Piece:
        """The piece with rows whose image is text at an (offset, size) of the file; the text itself is let go of."""
        count = self.table.num_rows
        offset, size, told = [None] * count, [None] * count, [None] * count
        for row, place in places.items():
            if place is None:
                told[row] = f"an image in base64 that is spelled with escapes\tcolumn {picture!r}"  # type: ignore[call-overload]
            else:
                offset[row], size[row] = place  # type: ignore[call-overload]
        rows = np.zeros(count, bool)
        rows[list(places)] = True
        values = self.table[picture].combine_chunks()
        at = self.table.column_names.index(picture)
        table = self.table.set_column(at, picture, pc.if_else(pa.array(rows), pa.scalar(None, pa.string()), values))
        broken = pa.array(told, pa.string())
        broken = broken if self.broken is None else pc.coalesce(self.broken, broken)
        more = {"offset": pa.array(offset, pa.int64()), "size": pa.array(size, pa.int64())}
        return replace(self, table=table, broken=broken, **more)

    def cut(self, weight: int) -> Iterator[Piece]:
        """Pieces of about `STEP` bytes of values each, of the `weight` of this one."""
        count = self.table.num_rows
        step = count if weight <= STEP else max(1, count * STEP // weight)
        if step >= count:
            yield self
            return
        for start in range(0, count, step):
            part = self.take(pa.array(np.arange(start, min(count, start + step))))
            part.problems = self.problems if start == 0 else []
            yield part

    def weight(self) -> int:
        """Bytes of its values as they will be written out."""
        return sum(map(weight_of, self.table.columns)) + (self.sidecar.nbytes if self.sidecar is not None else 0)


def labels_of(start: int, count: int) -> pa.Array:
    """Numbers as labels."""
    return pa.array(np.arange(start, start + count)).cast(pa.string())


def weight_of(column: Any) -> int:
    """Bytes of an array written out, a value of a dictionary as often as it is used."""
    if isinstance(column, pa.ChunkedArray):
        return sum(map(weight_of, column.chunks))
    kind = column.type
    if pa.types.is_dictionary(kind):
        lengths = _lengths(column.dictionary)
        return pc.sum(lengths.take(column.indices)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(weight_of(column.field(at)) for at in range(kind.num_fields))
    if is_list(kind) and _has_dictionary(kind):
        return weight_of(column.flatten())
    return column.nbytes


def _lengths(values: pa.Array) -> pa.Array:
    try:
        return pc.binary_length(values).cast(pa.int64())
    except pa.ArrowNotImplementedError:
        return pa.array(np.full(len(values), max(1, values.nbytes // max(1, len(values)))))


def _has_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or any(_has_dictionary(kind.field(at).type) for at in range(kind.num_fields))


def checked(piece: Piece) -> Piece:
    """The piece with a reason for each row that holds text which is no UTF-8; such values become null."""
    columns, broken = {}, piece.broken
    for name, column in zip(piece.table.column_names, piece.table.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            plain = _plain(column)
            bad = np.zeros(len(plain), bool)
            bad[list(_bad(plain, 0, len(plain)))] = True
            mask = pa.array(bad)
            column = pa.chunked_array([plain.take(pa.array(np.arange(len(plain)), mask=bad))])
            told = pc.if_else(mask, f"a text is not UTF-8\tcolumn {name!r}", pa.scalar(None, pa.string()))
            broken = told if broken is None else pc.coalesce(broken, told)
        columns[name] = column
    return piece if broken is piece.broken else replace(piece, table=pa.table(columns), broken=broken)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    whole = column.combine_chunks()
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole


def _bad(values: pa.Array, start: int, stop: int) -> Iterator[int]:
    """Rows that do not validate, by halves."""
    try:
        pa.concat_arrays([values.slice(start, stop - start)]).take(pa.array(np.arange(stop - start))).validate(
            full=True
        )
    except pa.ArrowInvalid:
        if stop - start == 1:
            yield start
        else:
            middle = (start + stop) // 2
            yield from _bad(values, start, middle)
            yield from _bad(values, middle, stop)


def reduced(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of images as lists of {null, path}: whether the bytes are null, and the path beside them."""
    out = []
    for lists in column.chunks:
        flat = lists.flatten()
        path = pa.nulls(len(flat), pa.string())
        bare = flat
        if pa.types.is_struct(flat.type):
            if flat.type.get_field_index("path") >= 0:
                path = pc.struct_field(flat, "path").cast(pa.string())
            bare = pc.struct_field(flat, "bytes") if flat.type.get_field_index("bytes") >= 0 else None
        null = pc.is_null(bare) if bare is not None else pa.repeat(False, len(flat))
        inner = pa.StructArray.from_arrays([null, path], names=["null", "path"])
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        out.append(pa.ListArray.from_arrays(offsets, inner, mask=pc.is_null(lists)))
    kind = pa.list_(pa.struct([("null", pa.bool_()), ("path", pa.string())]))
    return pa.chunked_array(out, kind)


def images_of(piece: Piece, role: Roles) -> int:
    """Rows that `opened` makes of the piece."""
    if role.index is not None:
        return piece.table.num_rows
    lengths = pc.fill_null(pc.list_value_length(piece.table[role.picture]), 0)
    return pc.sum(pc.max_element_wise(lengths, pa.scalar(1, lengths.type))).as_py() or 0


def opened(piece: Piece, role: Roles) -> Piece:
    """A row per image of the lists in the image column, or the one that `role.index` names."""
    lists = _plain(piece.table[role.picture])
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else np.empty(0, np.int64)
    if role.index is None:
        parents = np.repeat(np.arange(len(lengths)), np.maximum(lengths, 1))
        first = np.concatenate([[0], np.cumsum(np.maximum(lengths, 1))[:-1]]) if len(lengths) else starts
        places = np.arange(len(parents)) - first[parents]
    else:
        parents, places = np.arange(len(lengths)), np.full(len(lengths), role.index)
    there = places < lengths[parents]
    flat = lists.flatten()
    values = flat.take(pa.array(np.where(there, starts[parents] + places, 0), mask=~there))
    at = piece.table.column_names.index(role.picture)
    bare = replace(piece, table=piece.table.set_column(at, role.picture, pa.nulls(len(lists))))
    out = bare.take(pa.array(parents))
    out.table = out.table.set_column(at, role.picture, values)
    null = pc.is_null(lists).to_numpy(zero_copy_only=False)[parents]
    none = f"no image in the list\tcolumn {role.picture!r}"
    if role.index is not None:
        none += f", index {role.index}"
    told = pa.array(np.where(null, f"the list of images is null\tcolumn {role.picture!r}", none), mask=there)
    out.broken = told if out.broken is None else pc.coalesce(out.broken, told)
    part = pa.array(np.char.add("/", places.astype(str)).tolist(), pa.string())
    out.parts = pc.if_else(pa.array(there), part, pa.scalar(None, pa.string()))
    if role.cells:
        out.empty = pc.fill_null(pc.struct_field(values, "null"), False)
    return out
