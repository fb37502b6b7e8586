"""Reduce `quantile`: the threshold that a share of the rows passes, and each row's rank.

    aesthetic: {op: aesthetic_score, reads: [clip], weights: models/laion-v2}
    cut:       {op: quantile, reads: [aesthetic], column: score, top: 0.30}
    keep:      {op: select, where: "cut.hit"}

A number such as 4.3 means "the best 30%" for one scorer and nothing for the next. A share means the same for every
scorer, and the threshold it comes to is stored with the column, the scale and the number of rows it was computed on.
Exact, by sorting, so equal for any order of rows: the threshold is the value of the last of the ceil(share * n) best
rows, and all rows equal to it are in, which with many ties are more than the share. Price paid: the whole column in
memory (about 50 bytes a row), and a new threshold whenever the rows change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PrivateAttr, field_validator, model_validator

from nextloom.curation.scores.scales import SHARE
from nextloom.errors import UserError, did_you_mean
from nextloom.op import Reduce, Scale


class Quantile(Reduce):
    """The rows whose value is among the best (`top`) or lowest (`bottom`) share."""

    name: ClassVar[str] = "quantile"
    code_version: ClassVar[int] = 1

    column: str
    """Column of the step in `reads`: a number."""
    top: float | None = Field(None, gt=0, le=1)
    """Share of the rows with the highest values, 0..1."""
    bottom: float | None = Field(None, gt=0, le=1)
    """Share of the rows with the lowest values, 0..1."""

    _scale: Scale | None = PrivateAttr(None)
    """Scale of the column, as the graph tells; it follows from what is read, so it is no identity of its own."""

    @field_validator("reads")
    @classmethod
    def _one_step(cls, reads: tuple[str, ...]) -> tuple[str, ...]:
        if len(reads) != 1:
            raise ValueError("quantile reads exactly one step, the one that has the column")
        return reads

    @model_validator(mode="after")
    def _one_side(self) -> Quantile:
        if (self.top is None) == (self.bottom is None):
            raise ValueError("give either `top: 0.30` (the highest values) or `bottom: 0.30` (the lowest)")
        return self

    def columns(self) -> pa.Schema:
        """What a row gets.

        threshold: the value that the share comes to, the same in each row
        hit: the row is within the share
        rank: share of the rows that are at least as good, above 0, up to 1
        of, scale, rows: what it was computed on (``aesthetic.score``), its scale if it has one, how many values
        """
        return pa.schema(
            [
                ("threshold", pa.float64()),
                ("hit", pa.bool_()),
                ("rank", pa.float64()),
                ("of", pa.string()),
                ("scale", pa.string()),
                ("rows", pa.int64()),
            ]
        )

    def score_scales(self) -> Mapping[str, Scale]:
        return {"rank": SHARE} | ({"threshold": self._scale} if self._scale else {})

    def check(self, known: Mapping[str, Iterable[str]], where: str) -> None:
        """Refuse a step without the column.

        Args:
            known: step -> names of its columns.
            where: config path for the message.

        Raises:
            UserError: no such column, with the nearest name.
        """
        (step,) = self.reads
        names = list(known[step])
        if self.column not in names:
            hint = did_you_mean(self.column, names)
            raise UserError(f"{step!r} has no column {self.column!r}; {hint}", where=f"{where}.column")

    def check_scales(self, scales: Mapping[str, Mapping[str, Scale]], where: str) -> None:
        """Note the scale of the column; a rank is right on any."""
        self._scale = scales.get(self.reads[0], {}).get(self.column)

    def reduce(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """Threshold, hit and rank of each row; hit and rank are null where the value is.

        Args:
            columns: the step in `reads` -> table(id, value, error).

        Returns:
            table(id, `columns()`) sorted by id. Without any value the threshold is null.

        Raises:
            UserError: the column holds no numbers, or one that is infinite or undefined.
        """
        (step,) = self.reads
        table = columns[step].sort_by("id")
        self.check({step: table.column_names}, "column")
        values = _numbers(table[self.column], f"{step}.{self.column}")
        count = table.num_rows
        threshold, hit, rank = self._judge(values)
        place = np.zeros(count, np.int64)  # where each row's value stands among those that are there
        valid = table[self.column].is_valid().to_numpy()
        place[valid] = np.arange(len(values))
        take = pa.array(place, mask=~valid)
        return pa.table(
            {
                "id": table["id"],
                "threshold": pa.array([threshold] * count, pa.float64()),
                "hit": pa.array(hit, pa.bool_()).take(take),
                "rank": pa.array(rank, pa.float64()).take(take),
                "of": pa.array([f"{step}.{self.column}"] * count, pa.string()),
                "scale": pa.array([self._scale.name if self._scale else None] * count, pa.string()),
                "rows": pa.array([len(values)] * count, pa.int64()),
            }
        )

    def _judge(self, values_N: np.ndarray) -> tuple[float | None, np.ndarray, np.ndarray]:
        """Threshold, and hit and rank of each value."""
        ordered = np.sort(values_N)
        count = len(ordered)
        if not count:
            return None, np.empty(0, bool), np.empty(0)
        share = self.top if self.top is not None else self.bottom
        within = math.ceil(Fraction(str(share)) * count)  # exact: 0.1 * 30 is more than 3 in floating point
        if self.top is not None:
            threshold = ordered[count - within]
            as_good = count - np.searchsorted(ordered, values_N, side="left")
            return float(threshold), values_N >= threshold, as_good / count
        threshold = ordered[within - 1]
        as_good = np.searchsorted(ordered, values_N, side="right")
        return float(threshold), values_N <= threshold, as_good / count


def _numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """The values that are there, as int64 or float64."""
    kind = column.type
    if pa.types.is_decimal(kind):
        column = pc.cast(column, pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(f"{name} is {kind}, and a rank needs a number", where="column")
    values = column.drop_null().to_numpy()
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            raise UserError(f"{name} holds infinite or undefined numbers, which have no rank", where="column")
    return values
