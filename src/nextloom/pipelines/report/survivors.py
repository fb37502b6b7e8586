"""Survivors: of each group of duplicates that a Select reads, how many rows it kept; none is told with the reason.

A group is *lost* where no row of it is kept although one meets all of the rule but what it says about copies: the
trap of `not duplicate.hit` beside other rules (see `vanishing.py`); `distinct` loses none. Counting holds three
numbers per group of two or more in memory.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nextloom.curation.decisions.rule import parse
from nextloom.curation.decisions.select import SelectWhere
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE, Step
from nextloom.pipelines.report.album import Album
from nextloom.pipelines.report.picked import spans
from nextloom.pipelines.vanishing import has_groups
from nextloom.store.files import read_files, take_ids

SHOWN = 6
"""Lost groups of which a good row is shown."""


def survivors(planner: Planner, step: Step, album: Album) -> list[dict[str, Any]]:
    """Per step of duplicates that the Select reads: what became of the groups with two or more of its rows.

    Returns:
        step, groups; of these `one` (one row kept), `several`, `none` (no row kept) and, of the last, `lost`; `shown`:
        slots in the album of a good row of some lost groups. Nothing where the columns lack rows that were judged.
    """
    if not isinstance(step.op, SelectWhere) or not planner.table(step.name).files():
        return []
    found = []
    for name in step.reads:
        if has_groups(planner.graph[name]):
            try:
                found.append(_count(planner, step, name, album))
            except LookupError:  # the column lacks rows that were judged: the step is stale
                continue
    return found


def _count(planner: Planner, step: Step, name: str, album: Album) -> dict[str, Any]:
    verdicts, table = planner.table(step.name), planner.table(name)
    files, columns = verdicts.files(), table.files()
    about_copies = _about_copies(step, name)
    groups, counts = np.empty(0, np.int64), np.empty((0, 4), np.int64)  # rows, kept, good, a good one
    for low, high in spans(verdicts):
        data = read_files(verdicts.uri, files, ["id", "verdict", "rules"], low=low, high=high)
        if not data.num_rows:
            continue
        ids = data["id"].to_numpy()
        read = take_ids(table.uri, columns, ids, ["group"])["group"]
        there = read.is_valid().to_numpy()
        if not there.any():
            continue
        kept = pc.equal(data["verdict"], "kept").to_numpy()[there]
        good = _good(data["rules"].to_pylist(), about_copies)[there]
        mine, place = np.unique(read.drop_null().to_numpy(), return_inverse=True)
        seen = np.stack([np.bincount(place, weight, len(mine)) for weight in (np.ones(len(place)), kept, good)], axis=1)
        example = np.full((len(mine), 1), -1)
        example[place[good], 0] = ids[there][good]
        both, at = np.unique(np.concatenate([groups, mine]), return_inverse=True)
        total = np.zeros((len(both), 4), np.int64)
        np.add.at(total[:, :3], at, np.concatenate([counts[:, :3], seen.astype(np.int64)]))
        total[:, 3] = -1
        np.maximum.at(total[:, 3], at, np.concatenate([counts[:, 3:], example])[:, 0])
        groups, counts = both, total
    counts = counts[counts[:, 0] > 1]
    none = counts[:, 1] == 0
    lost = counts[none & (counts[:, 2] > 0)]
    return {
        "step": name,
        "groups": len(counts),
        "one": int((counts[:, 1] == 1).sum()),
        "several": int((counts[:, 1] > 1).sum()),
        "none": int(none.sum()),
        "lost": len(lost),
        "shown": album.want(step.domain, lost[:SHOWN, 3].tolist()),
    }


def _about_copies(step: Step, name: str) -> set[str]:
    """Rules that reject a row for being a copy: those that read the step of duplicates alone, and `distinct`."""
    assert isinstance(step.op, SelectWhere)
    parts = [p for p in step.op.parts() if f"{name}." in p and {s for s, _ in _columns(p)} <= {name, SOURCE}]
    own = [rule for rule in step.op.rules() if rule not in step.op.parts()]
    return {*parts, *own}


def _columns(part: str) -> tuple[tuple[str, str], ...]:
    try:
        return parse(part).columns
    except ValueError:
        return ()


def _good(rules: list[str | None], about_copies: set[str]) -> np.ndarray:
    """(N,) bool: nothing but its being a copy was held against the row; of a failed row that is not known."""
    known: dict[str | None, bool] = {None: False}
    for text in set(rules) - known.keys():
        known[text] = set(json.loads(text or "[]")) <= about_copies
    return np.array([known[text] for text in rules], bool)
