"""Failures by kind: the error rows of a step by stage, type and message, with keys and a detail as examples.

They are those of the rows a step is wanted on now, also of a step that stopped before its receipt. `detail` is what
one row adds to the message that all of its kind share.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nextloom.op import CHILD_BITS, INPUT_FAILED, Expand
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE, Step
from nextloom.printable import printable
from nextloom.store.files import read_files, take_ids

EXAMPLES = 3
MOST = 40
"""Kinds told of one step; the rest, the rarest, are told as one line."""
LENGTH = 300
"""Characters of a key or a detail that are shown."""


def failures(planner: Planner, step: Step) -> list[dict[str, Any]]:
    """Error rows of one column by kind, the largest first.

    Returns:
        step, stage, type, message, count, `examples` (keys), `detail` (of the first example that has one, or None),
        `inherited` (the row failed in an earlier step, and here for that reason alone).
    """
    table, wanted = planner.table(step.name), planner.rowsets[step.rows]
    bad_files = [f for f in table.files() if f.errors]
    if not bad_files or wanted is None:
        return []
    data = read_files(table.uri, bad_files, ["id", "error"])
    data = data.filter(pc.is_valid(data["error"]))
    ids = data["id"].to_numpy()
    if isinstance(step.op, Expand):
        ids = ids >> CHILD_BITS  # the marker of a parent
    live = np.zeros(len(ids), bool)
    for window in wanted.windows():
        live |= np.isin(ids, wanted.ids(*window))
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    details: dict[tuple[str, str, str], str] = {}
    for row_id, error in zip(ids[live].tolist(), data["error"].filter(live).to_pylist(), strict=True):
        kind = error["stage"], error["type"], error["message"]
        groups[kind].append(row_id)
        if error.get("detail"):
            details.setdefault(kind, error["detail"])
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    rest = [row_id for _, members in ordered[MOST:] for row_id in members]
    if rest:
        ordered = [*ordered[:MOST], (("", "", f"{len(groups) - MOST} other kinds"), rest)]
    keys = _keys(planner, step, [i for _, members in ordered for i in members[:EXAMPLES]])
    return [
        {
            "step": step.name,
            "stage": stage,
            "type": kind,
            "message": message,
            "count": len(members),
            "examples": [printable(keys[i])[:LENGTH] for i in members[:EXAMPLES]],
            "detail": printable(details[stage, kind, message])[:LENGTH] if (stage, kind, message) in details else None,
            "inherited": kind == INPUT_FAILED,
        }
        for (stage, kind, message), members in ordered
    ]


def _keys(planner: Planner, step: Step, ids: list[int]) -> dict[int, str]:
    """id -> key of rows of the step's domain: the source, or the Expand whose children they are."""
    if not ids:
        return {}
    table = planner.dataset.rows if step.domain == SOURCE else planner.table(step.domain)
    found = take_ids(table.uri, table.files(), np.array(ids), ["key"])
    return dict(zip(ids, found["key"].to_pylist(), strict=True))
