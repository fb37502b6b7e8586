"""Annotate `source_score`: a score that the source brought, as a column with its scale.

    aesthetic: {op: source_score, column: aesthetic_score_laion_v2}
    keep:      {op: select, where: "aesthetic.score > 5 and watermark.score < 0.5"}
    liked:     {op: source_score, column: stats.likes, scale: likes, range: [0, 1000000]}

LAION, COYO, Koala and others publish scores beside their links. They are read, not computed again, and carry the
scale of the scorer that gave them (`scales.BROUGHT`), so that a threshold meant for another one is refused. A column
with a name of its own, or one that datasets use on several scales, needs `scale`. Price paid: the dataset's word is
taken for what the picture shows today, which may no longer be what was scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import model_validator

from nextloom.curation.scores import sidecar
from nextloom.curation.scores.scales import brought, named, spoken
from nextloom.errors import UserError
from nextloom.op import Annotate, Row, RowFailure, Scale


class SourceScore(Annotate):
    """A number of the row's sidecar record."""

    name: ClassVar[str] = "source_score"
    code_version: ClassVar[int] = 2

    column: str
    """Its name in the record; names inside of names are joined by dots."""
    scale: str | None = None
    """Name of its scale; not needed where `column` is one that public datasets use."""
    range: tuple[float, float] | None = None
    """Lowest and highest value, for a scale that is not known here."""

    @model_validator(mode="after")
    def _known_scale(self) -> SourceScore:
        try:
            self._scale()
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    def _scale(self) -> Scale:
        if self.range is None:
            return named(self.scale) if self.scale else brought(self.column)
        if self.scale is None:
            raise UserError("a range without the name of its scale", next="give `scale: NAME` too")
        low, high = self.range
        try:
            known = named(self.scale)
        except UserError:
            if low >= high:
                raise UserError(f"the range {low:g} to {high:g} is empty") from None
            return Scale(self.scale, low, high)
        raise UserError(f"{spoken(known)} has a range of its own", next="take `range` out, or name another scale")

    def identity(self) -> dict[str, Any]:
        """The scale as it is, whether it was named or followed from the column."""
        scale = self._scale()
        high = None if math.isinf(scale.high) else scale.high
        return {**super().identity(), "scale": scale.name, "range": [scale.low, high]}

    def columns(self) -> pa.Schema:
        return pa.schema([("score", pa.float64())])

    def score_scales(self) -> Mapping[str, Scale]:
        return {"score": self._scale()}

    def measure(self, row: Row) -> dict[str, Any]:
        """`score`: the number, or the number that a text spells; null where the record says null.

        Raises:
            RowFailure: ``NoSidecar`` or ``NoColumn``; ``NoNumber`` for anything else than a finite number;
                ``OffScale`` for one outside of the scale's range, which stays in the column beside the error.
        """
        found = sidecar.value(row, self.column)
        if found is None:
            return {"score": None}
        score = _number(found)
        if score is None or not math.isfinite(score):
            raise RowFailure("NoNumber", f"{self.column} is no number", detail=f"{found!r:.80}")
        scale = self._scale()
        if not scale.low <= score <= scale.high:
            raise RowFailure(
                "OffScale", f"{self.column} is not on {spoken(scale)}", detail=f"{score:g}", values={"score": score}
            )
        return {"score": score}


def _number(value: Any) -> float | None:
    if isinstance(value, str) and "_" not in value:
        try:
            return float(value)
        except ValueError:
            return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None
