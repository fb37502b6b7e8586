"""Picked rows: a few rows out of a table of any size, and id ranges to walk over all of it, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pyarrow as pa

from nextloom.op import CHILDREN, Expand
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE
from nextloom.store.dataset import ROWS
from nextloom.store.files import read_sparse, windows
from nextloom.store.table import Table

SPAN_ROWS = 250_000


def spans(table: Table) -> Iterator[tuple[int, int]]:
    """Id ranges, inclusive, that cover a table in order, of about `SPAN_ROWS` rows each, also inside one large file."""
    files = table.files()
    for low, high in windows(files, SPAN_ROWS):
        rows = sum(f.rows for f in files if low <= f.min_id <= high)
        width = max(1, math.ceil((high - low + 1) / math.ceil(rows / SPAN_ROWS)))
        for start in range(low, high + 1, width):
            yield start, min(high, start + width - 1)


def pick(table: Table, ids: np.ndarray, columns: list[str], schema: pa.Schema) -> pa.Table:
    """Those rows of `ids` that `table` has, with `id` and `columns`, sorted by id.

    Args:
        table: a rows table or a column.
        ids: int64, any order, unique.
        columns: names in `schema`, the table's own.
    """
    names = ["id", *(name for name in columns if name != "id")]
    wanted = np.sort(np.asarray(ids, np.int64))
    parts = [schema.empty_table().select(names)]
    for file in table.files():
        mine = wanted[np.searchsorted(wanted, file.min_id) : np.searchsorted(wanted, file.max_id, side="right")]
        if len(mine):
            with suppress(LookupError):
                parts.append(read_sparse(table.uri, [file], mine, names))
    return pa.concat_tables(parts, promote_options="permissive").sort_by("id")


def table_of(planner: Planner, name: str, domain: str) -> tuple[Table, pa.Schema]:
    """The table that a rule means by `name`, and its schema; `source` is the rows of `domain`."""
    if name == SOURCE:
        name = domain
    if name == SOURCE:
        return planner.dataset.rows, ROWS
    op = planner.graph[name].op
    return planner.table(name), CHILDREN if isinstance(op, Expand) else op.table_schema()
