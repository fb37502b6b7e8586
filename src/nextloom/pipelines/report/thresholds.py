"""Thresholds: for each number that a rule compares a column with, who stands on which side of it.

Three things per Select, all from its verdicts and the columns its rule reads, window by window:

    histogram   of every compared column, over all judged rows, kept and rejected apart
    nearest     the rows next to each threshold, on both sides: the pictures that decide whether it is right
    sample      values and unmet rules of up to `SAMPLE` rows, so that the page can move a threshold and count

The sample is the rows of the smallest hashes of their ids: the same rows in every report, whatever the order or
the number of files. Price paid: what the page says about a moved threshold is an estimate where there are more rows.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.curation.decisions.quantile import Quantile
from nextloom.curation.decisions.rule import Comparison, comparisons
from nextloom.curation.decisions.select import SelectWhere
from nextloom.hashing import hash64
from nextloom.op import CHILDREN
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE, Step
from nextloom.pipelines.report.album import Album
from nextloom.pipelines.report.histogram import Histogram
from nextloom.pipelines.report.picked import pick, spans, table_of
from nextloom.store.dataset import ROWS
from nextloom.store.files import File, read_files, take_ids
from nextloom.store.table import Table

SAMPLE = 2000
PICTURED = 300
"""Rows of a sample that have a picture, so that there is something to see wherever a threshold is moved."""
NEAREST = 8
"""Pictures on each side of a threshold."""
NULL = " is null"

Column = tuple[str, str]


def thresholds(planner: Planner, step: Step, album: Album) -> dict[str, Any] | None:
    """What the page needs to draw and move the thresholds of a Select.

    Returns:
        None where a rule compares no numeric column or where nothing was judged; else a dict of

        - parts: text of the rules that AND joins, then that of `distinct`.
        - distinct: None, or root and place of each row of the sample: rows of one group have one root, and of those
          that meet the rule the one with the lowest place is kept.
        - columns: name and `Histogram.as_dict()` of each compared column.
        - thresholds: column (index), part (index), operator, value, alone (see `Comparison`).
        - judged, sample: number of rows kept or rejected, and of those in the sample.
        - values: per column a list, null where there is no number; the sample first, then the nearest rows.
        - unmet: per row a string of 0 and 1, one per part: 1 where the rule is not met.
        - slots: per row the picture's slot in the album, or -1.
    """
    if not isinstance(step.op, SelectWhere):
        return None
    if not planner.table(step.name).files():
        return None
    found = [c for c in comparisons(_with_quantiles(planner, step, step.op.where)) if _is_numeric(planner, step, c)]
    if not found:
        return None
    try:
        return _Thresholds(planner, step, found).gather(album)
    except LookupError:  # a column lacks rows that were judged: the step is stale, and a run will mend it
        return None


class _Thresholds:
    """The columns and comparisons of one Select."""

    def __init__(self, planner: Planner, step: Step, found: list[Comparison]) -> None:
        assert isinstance(step.op, SelectWhere)
        self._planner, self._step, self._found = planner, step, found
        self._verdicts = planner.table(step.name)
        self._parts = step.op.rules()
        """With `distinct`, the last one is no part of `where`."""
        self._logs: dict[str, list[File]] = {}
        self._columns: list[Column] = list(dict.fromkeys((c.step, c.column) for c in found))

    def gather(self, album: Album) -> dict[str, Any] | None:
        judged, sample = self._draw()
        if not judged:
            return None
        values = self._values(sample, whole=False)
        histograms = [self._histogram(column, values[column]) for column in self._columns]
        nearest = self._pass(histograms)
        extra = np.setdiff1d(nearest, sample)
        shown = {} if not len(extra) else self._values(extra, whole=False)
        ids = np.concatenate([sample, extra])
        slots = np.full(len(ids), -1)
        near = np.isin(ids, nearest)
        slots[near] = album.want(self._step.domain, ids[near].tolist())
        some = slice(min(PICTURED, len(sample)))
        slots[some] = album.want(self._step.domain, ids[some].tolist(), spare=True)
        columns = [np.concatenate([values[c], shown.get(c, np.empty(0))]) for c in self._columns]
        return {
            "parts": list(self._parts),
            "columns": [
                {"name": f"{step}.{name}", **histogram.as_dict()}
                for (step, name), histogram in zip(self._columns, histograms, strict=True)
            ],
            "thresholds": [
                {
                    "column": self._columns.index((c.step, c.column)),
                    "part": c.part,
                    "operator": c.operator,
                    "value": c.value,
                    "alone": c.alone,
                }
                for c in self._found
            ],
            "judged": judged,
            "sample": len(sample),
            "values": [[v if np.isfinite(v) else None for v in column.tolist()] for column in columns],
            "unmet": self._unmet(ids),
            "distinct": self._groups(sample),
            "slots": slots.tolist(),
        }

    def _files(self, table: Table) -> list[File]:
        """The table's files, its log read once."""
        if table.uri not in self._logs:
            self._logs[table.uri] = table.files()
        return self._logs[table.uri]

    def _histogram(self, column: Column, sample: np.ndarray) -> Histogram:
        marks = [c.value for c in self._found if (c.step, c.column) == column]
        kind = _kind(self._planner, self._step, *column)
        return Histogram(sample, marks, integer=pa.types.is_integer(kind))

    def _draw(self) -> tuple[int, np.ndarray]:
        """Number of judged rows, and the ids of the sample in the order of their hashes."""
        files = self._verdicts.files()
        best, judged = np.empty(0, np.int64), 0
        for low, high in spans(self._verdicts):
            data = read_files(self._verdicts.uri, files, ["id", "verdict"], low=low, high=high)
            ids = data.filter(pc.not_equal(data["verdict"], "failed"))["id"].to_numpy()
            judged += len(ids)
            best = np.concatenate([best, ids])
            if len(best) > SAMPLE:
                best = best[np.argpartition(_hash(best), SAMPLE)[:SAMPLE]]
        return judged, best[np.argsort(_hash(best))]

    def _values(self, ids: np.ndarray, *, whole: bool) -> dict[Column, np.ndarray]:
        """float64 values of each compared column in the order of `ids`; NaN where there is none.

        With `whole`, `ids` are all those of a window, sorted.
        """
        out = {}
        for name in dict.fromkeys(step for step, _ in self._columns):
            wanted = [column for step, column in self._columns if step == name]
            table, schema = table_of(self._planner, name, self._step.domain)
            if whole:
                data = take_ids(table.uri, self._files(table), ids, wanted)
            else:
                data = pick(table, ids, wanted, schema)
                if data.num_rows != len(ids):
                    raise LookupError(f"{name} lacks rows")
                data = data.take(pa.array(np.argsort(np.argsort(ids))))
            for column in wanted:
                numbers = pc.fill_null(data[column].cast(pa.float64(), safe=False), float("nan"))
                out[name, column] = numbers.to_numpy()
        return out

    def _pass(self, histograms: list[Histogram]) -> np.ndarray:
        """Fill the histograms with all judged rows; returns the ids next to a threshold, sorted and unique."""
        files = self._verdicts.files()
        sides = {(i, met): _Nearest() for i in range(len(self._found)) for met in (False, True)}
        for low, high in spans(self._verdicts):
            data = read_files(self._verdicts.uri, files, ["id", "verdict"], low=low, high=high)
            data = data.filter(pc.not_equal(data["verdict"], "failed"))
            if not data.num_rows:
                continue
            ids, kept = data["id"].to_numpy(), pc.equal(data["verdict"], "kept").to_numpy()
            values = self._values(ids, whole=True)
            for column, histogram in zip(self._columns, histograms, strict=True):
                histogram.add(values[column], kept)
            for i, c in enumerate(self._found):
                mine = values[c.step, c.column]
                met = _met(mine, c)
                for side in (False, True):
                    there = (met == side) & np.isfinite(mine)
                    sides[i, side].add(np.abs(mine[there] - c.value), ids[there])
        return np.unique(np.concatenate([side.ids for side in sides.values()]))

    def _unmet(self, ids: np.ndarray) -> list[str]:
        """Per row a 1 for each part that the verdict lists as not met, a 0 for the others."""
        data = pick(self._verdicts, ids, ["rules"], self._step.op.table_schema())
        listed = [set(json.loads(rules or "[]")) for rules in data["rules"].to_pylist()]
        texts = ["".join("01"[not listed_.isdisjoint((p, p + NULL))] for p in self._parts) for listed_ in listed]
        return [texts[i] for i in np.argsort(np.argsort(ids))]

    def _groups(self, ids: np.ndarray) -> dict[str, list[int]] | None:
        """Root and place of a few rows, in their order: groups and the best among these rows alone."""
        op = self._step.op
        assert isinstance(op, SelectWhere)
        if not op.distinct:
            return None
        tables = {}
        for name in op.used():
            table, schema = table_of(self._planner, name, self._step.domain)
            names = [field.name for field in schema if not pa.types.is_binary(field.type)]
            tables[name] = pick(table, ids, names, schema)
        ranks = op.ranks(tables).take(pa.array(np.argsort(np.argsort(ids))))
        return {"root": ranks["root"].to_pylist(), "place": ranks["place"].to_pylist()}


