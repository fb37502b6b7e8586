"""Source `table`: rows of Parquet, Arrow, CSV and JSONL files, with pictures as bytes, paths or URLs.

    source: {op: table, path: "photos/*.parquet", image: jpg, key: id}
    source: {op: table, path: links.csv, image: url, caption: alt}

The suffix says what a file is (text also as .gz, .bz2, .zst). Roles that are not given are looked for: the picture in
the one column of bytes, else in the one of text with such a name as url, path or file_name; the caption in `caption`,
else `text`. More than one candidate, or none, is refused with the columns that were found. Every other column goes
into the sidecar under its own name, values as they are; columns of bytes are left out.

Bytes stay in the table: a row refers to its cell, and is another row when the file changed. A row of a path or URL is
another row when its own values changed, so such a table may grow at its end; what lies at the path is not looked at.
A line that is no JSON and a record with other fields than the header are failed rows. So are rows without a picture
or without the key that `key` names.
"""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa

from nextloom.config import RootPath
from nextloom.curation.sources import columns
from nextloom.curation.sources.columns import Roles, Wanted
from nextloom.curation.sources.readers import SUFFIXES, pieces
from nextloom.curation.sources.shards import Shard, ShardSource
from nextloom.store.dataset import ITEM


class Table(ShardSource):
    """Rows of tables; one shard is one file."""

    name: ClassVar[str] = "table"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    image: str | None = None
    """Column of the picture: bytes, {bytes, path} as Hugging Face stores it, a path, or a URL. Default: looked for."""
    key: str | None = None
    """Column of the key, unique over all tables. Default: the shard's name and the row's number: ``a.parquet#12``."""
    caption: str | None = None
    """Column of the caption. Default: `caption`, else `text`, in any case, where there is one."""
    columns: tuple[str, ...] | None = None
    """Columns kept in the sidecar. Default: all others."""
    base: RootPath | None = None
    """Folder in which relative paths begin. Default: the table's own."""

    def places(self) -> tuple[str, ...]:
        """As in `Source`; `base` is one of them."""
        return (*super().places(), *((self.base,) if self.base else ()))

    def wanted_of(self, schema: pa.Schema) -> Wanted:
        """What is wanted of a table with these columns."""
        return Wanted(self.image, self.key, self.caption, self.columns)

    def choose(self, schema: pa.Schema) -> Roles:
        """Which column is what; a `Refusal` where the recipe does not fit."""
        return columns.roles(schema, self.wanted_of(schema))

    def look(self, shard: Shard) -> pa.Table:
        """As in `ShardSource`."""
        found = [ITEM.empty_table()]
        for piece, role in pieces(shard, self.choose, self.door()):
            more = {"empty": piece.empty, "spelled": piece.spelled, "sidecar": piece.sidecar}
            found.append(columns.rows(piece.table, piece.numbers, shard, role, self.base, **more))
            if piece.problems:
                found.append(columns.failed(shard, piece.problems))
        return pa.concat_tables(found)
