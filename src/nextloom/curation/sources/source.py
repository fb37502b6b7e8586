"""The source contract: where rows come from.

A source lists objects; it decodes nothing and keeps nothing. Identity of rows (ids, tombstones) belongs to the
store, which compares two listings unit by unit, and inside a unit by `key` and `version`: a new version under a
known key is a new row.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from nextloom.config import Model, RootPath
from nextloom.errors import UserError
from nextloom.io import is_uri
from nextloom.store.dataset import ITEM
from nextloom.store.notices import Notices
from nextloom.untrusted import MAX_BYTES, Door, bare


@dataclass(frozen=True, slots=True)
class Item:
    """One object of a source: a reference to bytes, and what the source says about them."""

    key: str
    """The source's own name for the object, such as a posix path relative to the folder, suffix included."""
    uri: str
    """Absolute path, or a URI that `pyarrow.fs.FileSystem.from_uri` takes."""
    size: int
    """Bytes; 0 where unknown."""
    version: str
    """Changes when the object or one of its sidecars changes."""
    caption: str | None = None
    sidecar: str | None = None
    """JSON text: the sidecar as it is, or an object with `error` where one could not be read."""
    offset: int | None = None
    """Where the object begins inside `uri`, for the member of a tar."""
    member: str | None = None
    """What it is inside `uri`, otherwise; see `nextloom.content`."""


class Source(Model):
    """Base of all sources; a frozen config, as ops are.

    One that lists a folder implements `items` alone. One over shards also implements `units`, so that a shard that
    did not change is not opened again.
    """

    name: ClassVar[str]
    code_version: ClassVar[int] = 1
    """Bumped when equal shards would be listed otherwise."""

    roots: tuple[RootPath, ...] = ()
    """More folders, or prefixes of a bucket, that its rows and links may lead to. Default: where `path` lies."""
    max_bytes: int = Field(MAX_BYTES, gt=0)
    """Most bytes of one row; a larger one is an error row."""

    @model_validator(mode="after")
    def _no_passwords(self) -> Source:
        for place in (*self.roots, *self.places()):
            if is_uri(place) and "@" in place.partition("://")[2].partition("/")[0]:
                raise UserError(
                    f"a key or password in an address would be stored with every row: {bare(place)}",
                    where="source",
                    next="leave it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                )
        return self

    def places(self) -> tuple[str, ...]:
        """Folders and prefixes in which its own files lie; with `roots`, all that may be read for its rows."""
        path = getattr(self, "path", ())
        return (path,) if isinstance(path, str) else tuple(path)

    def door(self) -> Door:
        """What opens its files and the bytes of its rows."""
        roots = (*self.places(), *self.roots)
        return Door([root if is_uri(root) else os.path.abspath(root) for root in roots], self.max_bytes)

    def identity(self) -> dict[str, Any]:
        """What a listing depends on besides the shards: while it is equal, an equal unit is not listed again."""
        return {"op": self.name, "code_version": self.code_version, **self.model_dump(mode="json")}

    def units(self) -> dict[str, str]:
        """Name -> version of each unit, in the order in which new rows get their ids.

        A version is what a stat or an etag tells. "" means that only listing the unit can tell what changed.
        """
        return {"": ""}

    def passed_over(self) -> Notices:
        """What the last `units()` passed over, such as files of another kind in a folder of shards."""
        return {}

    def when_twice(self) -> str:
        """What to do where two units list the same key, which the store refuses."""
        return "keys name rows for good: choose keys that are unique"

    def items(self, unit: str, known: Mapping[str, str]) -> pa.Table:
        """Objects of a unit, schema `store.dataset.ITEM`, keys unique, in a stable order.

        What is no row is counted, and counts travel with the table (`store.notices.with_notices`).

        Args:
            unit: one of `units()`.
            known: key -> version of objects whose sidecars are not wanted again; where the version is still the
                same, `caption` and `sidecar` may be null.
        """
        raise NotImplementedError


def item_table(items: Iterable[Item]) -> pa.Table:
    """Items as a table of schema `ITEM`, without units."""
    items = list(items)
    columns = {name: [getattr(item, name, None) for item in items] for name in ITEM.names}
    return pa.table(columns, schema=ITEM)
