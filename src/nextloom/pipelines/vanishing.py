"""Vanishing groups: where a recipe may lose a whole group of duplicates although one of its rows is good.

`hit` of a step of duplicates is false for one row of each group, chosen among all rows that the step runs on. Where
that row is rejected by anything else, its copies are still rejected as copies of it. `warning` finds the three ways
to write that, and says what to write instead: `distinct`, which elects among the rows that meet the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from nextloom.curation.decisions.certainty import certain
from nextloom.curation.decisions.rule import parse
from nextloom.curation.decisions.select import SelectWhere
from nextloom.op import Select
from nextloom.pipelines.recipe import SOURCE, Graph, Step


def warning(graph: Graph, step: Step) -> str:
    """What may be lost at this Select, and what to write instead; "" where nothing is."""
    if not isinstance(step.op, SelectWhere):
        return ""
    for name in drops_copies_by_hit(graph, step):
        if why := _rejected_otherwise(graph, step, name):
            return (
                f"{name}.hit is decided over all rows of {graph[name].rows}; where the one that stays of a group is "
                f"rejected by {why}, its good copies are rejected too. Write: {_instead(graph, step, name)}"
            )
    return _narrowed_later(graph, step)


def drops_copies_by_hit(graph: Graph, step: Step) -> list[str]:
    """Steps of duplicates whose `hit` alone may make a rule reject a row that is a copy."""
    assert isinstance(step.op, SelectWhere)
    found = []
    for name, column in parse(step.op.where).columns:
        if column == "hit" and name != SOURCE and has_groups(graph[name]):
            hit = (name, "hit")
            parts = [part for part in step.op.parts() if hit in _columns(part)]
            if any(certain(p, {hit: True}) is not True and certain(p, {hit: False}) is not False for p in parts):
                found.append(name)
    return found


def has_groups(step: Step) -> bool:
    """Whether a step is one of duplicates: it has the columns `group` and `hit`."""
    return step.kind == "reduce" and {"group", "hit"} <= set(step.op.columns().names)


def _columns(part: str) -> tuple[tuple[str, str], ...]:
    """(step, column) pairs of a part of a rule; none of one that reads no column, such as ``true``."""
    try:
        return parse(part).columns
    except ValueError:
        return ()


def _rejected_otherwise(graph: Graph, step: Step, name: str) -> str:
    """What may reject the row that stays of a group: other parts of the rule, or the Select before it."""
    assert isinstance(step.op, SelectWhere)
    for part in step.op.parts():
        steps = {other for other, _ in _columns(part)}
        if steps - {name} and certain(part, {(name, "hit"): False}) is not True:
            return f"`{part}`"
    if step.rows != graph[name].rows:
        return f"the select {step.rows!r} before it"
    return ""


def _instead(graph: Graph, step: Step, name: str) -> str:
    """The fields of the Select that say it right."""
    assert isinstance(step.op, SelectWhere)
    left = [part for part in step.op.parts() if (name, "hit") not in _columns(part)]
    where = " and ".join(f"({part})" if _is_or(part) and len(left) > 1 else part for part in left)
    groups = [*step.op.distinct, f"{name}.group"]
    fields = [f"where: {json.dumps(where or 'source.id is not null', ensure_ascii=False)}"]
    fields.append(f"distinct: {groups[0] if len(groups) == 1 else '[' + ', '.join(groups) + ']'}")
    by = getattr(graph[name].op, "by", None)
    if by and not step.op.best:
        fields.append(f"best: {by}{' asc' if getattr(graph[name].op, 'order', '') == 'lowest' else ''}")
    return ", ".join(fields)


def _is_or(part: str) -> bool:
    """Whether a part holds an OR at its top, and so needs brackets beside an AND."""
    return len(parse(f"{part} and source.id is not null").parts) == 1


def _narrowed_later(graph: Graph, step: Step) -> str:
    """A Select over rows of which an earlier one has kept one of each group, whose rule that one could have judged."""
    for earlier in _before(graph, step.rows):
        if not isinstance(earlier.op, SelectWhere):
            continue
        groups = [*earlier.op.distinct, *(f"{name}.group" for name in drops_copies_by_hit(graph, earlier))]
        seen = {earlier.rows, *(select.name for select in _before(graph, earlier.rows)), SOURCE, step.domain}
        if groups and all(graph[name].rows in seen for name in step.reads):
            told = groups[0] if len(groups) == 1 else f"[{', '.join(groups)}]"
            return (
                f"{earlier.name} has already kept one of each group of {', '.join(groups)}; where {step.name} rejects "
                f"that one, its good copies are gone too. Write `distinct: {told}` in {step.name} instead"
            )
    return ""


def _before(graph: Graph, rows: str) -> Iterator[Step]:
    """The Selects that rows have passed, the last first."""
    while rows in graph.steps and isinstance(graph[rows].op, Select):
        yield graph[rows]
        rows = graph[rows].rows
