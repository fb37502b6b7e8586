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

from collections.abc import Iterable
from typing import ClassVar

import pyarrow as pa
from pydantic import Field, PrivateAttr, field_validator

from nextloom.config import RootPath
from nextloom.curation.sources import columns
from nextloom.curation.sources.captions import NOT_READ
from nextloom.curation.sources.finding import Shard, find_shards
from nextloom.curation.sources.input import Dialect
from nextloom.curation.sources.readers import SECOND, SUFFIXES, pieces
from nextloom.curation.sources.roles import Roles, Wanted, roles
from nextloom.curation.sources.shards import ShardSource
from nextloom.store.dataset import ITEM
from nextloom.store.notices import Tally, with_notices


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
    index: int | None = Field(None, ge=0)
    """Of a column of lists, which image is the row, from 0. Default: each is, under the keys ``KEY/0``, ``KEY/1``."""
    encoding: str | None = None
    """Of CSV files, as Python names it: ``cp1252``, ``utf-16``. Default: UTF-8; a file that is not is refused."""
    delimiter: str | None = None
    """Between the fields of CSV files, one character. Default: a comma; in .tsv a tab."""

    _before: tuple[pa.Schema, Roles] | None = PrivateAttr(default=None)

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                "".encode(value)
            except LookupError:
                raise ValueError(f"no text encoding is called {value!r}; write utf-16, cp1252, latin-1, ...") from None
        return value

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or not value.isascii() or value in '"\r\n\0'):
            raise ValueError("a delimiter is one ASCII character, such as ';' or a tab")
        return value

    def places(self) -> tuple[str, ...]:
        """As in `Source`; `base` is one of them."""
        return (*super().places(), *((self.base,) if self.base else ()))

    def find(self, path: str) -> Iterable[Shard]:
        """As in `ShardSource`; a .json is a table where a folder holds no other."""
        return find_shards(path, self.suffixes, self.door(), SECOND, self._passed)

    def wanted_of(self, schema: pa.Schema) -> Wanted:
        """What is wanted of a table with these columns."""
        return Wanted(self.image, self.key, self.caption, self.columns, index=self.index)

    def choose(self, schema: pa.Schema) -> Roles:
        """Which column is what; a `Refusal` where the recipe does not fit."""
        return roles(schema, self.wanted_of(schema))

    def _same_or_choose(self, schema: pa.Schema) -> Roles:
        """`choose`; of a shard with the columns of the one before, its answer."""
        before = self._before
        if before is None or not before[0].equals(schema):
            before = (schema, self.choose(schema))
            self._before = before
        return before[1]

    def look(self, shard: Shard) -> pa.Table:
        """As in `ShardSource`."""
        found, tally = [ITEM.empty_table()], Tally()
        dialect = Dialect(self.encoding, self.delimiter)
        for piece, role, budget in pieces(shard, self._same_or_choose, self.door(), dialect):
            if piece.table.num_rows:
                found.append(columns.rows(piece, shard, role, self.base))
                budget.texts(found[-1].nbytes)
            if piece.problems:
                found.append(columns.failed(shard, piece.problems))
            if role.likely and piece.table.num_rows:
                told = f"in the column {role.likely!r} (caption: {role.likely})"
                tally[NOT_READ][told] += piece.table.num_rows
        return with_notices(pa.concat_tables(found), tally)
