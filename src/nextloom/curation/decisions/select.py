"""Select `select`: a rule in SQL over the columns of steps; a verdict and a reason per row.

    keep: {op: select, where: "aesthetic.score > 4.3 and photo.short_side >= 256", distinct: duplicate.group,
           best: aesthetic.score}

A rule names columns as `step.column` (`source.caption` for what the source brought). The parts that AND joins at
the top are judged one by one: a row is kept when all are true and rejected with the first that is not, a part that
is null included (`x is null or x > 0.5` keeps those). It failed when a step that the rule names has an error there,
whatever SQL would make of its null. `distinct` keeps one row of each group, the best, elected among those that meet
all parts (see `distinct.py`). A number that lies outside of the scale of the score it stands beside is refused, since
it was meant for another scorer; `scales` says which scale a rule was written for, and lets any number pass on that
one.

Price paid: a rule sees one row (see `rule.py`); what needs all rows, such as a quantile, is a Reduce whose column
the rule then reads. What is computed first (`aesthetic.score * 2 > 9`) is not checked against a scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import field_validator, model_validator

from nextloom.curation.decisions.distinct import area, connected, group_column, has_order, names_groups, order, ranking
from nextloom.curation.decisions.rule import compared_columns, comparisons, connect, parse
from nextloom.curation.scores.scales import spoken
from nextloom.errors import UserError, did_you_mean
from nextloom.op import Scale, Select

_JUDGED = '"judged rows"'
_OF_A_VALUE = (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException)
"""What a value raises that a rule does not fit: text that is no number, a number too large, text that is no JSON."""
"""Name of a table beside those of steps, whose names hold no blank."""


class SelectWhere(Select):
    """Rows for which `where` is true; with `distinct` one of each group."""

    name: ClassVar[str] = "select"
    code_version: ClassVar[int] = 1

    where: str
    """A SQL expression over `step.column`; true keeps a row."""
    distinct: tuple[str, ...] = ()
    """step.column of groups, or a list of them: of the rows that meet `where`, one of each group is kept."""
    best: tuple[str, ...] = ()
    """Which one: the row with the highest value of this SQL expression (with `asc` behind it: the lowest), or of a
    list of them, one after the other. Then the larger area where the rule reads width and height, then the older."""
    scales: dict[str, str] = {}
    """Step or step.column -> the scale that the rule was written for; another one is refused. Changes no verdict."""

    @field_validator("where")
    @classmethod
    def _about_one_row(cls, where: str) -> str:
        parse(where)
        return where

    @field_validator("distinct", "best", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("distinct")
    @classmethod
    def _groups(cls, distinct: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(map(group_column, distinct))) < len(distinct):
            raise ValueError("a column of groups is named twice")
        return distinct

    @field_validator("best")
    @classmethod
    def _orders(cls, best: tuple[str, ...]) -> tuple[str, ...]:
        for text in best:
            order(text)
        return best

    @model_validator(mode="after")
    def _best_of_what(self) -> SelectWhere:
        if self.best and not self.distinct:
            raise ValueError("`best` says which row of a group stays, and needs `distinct: step.group`")
        return self

    def identity(self) -> dict[str, Any]:
        """Without `scales`, which can refuse a rule but not change its verdicts."""
        return {name: value for name, value in super().identity().items() if name != "scales"}

    def used(self) -> tuple[str, ...]:
        """Steps that the rule names, in its order, then those of `distinct` and `best`."""
        return tuple(dict.fromkeys(step for _, places in self._read() for step, _ in places))

    def columns(self) -> pa.Schema:
        """verdict, reason, rules; with `distinct` also `survivor`: the id of the row that was kept of the row's group,
        its own where it was kept, null where none of the group was."""
        return super().columns().append(pa.field("survivor", pa.int64())) if self.distinct else super().columns()

    def parts(self) -> tuple[str, ...]:
        """The parts of `where` that AND joins at the top, as written."""
        return parse(self.where).parts

    def rules(self) -> tuple[str, ...]:
        """What `decide` gives as reasons: the parts of `where`, then ``distinct`` with its columns."""
        return (*self.parts(), f"distinct {', '.join(self.distinct)}") if self.distinct else self.parts()

    def _read(self) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
        """(field, the (step, column) pairs that it names)."""
        groups = tuple(map(group_column, self.distinct))
        orders = tuple(place for text in self.best for place in order(text).columns)
        return [("where", parse(self.where).columns), ("distinct", groups), ("best", orders)]

    def check(self, known: Mapping[str, Iterable[str]], where: str = "") -> None:
        """Refuse a rule that names what is not there.

        Args:
            known: step -> names of its columns.
            where: config path for the message.

        Raises:
            UserError: an unknown step or column, with the nearest name.
        """
        for field, places in self._read():
            at = f"{where}.{field}".lstrip(".")
            for step, column in places:
                if step not in known:
                    raise UserError(f"no step {step!r}; {did_you_mean(step, known)}", where=at)
                names = list(known[step])
                if column not in names:
                    raise UserError(f"{step!r} has no column {column!r}; {did_you_mean(column, names)}", where=at)

    def check_types(self, schemas: Mapping[str, pa.Schema], where: str = "") -> None:
        """Refuse a rule that does not fit the types of its columns, by deciding a row of nulls.

        Args:
            schemas: step -> columns of its table, as in `decide`.
            where: config path for the message.

        Raises:
            UserError: as `decide`.
        """
        try:
            self.decide({step: _nulls(schemas[step]) for step in self.used()})
        except UserError as error:
            at = f"{where}.{error.where or 'where'}".lstrip(".")
            raise UserError(error.what, where=at, next=error.next) from None

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
            failed ones. `rules` is a JSON list of all rules that are not true; null for failed rows. With `distinct`
            a copy of a kept row has the reason ``distinct step.group``, and a column `survivor: int64` follows.

        Raises:
            UserError: an unknown step or column, a rule that is no boolean, or one that fits no row (a row with a
                value that it does not fit, such as text that is no number, is failed). Its `where` is the field,
                such as `where`; the step's place in the recipe is for the caller to put before.
        """
        self.check({step: table.column_names for step, table in columns.items()})
        tables = {step: columns[step] for step in self.used()}
        connection = connect(threads=max(1, int(self.execution.num_cpus)))
        try:
            for step, table in tables.items():
                connection.register(step, table)
            try:
                verdicts = self._judge(connection, tables)
            except _OF_A_VALUE:
                verdicts = self._judge(connection, tables, guarded=True)
                if not pc.any(pc.not_equal(verdicts["verdict"], "failed")).as_py():  # it is the rule, not its values
                    raise
        except duckdb.Error as error:
            told, _, _ = str(error).partition("\n")  # what follows is our query, not the rule
            cast = isinstance(error, duckdb.ConversionException)
            hint = "write try_cast(... AS double): it is null where a value is none" if cast else None
            raise UserError(f"the rule cannot be evaluated: {told}", where="where", next=hint) from None
        finally:
            connection.close()
        assert {table.num_rows for table in tables.values()} == {verdicts.num_rows}, "tables of different ids"
        return verdicts

    def _judge(
        self, connection: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table], guarded: bool = False
    ) -> pa.Table:
        """What `decide` returns."""
        values = self._values(tables, guarded=guarded)
        _assert_boolean(self.parts(), [str(kind) for kind in connection.sql(values).types[2:]])
        if self.distinct:
            values = self._elect(connection, tables, guarded)
        return connection.sql(_verdicts(self.rules(), values, bool(self.distinct))).to_arrow_table()

    def ranks(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """What `distinct` elects by, among the rows given.

        Args:
            columns: as for `decide`; `where` need not be true of any.

        Returns:
            table(id, root, place: int64) sorted by id: rows of one group have one `root`; the lower `place` is better.
        """
        connection = connect()
        tables = {step: columns[step] for step in self.used()}
        try:
            for step, table in tables.items():
                connection.register(step, table)
            order_by = self._grouped(connection, tables)
            place = f"row_number() OVER (ORDER BY {order_by}) AS place"
            return connection.sql(f"SELECT id, root, {place} FROM {_JUDGED} ORDER BY id").to_arrow_table()
        finally:
            connection.close()

    def _elect(self, connection: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table], guarded: bool) -> str:
        """Query for what `_values` gives, one more boolean (it is the one of its group, or meets not all parts) and
        the survivor."""
        order_by = self._grouped(connection, tables, guarded)
        met = [f"r{i}" for i in range(len(self.parts()))]
        passing = f"SELECT *, coalesce(failed IS NULL AND {' AND '.join(met)}, FALSE) AS passes FROM {_JUDGED}"
        first = f"first_value(CASE WHEN passes THEN id END) OVER (PARTITION BY root ORDER BY passes DESC, {order_by})"
        survivor = "CASE WHEN failed IS NULL THEN best END AS survivor"
        return (
            f"SELECT {', '.join(['id', 'failed', *met])}, (NOT passes OR best = id) AS r{len(met)}, {survivor} "
            f"FROM (SELECT *, {first} AS best FROM ({passing}))"
        )

    def _grouped(
        self, connection: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table], guarded: bool = False
    ) -> str:
        """Put the judged rows, each with the `root` of its group, into a table in memory; returns the ORDER BY of the
        best."""
        groups, terms = list(map(group_column, self.distinct)), list(map(order, self.best))
        sized = area(tables)
        size = f"{_name(sized)}.width::HUGEINT * {_name(sized)}.height" if sized else "NULL::HUGEINT"
        more = [f"{_name(step)}.{_name(column)} AS g{i}" for i, (step, column) in enumerate(groups)]
        more += [f"({term.sql}\n) AS b{i}" for i, term in enumerate(terms)]
        found = connection.sql(self._values(tables, [*more, f"{size} AS area"], guarded))
        kinds = [str(kind) for kind in found.types[2 + len(self.parts()) : -1]]
        for text, kind in zip(self.distinct, kinds, strict=False):
            if not names_groups(kind):
                raise UserError(f"{text} is {kind}; a group is named by a whole number or a text", where="distinct")
        kinds = kinds[len(groups) :]
        for text, kind in zip(self.best, kinds, strict=True):
            if not has_order(kind):
                raise UserError(f"{text!r} is {kind}, of which none is the best", where="best", next="name a number")
        judged = found.order("id").to_arrow_table()
        root = connected([judged[f"g{i}"] for i in range(len(groups))], judged.num_rows)
        connection.register(_JUDGED.strip('"'), judged.append_column("root", pa.array(root)))
        return ranking([(term, f"b{i}", kind) for i, (term, kind) in enumerate(zip(terms, kinds, strict=True))])

    def _values(self, tables: Mapping[str, pa.Table], more: Sequence[str] = (), guarded: bool = False) -> str:
        """Query for (id, failed text or null, a boolean per part, `more`).

        `guarded`: a row whose value a part cannot take has failed, and its part is null; else the query ends there.
        """
        first, *others = map(_name, tables)
        failed = ["NULL::VARCHAR"]
        for step, table in tables.items():
            if "error" in table.column_names and pa.types.is_struct(table.schema.field("error").type):
                error = f"{_name(step)}.error"
                failed.append(
                    f"CASE WHEN {error} IS NOT NULL THEN "
                    f"concat({_text(step + ': ')}, {error}['type'], ': ', {error}['message']) END"
                )
        parts = [f"({part}\n)" for part in self.parts()]
        if guarded:
            tried = [f"TRY(struct_pack(met := {part}))" for part in parts]
            parts = [f"{each}['met']" for each in tried]
            for part, each in zip(self.parts(), tried, strict=True):
                text = f"where: CannotEvaluate: a value of this row does not fit {part}"
                failed.append(f"CASE WHEN {each} IS NULL THEN {_text(text)} END")
        values = ", ".join([*(f"{part} AS r{i}" for i, part in enumerate(parts)), *more])
        joins = "".join(f" JOIN {other} ON {other}.id = {first}.id" for other in others)
        return f"SELECT {first}.id AS id, coalesce({', '.join(failed)}) AS failed, {values} FROM {first}{joins}"


