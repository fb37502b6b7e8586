"""Annotate `pick_labels`: the scores of a `zero_shot` step to labels, by thresholds that may change every day.

    topic: {op: pick_labels, reads: [topic_scores], margin: 0.1}
    shows: {op: pick_labels, reads: [thing_scores], thresholds: {person: 0.3, "*": 0.5}}

`margin` keeps the best label where it leads the second by that much and says `other` where it does not. `thresholds`
gives every label whose score reaches its own, several to a row. It is apart from `zero_shot` so that another threshold
runs neither text nor image network. Price paid: a second column, of a few bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from nextloom.errors import UserError
from nextloom.op import Annotate, Row

READS = ("label", "primary", "margin", "scores", "primaries")
REST = "*"


class PickLabels(Annotate):
    """Labels of a row, or `other`."""

    name: ClassVar[str] = "pick_labels"
    code_version: ClassVar[int] = 2

    margin: float | None = Field(None, ge=0, le=1)
    """By how much the best score must lead the second, 0..1; give this or `thresholds`."""
    thresholds: dict[str, float] | None = None
    """Label -> least score; "*" for the others, which without it are never given."""
    other: str = "other"
    """Label of a row that gets none."""

    @model_validator(mode="after")
    def _one_of(self) -> PickLabels:
        if (self.margin is None) == (self.thresholds is None):
            raise ValueError("give margin (one label to a row) or thresholds (several)")
        if self.thresholds is not None and not self.thresholds:
            raise ValueError('thresholds is empty: no label would ever be given; "*": 0.5 is for all')
        return self

    def columns(self) -> pa.Schema:
        """`labels`: all, best first, [] without any; `label`: the first, or `other`; `primary`: what it is below."""
        return pa.schema([("label", pa.string()), ("primary", pa.string()), ("labels", pa.list_(pa.string()))])

    def check(self, known: Mapping[str, Iterable[str]], where: str) -> None:
        """One `zero_shot` step is read."""
        if len(self.reads) != 1 or not set(READS) <= set(known[self.reads[0]]):
            raise UserError("reads one zero_shot step", where=f"{where}.reads")

    def measure(self, row: Row) -> dict[str, Any]:
        """Labels of one row; all null where it has no scores.

        Raises:
            ValueError: `thresholds` names a label that was not scored.
        """
        values = row.reads[self.reads[0]]
        if values["scores"] is None:
            return dict.fromkeys(self.columns().names)
        scores, below = dict(values["scores"]), dict(zip(dict(values["scores"]), values["primaries"], strict=True))
        if self.thresholds is None:
            labels = [values["label"]] if values["margin"] >= (self.margin or 0) else []
        else:
            unknown = next((name for name in self.thresholds if name not in scores and name != REST), None)
            if unknown is not None:
                raise ValueError(f"thresholds names {unknown!r}, which {self.reads[0]} does not score")
            least = {name: self.thresholds.get(name, self.thresholds.get(REST)) for name in scores}
            reached = [name for name, score in scores.items() if least[name] is not None and score >= least[name]]
            labels = sorted(reached, key=lambda name: -scores[name])
        label = labels[0] if labels else self.other
        return {"label": label, "primary": below.get(label, self.other), "labels": labels}
