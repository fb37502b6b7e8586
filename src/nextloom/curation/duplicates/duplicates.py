"""What ops that group duplicates share: which member of a group stays, and the columns that say so.

    duplicate: {op: near_duplicate, reads: [phash, stats], keep: best, by: stats.sharpness}

A group has one representative, for which `hit` is false: its first row, or its best by a score column. `group` is
the smallest id of its members, whoever represents it, so that a new row or another score does not rename it. Which
groups span several sources, the report tells.

`hit` is decided over all rows this step runs on. A rule of nothing but `not duplicate.hit` drops the copies; with
other rules beside it, ask `select` for one of each group instead (`distinct: duplicate.group`): else a group whose
representative fails another rule is lost with its good copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from nextloom.curation.duplicates.groups import elect
from nextloom.errors import UserError, did_you_mean
from nextloom.op import Reduce


class Duplicates(Reduce):
    """Base of the ops that group rows: fields and columns; the op finds the groups."""

    keep: Literal["first", "best"] = "first"
    """The representative of a group: the row of smallest id, or the one with the best score."""
    by: str | None = None
    """The score of `keep: best`, as `step.column` of a step in `reads`. Rows without a score lose; equal ones go by
    id."""
    order: Literal["highest", "lowest"] = "highest"
    """Which score is the best."""

    column: str

    @model_validator(mode="after")
    def _reads_what_it_needs(self) -> Self:
        if not self.reads:
            raise ValueError(f"{self.name} reads the step whose column {self.column!r} it compares")
        if self.keep == "best" and self.by is None:
            raise ValueError("`keep: best` needs `by: step.column`, the score")
        if self.keep == "first" and (self.by is not None or "order" in self.model_fields_set):
            raise ValueError("`by` and `order` are for `keep: best`; with `keep: first` they would do nothing")
        step, dot, column = (self.by or "").partition(".")
        if self.by is not None and not (step and dot and column):
            raise ValueError(f"by: {self.by!r} is not of the form step.column")
        extra = [name for name in self.reads[1:] if name != step]
        if extra:
            raise ValueError(f"{extra[0]!r} in `reads` is not used: the first is compared, another is the one of `by`")
        if self.by is not None and step not in self.reads:
            raise ValueError(f"by: {self.by!r} is of a step that is not in `reads`")
        return self

    def columns(self) -> pa.Schema:
        """group, hit, size, and the op's own measure to the representative."""
        return pa.schema([("group", pa.int64()), ("hit", pa.bool_()), ("size", pa.int64())])

    def check(self, known: Mapping[str, Iterable[str]], where: str) -> None:
        """Refuse steps without the columns that are read.

        Args:
            known: step -> names of its columns.
            where: config path for the message.

        Raises:
            UserError: no such column, with the nearest name.
        """
        needed = [(self.reads[0], self.column, "reads")]
        if self.by is not None:
            step, _, column = self.by.partition(".")
            needed.append((step, column, "by"))
        for step, column, field in needed:
            names = list(known[step])
            if column not in names:
                hint = did_you_mean(column, names)
                raise UserError(f"{step!r} has no column {column!r}; {hint}", where=f"{where}.{field}")

    def inputs(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """table(id, value, score): the compared column and the score, or nulls, sorted by id.

        Raises:
            UserError: a column is missing, or the score has no order.
        """
        self.check({step: table.column_names for step, table in columns.items()}, self.name)
        table = columns[self.reads[0]]
        score: pa.ChunkedArray | pa.Array = pa.nulls(table.num_rows, pa.float64())
        if self.by is not None:
            step, _, column = self.by.partition(".")
            score = columns[step][column].take(pc.index_in(table["id"], columns[step]["id"]))
            kind = score.type
            if not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind)):
                raise UserError(
                    f"{self.by} is {kind}; the best of a group needs a number, a date or a boolean",
                    where=f"{self.name}.by",
                )
        data = pa.table({"id": table["id"], "value": table[self.column], "score": score})
        ids = data["id"].to_numpy()
        return data if (ids[1:] >= ids[:-1]).all() else data.sort_by("id")

    def elected(self, first_N: np.ndarray, compared: pa.Table) -> np.ndarray:
        """(N,) position of each row's representative; `compared`: rows of `inputs` that have a value."""
        return elect(first_N, compared["score"] if self.keep == "best" else None, self.order)

    def table(self, data: pa.Table, compared: pa.Table, stays_N: np.ndarray, **measure: pa.Array) -> pa.Table:
        """The op's column.

        Args:
            data: what `inputs` gave.
            compared: its rows that have a value.
            stays_N: position in `compared` of each row's representative.
            measure: the op's own columns, aligned to `compared`.

        Returns:
            table(id, group, hit, size, measure) for each row of `data`; null where the compared value is.
        """
        ids = compared["id"].to_numpy()
        size = np.bincount(stays_N, minlength=len(ids))[stays_N]
        oldest_N = np.empty_like(stays_N)
        oldest_N[stays_N[::-1]] = np.arange(len(ids))[::-1]  # the last assignment, the smallest, stays
        values = pa.table(
            {
                "group": pa.array(ids[oldest_N[stays_N]], pa.int64()),
                "hit": pa.array(stays_N != np.arange(len(ids)), pa.bool_()),
                "size": pa.array(size, pa.int64()),
                **measure,
            }
        )
        if compared.num_rows < data.num_rows:
            values = values.take(pc.index_in(data["id"], compared["id"]))  # null where there is no value
        return values.add_column(0, "id", data["id"])
