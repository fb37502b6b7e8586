"""From the columns of a table to rows: which column is the picture, the key, the caption, and what the rest says.

A picture column of bytes is not copied: a row refers to its cell (`jpg#12`). One of text holds URLs, URIs or paths;
relative paths begin at the table's folder. All other columns but those of bytes go into the sidecar, under their own
names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.content import BARRED, BROKEN, MARKS
from nextloom.curation.decisions.rule import connect
from nextloom.curation.sources import jsontext
from nextloom.curation.sources.jsontext import is_bytes, is_text
from nextloom.curation.sources.shards import Refusal, Shard
from nextloom.io import is_uri, join
from nextloom.op import digest
from nextloom.store.dataset import ITEM
from nextloom.untrusted import bare

PICTURE_NAMES = (
    *("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes"),
    *("url", "image_url", "img_url", "uri", "path", "image_path", "file_path", "file", "file_name", "filename"),
)
"""Names, in any case, of a column of text that is taken for the picture."""
CAPTION_NAMES = ("caption", "text")
WITH_PASSWORD = r"^[A-Za-z][A-Za-z0-9+.-]*:[/\\]*[^/?#]*@"
"""An address with a user name or a password; it would stand in the rows, and be sent."""
CHUNK = 1 << 16
"""Rows turned at once."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a recipe says of the columns; None: sniff."""

    picture: str | None = None
    key: str | None = None
    caption: str | None = None
    rest: tuple[str, ...] | None = None
    change_caption: Callable[[pa.ChunkedArray], pa.ChunkedArray] | None = None
    """Makes the caption of its column, which then stays in the sidecar too."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Which column is what, in one shard."""

    picture: str
    cells: bool
    """Whether the picture column holds bytes."""
    key: str | None
    caption: str | None
    rest: tuple[str, ...]
    change_caption: Callable[[pa.ChunkedArray], pa.ChunkedArray] | None = None
    ragged: bool = True
    """Whether a column that other rows do not have goes into the sidecar too, where rows are objects."""

    def needed(self, schema: pa.Schema) -> list[str]:
        """Paths of the columns a listing reads, leaves that hold bytes left out; such as ``image.path``."""
        names = {self.key, self.caption, *self.rest, self.picture} - {None}
        return [path for field in schema if field.name in names for path in _leaves(field)]


def _leaves(field: pa.Field) -> list[str]:
    if pa.types.is_struct(field.type):
        return [f"{field.name}.{path}" for inner in field.type for path in _leaves(inner)]
    return [] if has_bytes(field.type) else [field.name]


