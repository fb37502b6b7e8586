"""Failures: the error rows of a step by stage, type and message, with keys as examples.

They are those of the rows a step is wanted on now, also of a step that stopped before its receipt.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nextloom.op import CHILD_BITS, Expand
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE, Step
from nextloom.store.files import read_files, take_ids

EXAMPLES = 3


def failures(planner: Planner, step: Step) -> list[dict[str, Any]]:
    """Error rows of one column in groups, the largest first."""
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
    for row_id, error in zip(ids[live].tolist(), data["error"].filter(live).to_pylist(), strict=True):
        groups[error["stage"], error["type"], error["message"]].append(row_id)
    keys = _keys(planner, step, [i for members in groups.values() for i in members[:EXAMPLES]])
    return [
        {
            "step": step.name,
            "stage": stage,
            "type": kind,
            "message": message,
            "count": len(members),
            "examples": [keys[i] for i in members[:EXAMPLES]],
        }
        for (stage, kind, message), members in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def _keys(planner: Planner, step: Step, ids: list[int]) -> dict[int, str]:
    """id -> key of rows of the step's domain: the source, or the Expand whose children they are."""
    if not ids:
        return {}
    table = planner.dataset.rows if step.domain == SOURCE else planner.table(step.domain)
    found = take_ids(table.uri, table.files(), np.array(ids), ["key"])
    return dict(zip(ids, found["key"].to_pylist(), strict=True))
