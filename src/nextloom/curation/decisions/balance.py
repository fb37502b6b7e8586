"""Select `balance`: no class too large; which rows of a class stay is drawn by a hash of their keys.

    balanced: {op: balance, rows: keep, by: topic.label, max_ratio: 2.0}
    balanced: {op: balance, rows: keep, by: topic.labels, rate: {person: 0.5, television news broadcast: 0.5}}

One of four ways to say how much of a class may stay:

    max_rows    at most so many rows of each class
    max_ratio   at most so many times the median class, as the classes are before: floor(max_ratio * median), at least 1
    quota       class -> at most so many rows; `*` stands for each class not named, which else stays whole
    rate        class -> share of its rows, 0..1; `*` likewise

A row draws one number in [0, 1) from its key, `seed` and `by`, whatever its class. A cap of n keeps the rows with the
n smallest draws of the class, a rate those whose draw is below it. With several labels (a list column) a row stays if
each of its classes keeps it, so no class exceeds its cap, and with rates the smallest of its labels decides. So draws
nest: a higher cap or rate only adds rows. A row without a label (null or an empty list) is of no class, and stays.

Price paid: the common draw and the strictest label mean that a class whose rows also carry capped labels may end below
its cap; a cap or ratio is about all rows, so new rows may push old ones out (a rate never does). Two balances in a
row by the same column need different seeds, else the second rate finds only rows that drew low.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from nextloom.curation.decisions.classes import Classes, classes
from nextloom.errors import UserError, did_you_mean
from nextloom.hashing import uniform
from nextloom.op import Select

OTHERS = "*"
MODES = ("max_rows", "max_ratio", "quota", "rate")


class Balance(Select):
    """Rows that each of their classes has room for."""

    name: ClassVar[str] = "balance"
    code_version: ClassVar[int] = 1

    by: str
    """step.column with the class of a row: a string or an integer, or a list of them."""
    max_rows: int | None = Field(None, ge=1)
    """Largest number of rows of any class."""
    max_ratio: float | None = Field(None, gt=0)
    """Largest size of any class, as a multiple of the median size of the classes before."""
    quota: dict[str, Annotated[int, Field(ge=0)]] | None = None
    """Class -> largest number of rows; `*` for each class not named."""
    rate: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    """Class -> share of its rows that stay, 0..1; `*` for each class not named."""
    seed: int = 0
    """Another seed keeps other rows."""

    @field_validator("by")
    @classmethod
    def _step_and_column(cls, by: str) -> str:
        if len([part for part in by.split(".") if part]) != 2 or by.count(".") != 1:
            raise ValueError(f"write step.column, not {by!r}: which column holds the class of a row?")
        return by

    @model_validator(mode="after")
    def _one_mode(self) -> Balance:
        given = [mode for mode in MODES if getattr(self, mode) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(MODES)}, not {' and '.join(given) or 'none'}")
        if {} in (self.quota, self.rate):
            raise ValueError(f"{given[0]} names no class; `*` stands for all")
        return self

    def used(self) -> tuple[str, ...]:
        """The step that has the class."""
        return (self.by.partition(".")[0],)

    def check(self, known: Mapping[str, Iterable[str]], where: str = "") -> None:
        """Refuse a class column that is not there.

        Args:
            known: step -> names of its columns.
            where: config path for the message.

        Raises:
            UserError: an unknown step or column, with the nearest name.
        """
        step, _, column = self.by.partition(".")
        where = f"{where}.by".lstrip(".")
        if step not in known:
            raise UserError(f"no step {step!r}; {did_you_mean(step, known)}", where=where)
        names = list(known[step])
        if column not in names:
            raise UserError(f"{step!r} has no column {column!r}; {did_you_mean(column, names)}", where=where)

    def decide(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """A verdict per row.

        Args:
            columns: the step of `by` -> table(id, class, error), and `source` -> table(id, key), of the same ids in
                any order.

        Returns:
            table(id int64, verdict, reason, rules: string), sorted by id. `reason` is null for kept rows; for rejected
            ones the first of the row's labels, as it lists them, that had no room: ``person: 812 of 400`` (size of
            the class, its cap) or ``person: 812 at rate 0.5``; for failed ones `step: type: message`. `rules` is a
            JSON list of all labels that had none; null for failed rows.

        Raises:
            UserError: no such column, one that holds no class, or a quota or rate that misspells a class.
        """
        self.check({step: table.column_names for step, table in columns.items()})
        step, _, column = self.by.partition(".")
        table, rows = columns[step].sort_by("id"), columns["source"].sort_by("id")
        assert table["id"].equals(rows["id"]), "tables of different ids"
        failed = _failed(table, step)
        labels = classes(table[column], self.by)
        labels = labels.only(~failed.is_valid().to_numpy(zero_copy_only=False))
        rule = self._rule(labels)
        removed = rule.removed(labels, self._draws(rows["key"]))
        reason, rules = _spoken(labels, removed, rule.spoken(labels))
        verdict = np.where(np.isin(np.arange(table.num_rows), labels.rows[removed]), "rejected", "kept").astype(object)
        verdict[failed.is_valid().to_numpy(zero_copy_only=False)] = "failed"
        return pa.table(
            {
                "id": table["id"],
                "verdict": pa.array(verdict, pa.string()),
                "reason": pc.coalesce(failed, reason),
                "rules": pc.if_else(failed.is_valid(), pa.scalar(None, pa.string()), rules),
            }
        )

    def _draws(self, keys: pa.ChunkedArray) -> np.ndarray:
        """(N,) in [0, 1), from key, seed and `by` alone."""
        hashes = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys.to_pylist()]
        return uniform(np.frombuffer(b"".join(hashes), "<u8"), "balance", self.seed, self.by)

    def _rule(self, labels: Classes) -> _Rule:
        if self.rate is not None:
            return _Rule(rates=np.array(self._named(self.rate, labels, 1.0), float))
        if self.quota is not None:
            return _Rule(caps=np.array(self._named(self.quota, labels, math.inf), float))
        cap = self.max_rows
        if cap is None:
            sizes = sorted(size for size in labels.sizes().tolist() if size)  # a class whose rows failed has none
            middle = Fraction(sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2], 2) if sizes else Fraction(0)
            cap = max(1, math.floor(Fraction(str(self.max_ratio)) * middle))
        return _Rule(caps=np.full(len(labels.names), cap, float))

    def _named(self, limits: Mapping[str, float], labels: Classes, default: float) -> list[float]:
        """The limit of each class. A name that no row has is fine, unless it looks like one that some row has."""
        mode = "quota" if self.quota is not None else "rate"
        free = [name for name in labels.names if name not in limits]
        for name in limits:
            close = difflib.get_close_matches(name, free, n=1, cutoff=0.8)
            if name != OTHERS and name not in labels.names and close:
                raise UserError(
                    f"no row of {self.by} is of class {name!r}; did you mean {close[0]!r}?",
                    where=mode,
                    next=f"write it as the rows do, or name {close[0]!r} too if both are meant",
                )
        return [limits.get(name, limits.get(OTHERS, default)) for name in labels.names]


@dataclass(frozen=True)
class _Rule:
    """What a class has room for: caps, or rates."""

    caps: np.ndarray | None = None
    """(C,) largest number of rows, infinite for none."""
    rates: np.ndarray | None = None

    def removed(self, labels: Classes, draws_N: np.ndarray) -> np.ndarray:
        """(P,) bool: the class has no room for the row, per pair of row and class."""
        if self.rates is not None:
            return draws_N[labels.rows] >= self.rates[labels.codes]
        assert self.caps is not None
        order = np.lexsort((labels.rows, draws_N[labels.rows], labels.codes))  # equal draws: the smaller id first
        sizes = labels.sizes()
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return place >= self.caps[labels.codes]

    def spoken(self, labels: Classes) -> list[str]:
        """Of each class, why it had no room: ``person: 812 of 400``."""
        if self.rates is not None:
            limits = [f"at rate {rate:g}" for rate in self.rates]
        else:
            assert self.caps is not None
            limits = [f"of {cap:.0f}" for cap in self.caps]
        return [f"{n}: {size} {limit}" for n, size, limit in zip(labels.names, labels.sizes(), limits, strict=True)]


def table(labels: pa.Array | pa.ChunkedArray, verdicts: pa.Array | pa.ChunkedArray) -> pa.Table:
    """How many rows of each class there were and are.

    Args:
        labels: class of each row, or a list of classes.
        verdicts: kept, rejected or failed; failed rows are not counted, since their class is not known.

    Returns:
        table(class, before, after: int64, share_before, share_after: float64), largest class first, then by name.
        Shares are of rows, so with several labels per row they add up to more than 1.
    """
    found = classes(labels, "labels").only(pc.not_equal(verdicts, "failed").to_numpy(zero_copy_only=False))
    kept = pc.equal(verdicts, "kept").to_numpy(zero_copy_only=False)
    total = len(kept) - (pc.sum(pc.equal(verdicts, "failed")).as_py() or 0)
    before, after = found.sizes(), found.only(kept).sizes()
    order = sorted(range(len(found.names)), key=lambda i: (-before[i], found.names[i]))
    return pa.table(
        {
            "class": pa.array([found.names[i] for i in order], pa.string()),
            "before": pa.array(before[order], pa.int64()),
            "after": pa.array(after[order], pa.int64()),
            "share_before": pa.array(before[order] / max(1, total), pa.float64()),
            "share_after": pa.array(after[order] / max(1, int(kept.sum())), pa.float64()),
        }
    )


def _failed(table: pa.Table, step: str) -> pa.ChunkedArray | pa.Array:
    """``step: type: message`` of the rows with an error, null elsewhere."""
    if "error" not in table.column_names or not pa.types.is_struct(table.schema.field("error").type):
        return pa.nulls(table.num_rows, pa.string())
    error = table["error"].combine_chunks()
    parts = [pc.fill_null(pc.struct_field(error, name), "") for name in ("type", "message")]
    text = pc.binary_join_element_wise(f"{step}: ", parts[0], ": ", parts[1], "")
    return pc.if_else(error.is_valid(), text, pa.scalar(None, pa.string()))


def _spoken(labels: Classes, removed_P: np.ndarray, texts: list[str]) -> tuple[pa.Array, pa.Array]:
    """Reason (null where none) and JSON list of all reasons of each row."""
    rows, codes = labels.rows[removed_P], labels.codes[removed_P]
    first, start, count = np.unique(rows, return_index=True, return_counts=True)
    reason = np.full(labels.count, -1, np.int64)
    reason[first] = codes[start]
    taken = pa.array(reason, mask=reason < 0)
    one = pa.array([json.dumps([text], ensure_ascii=False) for text in texts], pa.string()).take(taken)
    rules = pc.fill_null(one, "[]").to_numpy(zero_copy_only=False).astype(object)
    for row, at, many in zip(*(a[count > 1].tolist() for a in (first, start, count)), strict=True):
        rules[row] = json.dumps([texts[code] for code in codes[at : at + many]], ensure_ascii=False)
    return pa.array(texts, pa.string()).take(taken), pa.array(rules, pa.string())
