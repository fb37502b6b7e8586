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
from nextloom.curation.sources.jsontext import SHORT, is_text
from nextloom.curation.sources.piece import Piece, Problem
from nextloom.curation.sources.roles import Roles
from nextloom.curation.sources.shards import Shard
from nextloom.encoded import is_encoded
from nextloom.io import is_uri, join
from nextloom.op import digest
from nextloom.store.dataset import ITEM
from nextloom.untrusted import bare

WITH_PASSWORD = r"^[A-Za-z][A-Za-z0-9+.-]*:[/\\]*[^/?#]*@"
"""An address with a user name or a password; it would stand in the rows, and be sent."""
MAX_ADDRESS = 8192
"""Most characters of a path or URL; a longer text is none."""


def rows(piece: Piece, shard: Shard, role: Roles, base: str | None = None) -> pa.Table:
    """Rows of a piece of a table, schema `ITEM`.

    Args:
        piece: some of its rows.
        shard: where it lies.
        role: which column is what.
        base: folder in which relative paths begin; default: the shard's.
    """
    table, count = piece.table, piece.table.num_rows
    none = pa.scalar(None, pa.string())
    null = pa.nulls(count, pa.string())
    label = piece.labels
    if piece.parts is not None:
        label = pc.binary_join_element_wise(label, pc.fill_null(piece.parts, ""), "")
    own = pc.binary_join_element_wise(f"{shard.name}#", label if role.index is None else piece.labels, "")
    key = _array(table[role.key].cast(pa.string())) if role.key else null
    unnamed = pc.is_null(key)
    if piece.parts is not None and role.index is None:
        key = pc.binary_join_element_wise(key, pc.fill_null(piece.parts, ""), "")
    caption = _captions(table, role)
    sidecar = piece.sidecar
    if sidecar is None:
        made = jsontext.objects(_without_images(table.select(list(role.rest))), spelled=piece.spelled)
        sidecar = null if made is None else _array(made)
    cell = pc.binary_join_element_wise(f"{role.picture}#", label, "")
    mark = digest([role.picture, role.key, role.caption, role.rest], 8)
    stamped = pa.repeat(pa.scalar(f"{shard.stamp}+{mark}"), count)
    here = pa.repeat(pa.scalar(shard.uri), count)
    offset, size = pa.nulls(count, pa.int64()), pa.array(np.zeros(count, np.int64))
    broken = null if piece.broken is None else piece.broken
    if role.cells:
        member, uri, version = cell, here, stamped
        if piece.empty is not None:
            path = _path(table, role)
            told = pc.if_else(piece.empty, f"bytes are null\tcolumn {role.picture!r}", none)
            if path is not None:
                elsewhere = pc.and_(piece.empty, pc.is_valid(path))
                member = pc.if_else(elsewhere, none, member)
                uri = pc.if_else(elsewhere, absolute(path, base or _folder(shard.uri)), uri)
                told = pc.if_else(elsewhere, none, told)
            broken = pc.coalesce(broken, told)
    else:
        value = _array(table[role.picture].cast(pa.string()))
        coded = encoded_at(value) if piece.offset is None else pc.is_valid(piece.offset)
        plain = pc.if_else(coded, none, value)
        blank = pc.and_(pc.invert(coded), pc.fill_null(pc.equal(value, ""), True))
        long = pc.fill_null(pc.greater(pc.binary_length(plain), MAX_ADDRESS), False)
        told = pc.if_else(blank, f"no image in this row\tcolumn {role.picture!r} is empty", none)
        told = pc.if_else(long, f"a text too long for a path or URL\tcolumn {role.picture!r}", told)
        broken = pc.coalesce(broken, told)
        plain = pc.if_else(long, none, plain)
        uri = pc.coalesce(absolute(pc.if_else(blank, none, plain), base or _folder(shard.uri)), here)
        if piece.offset is not None:
            offset, size = piece.offset, pc.fill_null(piece.size, 0)
            member = pc.if_else(coded, TEXT, none)
        else:
            member = pc.if_else(coded, cell, none)
        version = pc.if_else(coded, stamped, _hashes(plain, caption, sidecar))
    if pc.any(pc.match_substring(uri, "@")).as_py():
        secret = pc.fill_null(pc.match_substring_regex(uri, WITH_PASSWORD), False)
        member = pc.if_else(secret, f"{BARRED}its address holds a user name or a password", member)
        uri = pc.if_else(secret, bare(shard.uri), uri)
    if role.key and pc.any(unnamed).as_py():
        told = pc.if_else(unnamed, f"the key is null\tcolumn {role.key!r}", none)
        broken = pc.coalesce(broken, told)
    if broken.null_count < count:
        bad = pc.is_valid(broken)
        member = pc.if_else(bad, pc.binary_join_element_wise(BROKEN, broken, ""), member)
        offset = pc.if_else(bad, pa.scalar(None, pa.int64()), offset)
    key = pc.coalesce(key, own)
    columns = {"key": key, "uri": uri, "member": member, "version": version, "caption": caption, "sidecar": sidecar}
    columns |= {"unit": null, "offset": offset, "size": size}
    return pa.table({name: columns[name] for name in ITEM.names}).cast(ITEM)


def _array(column: Any) -> pa.Array:
    """One array of a column."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return whole if not isinstance(whole, pa.ChunkedArray) else pa.concat_arrays(whole.chunks)


def _captions(table: pa.Table, role: Roles) -> pa.Array:
    if not role.caption:
        return pa.nulls(table.num_rows, pa.string())
    text: Any = table[role.caption].cast(pa.string())
    text = pc.utf8_trim_whitespace(_array(role.change_caption(text) if role.change_caption else text))
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
