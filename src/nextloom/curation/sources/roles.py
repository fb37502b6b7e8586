"""Which column of a table is the image, the key and the caption, and which go into the sidecar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from nextloom.content import MARKS
from nextloom.curation.sources.budget import expect_columns
from nextloom.curation.sources.jsontext import is_bytes, is_text
from nextloom.curation.sources.shards import Refusal
from nextloom.curation.sources.suffixes import CAPTION_FIELDS, likely

IMAGE_NAMES = (
    *("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "image_base64"),
    *("url", "image_url", "img_url", "uri", "path", "image_path", "file_path", "file", "file_name", "filename"),
    *("base64", "b64", "image_b64", "images", "image_urls", "image_paths"),
)
"""Names, in any case, of a column of text (or lists of text) that is taken for the image."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a recipe says of the columns; None: sniff."""

    picture: str | None = None
    key: str | None = None
    caption: str | None = None
    rest: tuple[str, ...] | None = None
    change_caption: Callable[[pa.ChunkedArray], pa.ChunkedArray] | None = None
    """Makes the caption of its column, which then stays in the sidecar too."""
    index: int | None = None
    """Of lists of images, which one; None: each."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Which column is what, in one shard."""

    picture: str
    cells: bool
    """Whether the image column holds bytes."""
    key: str | None
    caption: str | None
    rest: tuple[str, ...]
    change_caption: Callable[[pa.ChunkedArray], pa.ChunkedArray] | None = None
    ragged: bool = True
    """Whether a column that other rows do not have goes into the sidecar too, where rows are objects."""
    listed: bool = False
    """Whether the image column holds lists."""
    index: int | None = None
    likely: str = ""
    """Where no column is the caption: one that may be."""

    def needed(self, schema: pa.Schema) -> list[str]:
        """Paths of the columns a listing reads, leaves that hold bytes left out; such as ``image.path``."""
        names = {self.key, self.caption, *self.rest, self.picture} - {None}
        return [path for field in schema if field.name in names for path in leaves(field)]


def leaves(field: pa.Field) -> list[str]:
    """Paths of what a column holds besides bytes."""
    if pa.types.is_struct(field.type):
        return [f"{field.name}.{path}" for inner in field.type for path in leaves(inner)]
    return [] if has_bytes(field.type) else [field.name]


def has_bytes(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds bytes anywhere."""
    if is_bytes(kind):
        return True
    if pa.types.is_dictionary(kind):
        return has_bytes(kind.value_type)
    return any(has_bytes(kind.field(at).type) for at in range(kind.num_fields))


def is_picture(kind: pa.DataType) -> bool:
    """Bytes, or a struct with `bytes` as Hugging Face stores images."""
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and is_bytes(kind.field(at).type)
    return is_bytes(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)


def expect_once(schema: pa.Schema) -> None:
    """A `Refusal` of a table in which one name stands for two columns, or that has too many."""
    expect_columns(len(schema))
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    inside = [f"{f.name}.{name}" for f in schema if pa.types.is_struct(f.type) for name in _twice_inside(f.type)]
    if names := twice + inside:
        many = ", ".join(repr(name) for name in names[:5])
        raise Refusal(f"two columns have one name: {many}", "rename one of the two in the table")


def _twice_inside(kind: pa.DataType) -> list[str]:
    return [name for name, count in Counter(field.name for field in kind).items() if count > 1]


def roles(schema: pa.Schema, wanted: Wanted) -> Roles:
    """Which column is what.

    Raises:
        Refusal: with the columns that were found, and those expected; or a name is used twice.
    """
    expect_once(schema)
    found = f"found columns {', '.join(f'{field.name} ({_short(field.type)})' for field in schema) or 'none'}"[:2000]
    for role, name in (("image", wanted.picture), ("key", wanted.key), ("caption", wanted.caption)):
        if name is not None and name not in schema.names:
            raise Refusal(f"{found}; expected the {role} in {name!r}", f"correct source.{role}")
    if missing := [name for name in wanted.rest or () if name not in schema.names]:
        raise Refusal(f"{found}; expected {', '.join(missing)} too", "correct source.columns")
    picture = wanted.picture or _sniff(schema, found)
    kind = schema.field(picture).type
    listed = is_list(kind)
    kind = kind.value_type if listed else kind
    if picture.startswith(MARKS):
        raise Refusal(f"{found}; a picture column may not begin with {picture[0]}", "rename it")
    if not (is_picture(kind) or _is_text(kind)):
        raise Refusal(f"{found}; expected bytes, paths or URLs in {picture!r}", "correct source.image")
    if wanted.index is not None and not listed:
        raise Refusal(f"{found}; expected lists in {picture!r}", "take source.index out")
    captions = [
        n for want in CAPTION_FIELDS for n in schema.names if n.lower() == want and n not in (picture, wanted.key)
    ]
    captions = [name for name in captions if _is_text(schema.field(name).type)]
    caption = wanted.caption or next(iter(captions), None)
    if caption and not _is_text(schema.field(caption).type):
        raise Refusal(f"{found}; expected text in {caption!r}", "correct source.caption")
    if wanted.key and not (_is_text(own := schema.field(wanted.key).type) or pa.types.is_integer(own)):
        raise Refusal(f"{found}; expected text or whole numbers in {wanted.key!r}", "correct source.key")
    used = {picture, wanted.key, None if wanted.change_caption else caption}
    rest = [n for n in wanted.rest or schema.names if n not in used and leaves(schema.field(n))]
    if is_picture(kind) and not listed and leaves(schema.field(picture)):
        rest.append(picture)  # of {bytes, path} the path
    return Roles(
        picture,
        is_picture(kind),
        wanted.key,
        caption,
        tuple(rest),
        wanted.change_caption,
        wanted.rest is None,
        listed,
        wanted.index,
        "" if caption else likely(n for n in schema.names if n not in used),
    )


def _short(kind: pa.DataType) -> str:
    return f"struct of {', '.join(field.name for field in kind)}" if pa.types.is_struct(kind) else str(kind)


def _sniff(schema: pa.Schema, found: str) -> str:
    def inner(kind: pa.DataType) -> pa.DataType:
        return kind.value_type if is_list(kind) else kind

    cells = [field.name for field in schema if is_picture(inner(field.type))]
    texts = [f.name for f in schema if _is_text(inner(f.type)) and f.name.lower() in IMAGE_NAMES]
    candidates = cells or texts
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise Refusal(f"{found}; {' and '.join(candidates)} may be the picture", "say which: source.image=...")
    raise Refusal(
        f"{found}; expected one of bytes, or of text with such a name as url, path, file_name", "set source.image"
    )
