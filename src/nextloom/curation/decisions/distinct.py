"""One of each group among the rows that meet a rule: what `distinct` and `best` of a Select mean.

    keep: {op: select, where: "aesthetic.score > 4.3", distinct: duplicate.group, best: aesthetic.score}

`hit` of a step of duplicates is decided over all rows: where the one that stays fails another rule, its good copies
are rejected as its copies, and the whole group is gone. `distinct` elects after the other rules, among those rows
that meet them. A row without a group (null) is a group of its own. Several columns are taken together: rows that
share a group in any of them are of one group, and so is what that connects, whether or not the rows between meet the
rule; so the groups do not move with a threshold, and no two kept rows share a group.

The best row stays: by each of `best` in turn (the highest unless it ends in `asc`; null and NaN last), then by the
larger area where the rule reads a step that has whole numbers `width` and `height`, then by the smaller id, so that
a new row never takes the place of an equal one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.curation.decisions.rule import column_of, parse
from nextloom.curation.duplicates.groups import Components

_DIRECTION = re.compile(r"(.*\S)\s+(asc|desc)\s*", re.DOTALL | re.IGNORECASE)
_ORDERED = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DECIMAL\(.*\)|BOOLEAN|DATE|TIME.*|VARCHAR")
_FLOATING = ("FLOAT", "DOUBLE")


@dataclass(frozen=True, slots=True)
class Order:
    """One term of `best`."""

    sql: str
    columns: tuple[tuple[str, str], ...]
    """(step, column) pairs that it reads."""
    ascending: bool
    """The lowest is the best."""


def order(text: str) -> Order:
    """A term of `best`: a SQL expression over `step.column`, with ``asc`` or ``desc`` behind it.

    Raises:
        ValueError: as `rule.parse`.
    """
    found = _DIRECTION.fullmatch(text)
    sql = found[1] if found else text
    return Order(sql, parse(sql).columns, bool(found) and found[2].lower() == "asc")


def group_column(text: str) -> tuple[str, str]:
    """(step, column) that `distinct` names.

    Raises:
        ValueError: it is not of the form step.column.
    """
    try:
        place = column_of(text)
    except ValueError:  # no SQL at all
        place = None
    if place is None:
        raise ValueError(f"write step.column, such as duplicate.group, not {text!r}; several as a list")
    return place


def has_order(kind: str) -> bool:
    """Whether values of a DuckDB type can be ranked."""
    return kind in _FLOATING or bool(_ORDERED.fullmatch(kind))


def names_groups(kind: str) -> bool:
    """Whether values of a DuckDB type can name groups: whole numbers and texts, not measures and not lists."""
    return bool(_ORDERED.fullmatch(kind))


def area(tables: Mapping[str, pa.Table]) -> str | None:
    """The step that has whole numbers `width` and `height`, so that the area of a row is known; None without one."""
    for step, table in tables.items():
        schema = table.schema
        if all(n in schema.names and pa.types.is_integer(schema.field(n).type) for n in ("width", "height")):
            return step
    return None


def connected(groups: Sequence[pa.ChunkedArray], count: int) -> np.ndarray:
    """(count,) int64: the first position of each row's group, over one or several columns of groups.

    Memory: 8 bytes a row, and 16 per link while they are joined.
    """
    links = Components(count)
    for column in groups:
        code = pc.fill_null(pc.index_in(column, pc.unique(column.drop_null())), -1).to_numpy()
        place = np.flatnonzero(code >= 0)
        first = np.unique(code[place], return_index=True)[1]
        links.link(place[first][code[place]], place)
    return links.roots()


def ranking(terms: Sequence[tuple[Order, str, str]]) -> str:
    """ORDER BY of the best first, the same for any order of rows.

    Args:
        terms: `best`, with the name of each one's column and its DuckDB type; beside them stand `area` and `id`.
    """
    ranked = []
    for term, name, kind in terms:
        value = f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END" if kind in _FLOATING else name
        ranked.append(f"{value} {'ASC' if term.ascending else 'DESC'} NULLS LAST")
    return ", ".join([*ranked, "area DESC NULLS LAST", "id"])
