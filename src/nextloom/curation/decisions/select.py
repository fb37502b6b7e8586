"""Select `select`: a rule in SQL over the columns of steps; a verdict and a reason per row.

    keep: {op: select, where: "aesthetic.score > 4.3 and photo.short_side >= 256 and not duplicate.hit"}

A rule names columns as `step.column` (`source.caption` for what the source brought). The parts that AND joins at
the top are judged one by one: a row is kept when all are true and rejected with the first that is not. It failed
when a step that the rule names has an error there, whatever SQL would make of its null. A number that lies outside
of the scale of the score it stands beside is refused, since it was meant for another scorer; `scales` says which
scale a rule was written for, and lets any number pass on that one.

Price paid: a rule sees one row (see `rule.py`); what needs all rows, such as a quantile, is a Reduce whose column
the rule then reads. What is computed first (`aesthetic.score * 2 > 9`) is not checked against a scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import duckdb
import pyarrow as pa
from pydantic import field_validator

from nextloom.curation.decisions.rule import compared_columns, comparisons, connect, parse
from nextloom.curation.scores.scales import spoken
from nextloom.errors import UserError, did_you_mean
from nextloom.op import Scale, Select


class SelectWhere(Select):
    """Rows for which `where` is true."""

    name: ClassVar[str] = "select"
    code_version: ClassVar[int] = 1

    where: str
    """A SQL expression over `step.column`; true keeps a row."""
    scales: dict[str, str] = {}
    """Step or step.column -> the scale that the rule was written for; another one is refused. Changes no verdict."""

    @field_validator("where")
    @classmethod
    def _about_one_row(cls, where: str) -> str:
        parse(where)
        return where

    def identity(self) -> dict[str, Any]:
        """Without `scales`, which can refuse a rule but not change its verdicts."""
        return {name: value for name, value in super().identity().items() if name != "scales"}

    def used(self) -> tuple[str, ...]:
        """Steps that the rule names, in its order."""
        return tuple(dict.fromkeys(step for step, _ in parse(self.where).columns))

    def rules(self) -> tuple[str, ...]:
        """The parts that AND joins at the top, as written: what `decide` gives as reasons."""
        return parse(self.where).parts

    def check(self, known: Mapping[str, Iterable[str]], where: str = "") -> None:
        """Refuse a rule that names what is not there.

        Args:
            known: step -> names of its columns.
            where: config path for the message.

        Raises:
            UserError: an unknown step or column, with the nearest name.
        """
        where = f"{where}.where".lstrip(".")
        for step, column in parse(self.where).columns:
            if step not in known:
                raise UserError(f"no step {step!r}; {did_you_mean(step, known)}", where=where)
            names = list(known[step])
            if column not in names:
                raise UserError(f"{step!r} has no column {column!r}; {did_you_mean(column, names)}", where=where)

    def check_scales(self, scales: Mapping[str, Mapping[str, Scale]], where: str = "") -> None:
        """Refuse a rule that was written for another scale.

        Args:
            scales: step -> column -> its scale, of the steps that the rule reads.
            where: config path for the message.

        Raises:
            UserError: `scales` names another scale than the column's, a number lies outside of the column's scale
                (unless `scales` names it), or two columns of different scales are compared.
        """
        read = {(step, column): scales.get(step, {}).get(column) for step, column in parse(self.where).columns}
        named = set()
        for name, expected in self.scales.items():
            at = f"{where}.scales.{name}".lstrip(".")
            for place, scale in _named(name, read, at):
                if scale.name != expected:
                    what = f"{'.'.join(place)} is on scale {spoken(scale)}, not on {expected!r}"
                    raise UserError(what, where=at, next=_by_rank(place))
                named.add(place)
        at = f"{where}.where".lstrip(".")
        for found in comparisons(self.where):
            place = (found.step, found.column)
            scale = read[place]
            if scale is None or place in named or found.operator in ("=", "<>"):
                continue
            if not scale.low <= found.value <= scale.high:
                what = f"{'.'.join(place)} is on scale {spoken(scale)}, and {found.value:g} is not on it"
                side = "top" if found.operator.startswith(">") else "bottom"
                raise UserError(f"{what}: a threshold of another scorer?", where=at, next=_by_rank(place, side))
        for left, right in compared_columns(self.where):
            a, b = read[left], read[right]
            if a and b and a.name != b.name:
                what = f"{'.'.join(left)} is on scale {spoken(a)}, {'.'.join(right)} on {spoken(b)}"
                raise UserError(f"{what}: they do not compare", where=at, next=_by_rank(left))

    def decide(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """A verdict per row.

        Args:
            columns: step -> table(id, values..., error struct) for every step in `used()`, each with the same ids
                in any order; `source` is the rows table and may lack `error`.

        Returns:
            table(id int64, verdict, reason, rules: string), sorted by id. `reason` is null for kept rows, the
            first rule that is not true for rejected ones (`... is null` if it is null), `step: type: message` for
            failed ones. `rules` is a JSON list of all rules that are not true; null for failed rows.

        Raises:
            UserError: an unknown step or column, a rule that is no boolean, or one that a value cannot take. Its
                `where` is the field, `where`; the step's place in the recipe is for the caller to put before it.
        """
        self.check({step: table.column_names for step, table in columns.items()})
        tables = {step: columns[step] for step in self.used()}
        connection = connect(threads=max(1, int(self.execution.num_cpus)))
        try:
            for step, table in tables.items():
                connection.register(step, table)
            values = self._values(tables)
            _assert_boolean(self.rules(), [str(kind) for kind in connection.sql(values).types[2:]])
            verdicts = connection.sql(_verdicts(self.rules(), values)).to_arrow_table()
        except duckdb.Error as error:
            raise UserError(f"the rule cannot be evaluated: {error}", where="where") from None
        finally:
            connection.close()
        assert {table.num_rows for table in tables.values()} == {verdicts.num_rows}, "tables of different ids"
        return verdicts

    def _values(self, tables: Mapping[str, pa.Table]) -> str:
        """Query for (id, failed text or null, a boolean per rule)."""
        first, *others = map(_name, tables)
        failed = ["NULL::VARCHAR"]
        for step, table in tables.items():
            if "error" in table.column_names and pa.types.is_struct(table.schema.field("error").type):
                error = f"{_name(step)}.error"
                failed.append(
                    f"CASE WHEN {error} IS NOT NULL THEN "
                    f"concat({_text(step + ': ')}, {error}['type'], ': ', {error}['message']) END"
                )
        values = ", ".join(f"({rule}\n) AS r{i}" for i, rule in enumerate(self.rules()))
        joins = "".join(f" JOIN {other} ON {other}.id = {first}.id" for other in others)
        return f"SELECT {first}.id AS id, coalesce({', '.join(failed)}) AS failed, {values} FROM {first}{joins}"


def _named(
    name: str, read: Mapping[tuple[str, str], Scale | None], where: str
) -> Iterator[tuple[tuple[str, str], Scale]]:
    """The scaled columns of the rule that `name` (step or step.column) means."""
    step, _, column = name.partition(".")
    mine = {place: scale for place, scale in read.items() if place[0] == step and column in ("", place[1])}
    if not mine:
        known = [*dict.fromkeys(step for step, _ in read), *map(".".join, read)]
        raise UserError(f"the rule does not read {name!r}; {did_you_mean(name, known)}", where=where)
    if not any(mine.values()):
        raise UserError(f"{name!r} is on no scale: its numbers mean what they say", where=where, next="take it out")
    yield from ((place, scale) for place, scale in mine.items() if scale)


def _by_rank(place: tuple[str, str], side: str = "top") -> str:
    step, column = place
    rank = f"{{op: quantile, reads: [{step}], column: {column}, {side}: 0.30}}"
    return f"choose a number on that scale, or a rank, which needs none: `cut: {rank}` and then `cut.hit`"


def _verdicts(rules: tuple[str, ...], values: str) -> str:
    """Query over the rows of query `values` for (id, verdict, reason, rules)."""
    spoken = [(f"r{i}", _text(rule), _text(f"{rule} is null")) for i, rule in enumerate(rules)]
    listed = [(f"r{i}", _json(rule), _json(f"{rule} is null")) for i, rule in enumerate(rules)]
    reason = " ".join(f"WHEN {r} IS NULL THEN {null} WHEN NOT {r} THEN {false}" for r, false, null in spoken)
    each = ", ".join(f"CASE WHEN {r} IS NULL THEN {null} WHEN NOT {r} THEN {false} END" for r, false, null in listed)
    kept = " AND ".join(r for r, *_ in spoken)
    return f"""SELECT id,
        CASE WHEN failed IS NOT NULL THEN 'failed' WHEN {kept} THEN 'kept' ELSE 'rejected' END AS verdict,
        CASE WHEN failed IS NOT NULL THEN failed {reason} END AS reason,
        CASE WHEN failed IS NULL THEN concat('[', concat_ws(', ', {each}), ']') END AS rules
        FROM ({values}) ORDER BY id"""


def _assert_boolean(rules: tuple[str, ...], kinds: list[str]) -> None:
    for rule, kind in zip(rules, kinds, strict=True):
        if kind != "BOOLEAN":
            raise UserError(f"{rule!r} is {kind}, not true or false", where="where", next=f"compare it: {rule} > 0")


def _name(step: str) -> str:
    return '"' + step.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _json(value: str) -> str:
    return _text(json.dumps(value, ensure_ascii=False))
