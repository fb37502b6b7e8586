"""Named datasets: `table` with the columns of each as it is published.

    source: {op: laion, path: "laion2B-en/*.parquet"}
    source: {op: common_catalog, path: "0/least_dim_range=512-768/*.parquet"}

Each names its picture, key and caption, and refuses a table that lacks a column it counts on. What else a table
brings (`aesthetic`, `pwatermark`, `similarity`, ...) stays in the sidecar under its own name. Rows of URLs have no
bytes: a `download` step fetches them. Layouts by the dataset cards and by img2dataset's recipes for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar
from urllib.parse import unquote_plus

import pyarrow as pa

from nextloom.curation.sources.jsontext import is_text
from nextloom.curation.sources.roles import Roles, Wanted, is_picture
from nextloom.curation.sources.shards import Refusal
from nextloom.curation.sources.table import Table

OTHER_LAYOUT = "for a table of another layout: {op: table, image: ..., key: ..., caption: ...}"


class NamedTable(Table):
    """Base of tables whose columns are known."""

    expects: ClassVar[Mapping[str, str]]
    """Column -> text, number or bytes, of those that the dataset always has."""

    def choose(self, schema: pa.Schema) -> Roles:
        """As in `Table`, once the columns are seen to be those of the dataset."""
        wrong = [name for name, kind in self.expects.items() if not _fits(schema, name, kind)]
        if wrong:
            found = ", ".join(f"{field.name} ({field.type})" for field in schema)
            expected = ", ".join(f"{name} ({kind})" for name, kind in self.expects.items())
            raise Refusal(
                f"this is not {self.name}: found columns {found}; expected {expected}; wrong: {', '.join(wrong)}",
                OTHER_LAYOUT,
            )
        return super().choose(schema)


def _fits(schema: pa.Schema, name: str, kind: str) -> bool:
    if name not in schema.names:
        return False
    found = schema.field(name).type
    found = found.value_type if pa.types.is_dictionary(found) else found
    if kind == "bytes":
        return is_picture(found)
    return is_text(found) if kind == "text" else pa.types.is_integer(found) or is_text(found)


class Laion(NamedTable):
    """LAION-400M, LAION-5B, their aesthetic and COCO sets: Parquet of links and alt texts."""

    name: ClassVar[str] = "laion"
    expects: ClassVar[Mapping[str, str]] = {"URL": "text"}

    image: str | None = "URL"
    """Column of the picture's URL."""

    def wanted_of(self, schema: pa.Schema) -> Wanted:
        """As in `Table`; the caption is `TEXT`, or `top_caption` in LAION-COCO."""
        caption = self.caption or next((name for name in ("TEXT", "top_caption") if name in schema.names), None)
        if caption is None:
            raise Refusal(
                f"this is not laion: found columns {', '.join(schema.names)}; expected URL and TEXT", OTHER_LAYOUT
            )
        return replace(super().wanted_of(schema), caption=caption)


class Coyo(NamedTable):
    """COYO-700M: Parquet of links, alt texts and eight scores.

    source: {op: coyo, path: "coyo-700m/*.parquet"}
    """

    name: ClassVar[str] = "coyo"
    expects: ClassVar[Mapping[str, str]] = {"id": "number", "url": "text", "text": "text"}

    image: str | None = "url"
    """Column of the picture's URL."""
    key: str | None = "id"
    """Column of the key."""
    caption: str | None = "text"
    """Column of the caption."""


class Megalith(NamedTable):
    """Megalith-10m: Parquet of links to Flickr, without captions and without a licence per row.

    source: {op: megalith, path: "megalith-10m/*.parquet"}
    """

    name: ClassVar[str] = "megalith"
    expects: ClassVar[Mapping[str, str]] = {"url": "text", "url_highres": "text", "url_source": "text"}

    image: str | None = "url"
    """Column of the picture's URL; `url_highres` is the larger one."""


class CommonCatalog(NamedTable):
    """CommonCatalog (CC-BY and others): Parquet with JPEG bytes; its own captions are URL-encoded."""

    name: ClassVar[str] = "common_catalog"
    expects: ClassVar[Mapping[str, str]] = {"jpg": "bytes", "photoid": "number", "caption": "text"}

    image: str | None = "jpg"
    """Column of the picture's bytes."""
    key: str | None = "photoid"
    """Column of the key."""
    caption: str | None = "caption"
    """Column of the caption: `caption`, decoded, and raw in the sidecar; or `blip2_caption`, the synthetic one."""

    def wanted_of(self, schema: pa.Schema) -> Wanted:
        """As in `Table`."""
        wanted = super().wanted_of(schema)
        raw = self.caption == "caption"
        return replace(wanted, change_caption=_unquoted) if raw else wanted


def _unquoted(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([text and unquote_plus(text) for text in captions.to_pylist()], pa.string())])


class Pd12m(NamedTable):
    """PD12M: Parquet of links to public-domain pictures with synthetic captions and a licence per row.

    source: {op: pd12m, path: "pd12m/*.parquet"}
    """

    name: ClassVar[str] = "pd12m"
    expects: ClassVar[Mapping[str, str]] = {"id": "text", "url": "text", "caption": "text"}

    image: str | None = "url"
    """Column of the picture's URL."""
    key: str | None = "id"
    """Column of the key."""
    caption: str | None = "caption"
    """Column of the caption."""
