"""From the columns of a table to rows, once it is said which is the image, the key and the caption (`roles`).

An image column of bytes is not copied: a row refers to its cell (`jpg#12`, of a list `images#12/0`). One of text holds
URLs, URIs or paths, and relative paths begin at the table's folder; or images in base64 and `data:` URIs, and then a
row refers to the cell, or to the place in a text file, as well. All other columns but those of bytes go into the
sidecar, under their own names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.content import BARRED, BROKEN, TEXT
from nextloom.curation.sources import jsontext
from nextloom.curation.sources.finding import Shard
from nextloom.curation.sources.jsontext import SHORT, is_text
from nextloom.curation.sources.piece import Piece, Problem
from nextloom.curation.sources.roles import Roles
from nextloom.encoded import is_encoded
from nextloom.io import is_uri, join
from nextloom.op import digest
from nextloom.store.dataset import ITEM
from nextloom.untrusted import bare

WITH_PASSWORD = r"^[A-Za-z][A-Za-z0-9+.-]*:[/\\]*[^/?#]*@"
"""An address with a user name or a password; it would stand in the rows, and be sent."""
MAX_ADDRESS = 8192
"""Most characters of a path or URL; a longer text is none."""


Texts = tuple[pa.Array, pa.Array]
"""Caption and sidecar."""


def rows(piece: Piece, shard: Shard, role: Roles, base: str | None = None) -> pa.Table:
    """Rows of a piece of a table, schema `ITEM`.

    Args:
        piece: some of its rows.
        shard: where it lies.
        role: which column is what.
        base: folder in which relative paths begin; default: the shard's.
    """
    table, count = piece.table, piece.table.num_rows
    null = pa.nulls(count, pa.string())
    label = piece.labels
    if piece.parts is not None:
        label = pc.binary_join_element_wise(label, pc.fill_null(piece.parts, ""), "")
    key = _texts(table[role.key]) if role.key else null
    told = piece.broken
    if role.key and key.null_count:
        told = _first(told, pc.is_null(key), f"the key is null\tcolumn {role.key!r}")
    if piece.parts is not None and role.index is None:
        key = pc.binary_join_element_wise(key, pc.fill_null(piece.parts, ""), "")
    if key.null_count:
        own = pc.binary_join_element_wise(f"{shard.name}#", label if role.index is None else piece.labels, "")
        key = pc.coalesce(key, own)
    caption = _captions(table, role)
    sidecar = piece.sidecar
    if sidecar is None:
        made = jsontext.objects(_without_images(table.select(list(role.rest))), spelled=piece.spelled)
        sidecar = null if made is None else _array(made)
    place = _cells if role.cells else _addresses
    columns, told = place(piece, shard, role, base or _folder(shard.uri), label, told, (caption, sidecar))
    if pc.any(pc.match_substring(columns["uri"], "@")).as_py():
        secret = pc.fill_null(pc.match_substring_regex(columns["uri"], WITH_PASSWORD), False)
        barred = f"{BARRED}its address holds a user name or a password"
        columns["member"] = pc.if_else(secret, barred, columns["member"])
        columns["uri"] = pc.if_else(secret, bare(shard.uri), columns["uri"])
    if told is not None and told.null_count < count:
        bad = pc.is_valid(told)
        columns["member"] = pc.if_else(bad, pc.binary_join_element_wise(BROKEN, told, ""), columns["member"])
        columns["offset"] = pc.if_else(bad, pa.scalar(None, pa.int64()), columns["offset"])
    columns |= {"key": key, "caption": caption, "sidecar": sidecar, "unit": null}
    return pa.Table.from_arrays([columns[name] for name in ITEM.names], schema=ITEM)


def _cells(
    piece: Piece,
    shard: Shard,
    role: Roles,
    base: str,
    label: pa.Array,
    told: pa.Array | None,
    texts: tuple[pa.Array, pa.Array],
) -> tuple[dict[str, pa.Array], pa.Array | None]:
    """Place and version of images that are bytes; and why there is none."""
    count = len(label)
    member = pc.binary_join_element_wise(f"{role.picture}#", label, "")
    uri = pa.repeat(pa.scalar(shard.uri), count)
    if piece.empty is not None:
        empty, path = piece.empty, _path(piece.table, role)
        if path is not None:
            elsewhere = pc.and_(empty, pc.is_valid(path))
            member = pc.if_else(elsewhere, pa.scalar(None, pa.string()), member)
            uri = pc.if_else(elsewhere, absolute(path, base), uri)
            empty = pc.and_not(empty, elsewhere)
        told = _first(told, empty, f"bytes are null\tcolumn {role.picture!r}")
    return _placed(uri, member, _stamped(shard, role, count)), told


def _addresses(
    piece: Piece,
    shard: Shard,
    role: Roles,
    base: str,
    label: pa.Array,
    told: pa.Array | None,
    texts: tuple[pa.Array, pa.Array],
) -> tuple[dict[str, pa.Array], pa.Array | None]:
    """Place and version of images that are text: a path, a URL, or the image itself; and why there is none."""
    value, none = _texts(piece.table[role.picture]), pa.scalar(None, pa.string())
    coded = encoded_at(value) if piece.offset is None else pc.is_valid(piece.offset)
    length = pc.binary_length(value)
    sizes = pc.min_max(length).as_py()
    fit = not value.null_count and sizes["min"] and sizes["max"] <= MAX_ADDRESS
    if fit and not pc.any(coded).as_py():  # as nearly everywhere
        return _placed(absolute(value, base), pa.nulls(len(value), pa.string()), _hashes(value, *texts)), told
    here = pa.repeat(pa.scalar(shard.uri), len(value))
    plain = pc.if_else(coded, none, value)
    blank = pc.and_not(pc.fill_null(pc.equal(length, 0), True), coded)
    long = pc.fill_null(pc.and_not(pc.greater(length, MAX_ADDRESS), coded), False)
    told = _first(told, blank, f"no image in this row\tcolumn {role.picture!r} is empty")
    told = _first(told, long, f"a text too long for a path or URL\tcolumn {role.picture!r}")
    plain = pc.if_else(pc.or_(blank, long), none, plain)
    version = pc.if_else(coded, _stamped(shard, role, len(value)), _hashes(plain, *texts))
    cell: Any = TEXT if piece.offset is not None else pc.binary_join_element_wise(f"{role.picture}#", label, "")
    out = _placed(pc.coalesce(absolute(plain, base), here), pc.if_else(coded, cell, none), version)
    if piece.offset is not None:
        out |= {"offset": piece.offset, "size": pc.fill_null(piece.size, 0)}
    return out, told


def _placed(uri: pa.Array, member: pa.Array, version: pa.Array) -> dict[str, pa.Array]:
    nothing = {"offset": pa.nulls(len(uri), pa.int64()), "size": pa.array(np.zeros(len(uri), np.int64))}
    return {"uri": uri, "member": member, "version": version, **nothing}


def _stamped(shard: Shard, role: Roles, count: int) -> pa.Array:
    """Versions of rows that hold for this very file and these columns."""
    mark = digest([role.picture, role.key, role.caption, role.rest], 8)
    return pa.repeat(pa.scalar(f"{shard.stamp}+{mark}"), count)


def _first(told: pa.Array | None, where: pa.Array, text: str) -> pa.Array | None:
    """`told`, with `text` where that says nothing yet."""
    if not pc.any(where).as_py():
        return told
    more = pc.if_else(where, text, pa.scalar(None, pa.string()))
    return more if told is None else pc.coalesce(told, more)


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """A column as text, in one array."""
    return _array(column if column.type == pa.string() else column.cast(pa.string()))


def _array(column: Any) -> pa.Array:
    """One array of a column."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _captions(table: pa.Table, role: Roles) -> pa.Array:
    if not role.caption:
        return pa.nulls(table.num_rows, pa.string())
    text: Any = _texts(table[role.caption])
    if role.change_caption:
        text = _array(role.change_caption(pa.chunked_array([text])))
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def encoded_at(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Where a text is an image (`encoded.is_encoded`)."""
    values = _array(column)
    dotted = pc.match_substring(values, ".")  # base64 has none, and nearly every path or URL does
    uris = pc.starts_with(values, "data:", ignore_case=True)
    if pc.all(dotted).as_py() and not pc.any(uris).as_py():
        return pa.repeat(False, len(values))
    maybe = pc.fill_null(pc.or_(uris, pc.invert(dotted)), False)
    rows = np.flatnonzero(maybe.to_numpy(zero_copy_only=False))
    found = np.zeros(len(values), bool)
    heads = pc.utf8_slice_codeunits(values.take(pa.array(rows)), 0, 256).to_pylist()
    found[rows] = [is_encoded(head) for head in heads]
    return pa.array(found)


def _without_images(table: pa.Table) -> pa.Table:
    """The columns with images that are written as text left out, as bytes are."""
    for at, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if not is_text(kind) or (pc.max(pc.binary_length(table[at].cast(kind))).as_py() or 0) <= SHORT:
            continue
        values = _array(table[at].cast(pa.string()))
        coded = encoded_at(values)
        if pc.any(coded).as_py():
            table = table.set_column(at, field.name, pc.if_else(coded, pa.scalar(None, pa.string()), values))
    return table


def _path(table: pa.Table, role: Roles) -> pa.Array | None:
    """The `path` beside null bytes in a struct."""
    if role.picture not in table.column_names or not pa.types.is_struct(kind := table[role.picture].type):
        return None
    if kind.get_field_index("path") < 0:
        return None
    return _array(pc.struct_field(table[role.picture], "path").cast(pa.string()))


def _folder(uri: str) -> str:
    address, mark, query = uri.partition("?") if is_uri(uri) else (uri, "", "")
    return address.rpartition("/")[0] + mark + query


def absolute(values: pa.Array, base: str) -> pa.Array:
    """URLs, URIs and absolute paths as they are (the scheme in lower case), others below `base`."""
    if pc.all(pc.or_(pc.starts_with(values, "https://"), pc.starts_with(values, "http://"))).as_py():
        return values
    schemed = pc.match_substring_regex(values, "^[A-Za-z][A-Za-z0-9+.-]*://")
    rooted = pc.or_(schemed, pc.starts_with(values, "/"))
    if pc.any(pc.match_substring_regex(values, "^[a-z0-9+.-]*[A-Z][A-Za-z0-9+.-]*://")).as_py():
        parts = [value.partition("://") if value else None for value in values.to_pylist()]
        lower = [f"{p[0].lower()}://{p[2]}" if p and p[1] else p and p[0] for p in parts]
        values = pc.if_else(schemed, pa.array(lower, pa.string()), values)
    if pc.all(rooted).as_py():
        return values
    if is_uri(base):
        address, mark, query = base.partition("?")
        below = [value and join(address, quote(value)) + mark + query for value in values.to_pylist()]
        return pc.if_else(rooted, values, pa.array(below, pa.string()))
    return pc.if_else(rooted, values, pc.binary_join_element_wise(base.rstrip("/"), values, "/"))


def _hashes(*columns: pa.Array) -> pa.Array:
    """A hash per row over text columns, so that a row keeps its id when others are added to its table."""
    texts = ("\x1f".join([part or "" for part in row]) for row in zip(*(c.to_pylist() for c in columns), strict=True))
    return pa.array([hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:16] for text in texts], pa.string())


def failed(shard: Shard, problems: Sequence[Problem]) -> pa.Table:
    """A failed row for each of a shard's rows that cannot be read."""
    reasons = [f"{p.message}\t{p.detail}"[:500] if p.detail else p.message for p in problems]
    columns = {
        "key": [f"{shard.name}#{problem.label}" for problem in problems],
        "uri": [shard.uri] * len(problems),
        "size": [0] * len(problems),
        "member": [BROKEN + reason for reason in reasons],
        "version": [digest(reason) for reason in reasons],
    }
    return pa.table({name: columns.get(name, [None] * len(problems)) for name in ITEM.names}, schema=ITEM)