def has_bytes(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds bytes anywhere."""
    if is_bytes(kind):
        return True
    return any(has_bytes(kind.field(at).type) for at in range(kind.num_fields))


def is_picture(kind: pa.DataType) -> bool:
    """Bytes, or a struct with `bytes` as Hugging Face stores pictures."""
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and is_bytes(kind.field(at).type)
    return is_bytes(kind)


def _is_text(kind: pa.DataType) -> bool:
    return is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)


def roles(schema: pa.Schema, wanted: Wanted) -> Roles:
    """Which column is what.

    Raises:
        Refusal: with the columns that were found, and those expected.
    """
    found = f"found columns {', '.join(f'{field.name} ({_short(field.type)})' for field in schema) or 'none'}"
    for role, name in (("image", wanted.picture), ("key", wanted.key), ("caption", wanted.caption)):
        if name is not None and name not in schema.names:
            raise Refusal(f"{found}; expected the {role} in {name!r}", f"correct source.{role}")
    if missing := [name for name in wanted.rest or () if name not in schema.names]:
        raise Refusal(f"{found}; expected {', '.join(missing)} too", "correct source.columns")
    picture = wanted.picture or _sniff(schema, found)
    kind = schema.field(picture).type
    if picture.startswith(MARKS):
        raise Refusal(f"{found}; a picture column may not begin with {picture[0]}", "rename it")
    if not (is_picture(kind) or _is_text(kind)):
        raise Refusal(f"{found}; expected bytes, paths or URLs in {picture!r}", "correct source.image")
    captions = [
        n for want in CAPTION_NAMES for n in schema.names if n.lower() == want and n not in (picture, wanted.key)
    ]
    captions = [name for name in captions if _is_text(schema.field(name).type)]
    caption = wanted.caption or next(iter(captions), None)
    if caption and not _is_text(schema.field(caption).type):
        raise Refusal(f"{found}; expected text in {caption!r}", "correct source.caption")
    if wanted.key and not (_is_text(kind := schema.field(wanted.key).type) or pa.types.is_integer(kind)):
        raise Refusal(f"{found}; expected text or whole numbers in {wanted.key!r}", "correct source.key")
    used = {picture, wanted.key, None if wanted.change_caption else caption}
    rest = [n for n in wanted.rest or schema.names if n not in used and _leaves(schema.field(n))]
    if is_picture(schema.field(picture).type) and _leaves(schema.field(picture)):
        rest.append(picture)  # of {bytes, path} the path
    return Roles(
        picture,
        is_picture(schema.field(picture).type),
        wanted.key,
        caption,
        tuple(rest),
        wanted.change_caption,
        wanted.rest is None,
    )


def _short(kind: pa.DataType) -> str:
    return f"struct of {', '.join(field.name for field in kind)}" if pa.types.is_struct(kind) else str(kind)


def _sniff(schema: pa.Schema, found: str) -> str:
    cells = [field.name for field in schema if is_picture(field.type)]
    texts = [f.name for f in schema if _is_text(f.type) and f.name.lower() in PICTURE_NAMES]
    candidates = cells or texts
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise Refusal(f"{found}; {' and '.join(candidates)} may be the picture", "say which: source.image=...")
    raise Refusal(
        f"{found}; expected one of bytes, or of text with such a name as url, path, file_name", "set source.image"
    )


def rows(
    table: pa.Table,
    numbers: np.ndarray,
    shard: Shard,
    role: Roles,
    base: str | None = None,
    *,
    empty: pa.ChunkedArray | None = None,
    spelled: bool = False,
    sidecar: pa.ChunkedArray | None = None,
) -> pa.Table:
    """Rows of a piece of a table, schema `ITEM`.

    Args:
        table: the columns of `role.needed`.
        numbers: each row's number in the shard.
        empty: where the picture's bytes are null, if there are any.
        base: folder in which relative paths begin; default: the shard's.
        spelled: see `jsontext.objects`.
        sidecar: JSON of each row, where it is not to be made from columns.
    """
    count = table.num_rows
    null = pa.chunked_array([pa.nulls(count, pa.string())])
    text = pa.chunked_array([pa.array(numbers.astype(str), pa.string())]) if count else null
    own = pc.binary_join_element_wise(f"{shard.name}#", text, "")
    key = table[role.key].cast(pa.string()) if role.key else own
    caption = table[role.caption].cast(pa.string()) if role.caption else null
    if role.change_caption:
        caption = role.change_caption(caption)
    trimmed = pc.utf8_trim_whitespace(caption)
    caption = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    if sidecar is None:
        sidecar = jsontext.objects(table.select(list(role.rest)), spelled=spelled)
    sidecar = null if sidecar is None else sidecar
    if role.cells:
        member = pc.binary_join_element_wise(f"{role.picture}#", text, "")
        uri = pa.chunked_array([pa.repeat(pa.scalar(shard.uri), count)])
        if empty is not None:
            path = _path(table, role)
            here = (
                pc.or_(pc.invert(empty), pc.is_null(path))
                if path is not None
                else pa.chunked_array([pa.repeat(True, count)])
            )
            member = pc.if_else(empty, f"{BROKEN}column {role.picture!r} is null", member)
            if path is not None:
                member = pc.if_else(here, member, pa.scalar(None, pa.string()))
                uri = pc.if_else(here, uri, absolute(path, base or _folder(shard.uri)))
        mark = digest([role.picture, role.key, role.caption, role.rest], 8)
        version = pa.chunked_array([pa.repeat(pa.scalar(f"{shard.stamp}+{mark}"), count)])
    else:
        value = table[role.picture].cast(pa.string())
        uri = absolute(value, base or _folder(shard.uri))
        blank = pc.fill_null(pc.equal(value, ""), True)
        member = pc.if_else(blank, f"{BROKEN}column {role.picture!r} is empty", pa.scalar(None, pa.string()))
        uri = pc.if_else(blank, shard.uri, uri)
        version = _hashes(value, caption, sidecar)
    secret = pc.fill_null(pc.match_substring_regex(uri, WITH_PASSWORD), False)  # also of a path beside null bytes
    if pc.any(secret).as_py():
        member = pc.if_else(secret, f"{BARRED}its address holds a user name or a password", member)
        uri = pc.if_else(secret, bare(shard.uri), uri)
    unnamed = pc.is_null(key)
    if pc.any(unnamed).as_py():
        member = pc.if_else(unnamed, f"{BROKEN}column {role.key!r}, the key, is null", member)
        key = pc.if_else(unnamed, own, key)
    columns = {"key": key, "uri": uri, "member": member, "version": version, "caption": caption, "sidecar": sidecar}
    columns |= {"unit": null, "offset": pa.nulls(count, pa.int64()), "size": pa.array(np.zeros(count, np.int64))}
    return pa.table({name: columns[name] for name in ITEM.names}).cast(ITEM)


def _path(table: pa.Table, role: Roles) -> pa.ChunkedArray | None:
    """The `path` beside null bytes in a struct."""
    if role.picture not in table.column_names or not pa.types.is_struct(kind := table[role.picture].type):
        return None
    if kind.get_field_index("path") < 0:
        return None
    return pc.struct_field(table[role.picture], "path").cast(pa.string())


def _folder(uri: str) -> str:
    address, mark, query = uri.partition("?") if is_uri(uri) else (uri, "", "")
    return address.rpartition("/")[0] + mark + query


def absolute(values: pa.ChunkedArray, base: str) -> pa.ChunkedArray:
    """URLs, URIs and absolute paths as they are (the scheme in lower case), others below `base`."""
    schemed = pc.match_substring_regex(values, "^[A-Za-z][A-Za-z0-9+.-]*://")
    rooted = pc.or_(schemed, pc.starts_with(values, "/"))
    if pc.any(pc.match_substring_regex(values, "^[a-z0-9+.-]*[A-Z][A-Za-z0-9+.-]*://")).as_py():
        parts = [value.partition("://") if value else None for value in values.to_pylist()]
        lower = [f"{p[0].lower()}://{p[2]}" if p and p[1] else p and p[0] for p in parts]
        values = pc.if_else(schemed, pa.chunked_array([pa.array(lower, pa.string())]), values)
    if pc.all(rooted).as_py():
        return values
    if is_uri(base):
        address, mark, query = base.partition("?")
        below = [value and join(address, quote(value)) + mark + query for value in values.to_pylist()]
        return pc.if_else(rooted, values, pa.chunked_array([pa.array(below, pa.string())]))
    return pc.if_else(rooted, values, pc.binary_join_element_wise(base.rstrip("/"), values, "/"))


def _hashes(*columns: pa.ChunkedArray) -> pa.ChunkedArray:
    """A hash per row over text columns, so that a row keeps its id when others are added to its table."""
    names = [f"c{at}" for at in range(len(columns))]
    database = connect()
    database.register("piece", pa.table(dict(zip(names, columns, strict=True))))
    parts = ", ".join(f"coalesce({name}, '')" for name in names)
    found = database.sql(f"select substr(md5(concat_ws(chr(31), {parts})), 1, 16) as hash from piece")
    return pa.chunked_array([found.to_arrow_table()["hash"].combine_chunks()])


def failed(shard: Shard, problems: Sequence[tuple[int, str]]) -> pa.Table:
    """A failed row for each (number, reason) of a shard's rows that cannot be read."""
    columns = {
        "key": [f"{shard.name}#{number}" for number, _ in problems],
        "uri": [shard.uri] * len(problems),
        "size": [0] * len(problems),
        "member": [f"{BROKEN}{reason}"[:500] for _, reason in problems],
        "version": [digest(reason) for _, reason in problems],
    }
    return pa.table({name: columns.get(name, [None] * len(problems)) for name in ITEM.names}, schema=ITEM)
