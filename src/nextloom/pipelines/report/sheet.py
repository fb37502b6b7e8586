"""Contact sheet: pictures and captions of rows that a Select kept, and of those that each rule was first to remove.

Which rows is a draw by the hash of their ids, so that two reports of the same verdicts show the same ones. Memory: one
id per row of a window and `KEPT` per rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from nextloom.curation.decisions.select import SelectWhere
from nextloom.hashing import hash64
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import Step
from nextloom.pipelines.report.album import Album
from nextloom.pipelines.report.picked import spans
from nextloom.store.files import read_files

KEPT, REMOVED = 24, 12
"""Pictures of kept rows, and of the rows that one rule removed first."""
MOST_RULES = 12
"""Rules of one Select that are shown, those that remove most."""
NULL = " is null"


def sheet(planner: Planner, step: Step, album: Album) -> list[dict[str, Any]]:
    """Strips of rows, the kept ones first, then one per rule in the order of the rule.

    Returns:
        title ("kept" or the rule), kept (whether these rows are), count (rows there are), slots (in the album). Also
        `more`, in the last strip: how many rules are left out.
    """
    table = planner.table(step.name)
    files = table.files()
    drawn: dict[str, np.ndarray] = {}
    count: dict[str, int] = {}
    for low, high in spans(table):
        data = read_files(table.uri, files, ["id", "verdict", "reason"], low=low, high=high)
        ids, verdict = data["id"].to_numpy(), data["verdict"]
        kept = pc.equal(verdict, "kept").to_numpy()
        _draw(drawn, count, "", ids[kept], KEPT)
        rejected = data.filter(pc.equal(verdict, "rejected"))
        reasons, ids = rejected["reason"].combine_chunks().dictionary_encode(), rejected["id"].to_numpy()
        for code, reason in enumerate(reasons.dictionary.to_pylist()):
            mine = ids[(reasons.indices.to_numpy(zero_copy_only=False) == code)]
            _draw(drawn, count, _rule(step, reason), mine, REMOVED)
    known = list(step.op.rules()) if isinstance(step.op, SelectWhere) else []
    rules = sorted((rule for rule in count if rule), key=lambda rule: (-count[rule], rule))
    shown = sorted(rules[:MOST_RULES], key=lambda rule: known.index(rule) if rule in known else len(known))
    strips = [
        {
            "title": rule or "kept",
            "kept": not rule,
            "count": count[rule],
            "slots": album.want(step.domain, drawn[rule].tolist()),
        }
        for rule in ["", *shown]
        if count.get(rule)
    ]
    if strips:
        strips[-1]["more"] = len(rules) - len(shown)
    return strips


def _rule(step: Step, reason: str) -> str:
    """The rule that a reason names: one that is null there is the same rule."""
    if isinstance(step.op, SelectWhere) and reason not in step.op.rules():
        return reason.removesuffix(NULL)
    return reason


def _draw(drawn: dict[str, np.ndarray], count: dict[str, int], rule: str, ids: np.ndarray, most: int) -> None:
    """Add rows to those of `rule`, and keep the ids of the smallest hashes."""
    if len(ids):
        both = np.concatenate([drawn.get(rule, np.empty(0, np.int64)), ids])
        drawn[rule] = both[np.argsort(hash64(both, "sheet"))][:most]
        count[rule] = count.get(rule, 0) + len(ids)