def _nulls(schema: pa.Schema) -> pa.Table:
    """A row of nulls with an id: constants of a rule are not looked at where there is no row."""
    return pa.table({f.name: pa.array([0], f.type) if f.name == "id" else pa.nulls(1, f.type) for f in schema})


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


def _verdicts(rules: tuple[str, ...], values: str, distinct: bool) -> str:
    """Query over the rows of query `values` for (id, verdict, reason, rules), and the survivor with `distinct`."""
    spoken = [(f"r{i}", _text(rule), _text(f"{rule} is null")) for i, rule in enumerate(rules)]
    listed = [(f"r{i}", _json(rule), _json(f"{rule} is null")) for i, rule in enumerate(rules)]
    reason = " ".join(f"WHEN {r} IS NULL THEN {null} WHEN NOT {r} THEN {false}" for r, false, null in spoken)
    each = ", ".join(f"CASE WHEN {r} IS NULL THEN {null} WHEN NOT {r} THEN {false} END" for r, false, null in listed)
    kept = " AND ".join(r for r, *_ in spoken)
    return f"""SELECT id,
        CASE WHEN failed IS NOT NULL THEN 'failed' WHEN {kept} THEN 'kept' ELSE 'rejected' END AS verdict,
        CASE WHEN failed IS NOT NULL THEN failed {reason} END AS reason,
        CASE WHEN failed IS NULL THEN concat('[', concat_ws(', ', {each}), ']') END AS rules
        {", survivor" if distinct else ""} FROM ({values}) ORDER BY id"""


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