class _Nearest:
    """The ids of the smallest distances seen; among equal ones, those of the smallest hashes."""

    def __init__(self) -> None:
        self.ids = np.empty(0, np.int64)
        self._distances = np.empty(0)

    def add(self, distances: np.ndarray, ids: np.ndarray) -> None:
        distances, ids = np.concatenate([self._distances, distances]), np.concatenate([self.ids, ids])
        if len(ids) > NEAREST:
            near = distances <= np.partition(distances, NEAREST - 1)[NEAREST - 1]
            distances, ids = distances[near], ids[near]
        best = np.lexsort((_hash(ids), distances))[:NEAREST]
        self._distances, self.ids = distances[best], ids[best]


def _hash(ids: np.ndarray) -> np.ndarray:
    return hash64(ids, "report")


def _met(values: np.ndarray, c: Comparison) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        match c.operator:
            case ">":
                return values > c.value
            case ">=":
                return values >= c.value
            case "<":
                return values < c.value
            case "<=":
                return values <= c.value
            case "=":
                return values == c.value
            case "<>":
                return values != c.value


def _kind(planner: Planner, step: Step, name: str, column: str) -> pa.DataType:
    if name == SOURCE:
        return (ROWS if step.domain == SOURCE else CHILDREN).field(column).type
    return planner.graph[name].op.columns().field(column).type


def _with_quantiles(planner: Planner, step: Step, where: str) -> str:
    """The rule with the numbers that its quantiles came to: ``cut.hit`` is ``aesthetic.score >= 4.3``."""
    for name in step.reads:
        op = planner.graph[name].op
        if not isinstance(op, Quantile):
            continue
        table = planner.table(name)
        values = read_files(table.uri, table.files(), ["id", "threshold"])["threshold"].drop_null()
        if len(values):
            number = repr(values[0].as_py())
            passes = f"({op.reads[0]}.{op.column} {'>=' if op.bottom is None else '<='} {number})"
            where = re.sub(rf"\b{name}\.threshold\b", number, where)
            where = re.sub(rf"\b{name}\.hit\b", passes, where)
    return where


def _is_numeric(planner: Planner, step: Step, c: Comparison) -> bool:
    if c.column == "id":
        return False
    kind = _kind(planner, step, c.step, c.column)
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
