"""Certainty: what a rule comes to when only some of its columns are known, in logic of true, false and unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextloom.curation.decisions.rule import expression, value_of


def certain(sql: str, known: Mapping[tuple[str, str], bool]) -> bool | None:
    """True or False where `sql` is that whatever the other columns hold; None where it depends on them.

    Null counts as false, as a rule that is null rejects.

    Args:
        sql: a rule, or a part of one.
        known: (step, column) -> its value.

    Raises:
        ValueError: as `rule.parse`.
    """
    return _certain(expression(sql), known)


def _certain(tree: dict[str, Any], known: Mapping[tuple[str, str], bool]) -> bool | None:
    kind = tree["type"]
    if kind in ("CONJUNCTION_AND", "CONJUNCTION_OR"):
        decisive = kind == "CONJUNCTION_OR"
        found = [_certain(child, known) for child in tree["children"]]
        return decisive if decisive in found else None if None in found else not decisive
    try:
        return bool(value_of(tree, known))
    except ValueError:
        pass
    if kind == "OPERATOR_NOT":
        inner = _certain(tree["children"][0], known)
        return None if inner is None else not inner
    return None
