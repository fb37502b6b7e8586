"""Changes: what a release would hold now beside what its last version holds: rows in, rows out, and why.

A row that left is gone from its source, or one of the Selects before the release rejects or fails it now: the first
that does is named with its reason. A row that came is new, or was known then: the verdicts that the last version was
made of say why it was not in it. Where nothing has changed since, the last version is compared with the one before.
Memory: the ids of both, 8 bytes a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.errors import UserError
from nextloom.io import join
from nextloom.op import Select
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE, ReleaseSpec, Step
from nextloom.pipelines.report.album import Album
from nextloom.pipelines.report.picked import pick
from nextloom.store.files import File
from nextloom.store.release import Release, latest, read_release
from nextloom.store.rowset import Guess
from nextloom.store.table import Table

MOST = 12
"""Reasons told each way."""
SHOWN = 12
"""Pictures each way."""
NEW, GONE, UNKNOWN = "new in the source", "gone from the source, or changed there", "not known any more"


def changes(planner: Planner, name: str, spec: ReleaseSpec, album: Album) -> dict[str, Any] | None:
    """How release `name` would change, or has changed last; None before its first version.

    Returns:
        name, base (the version it is compared with), now (a version, or "now"), state ("" or why nothing can be said),
        before, after, same (rows), `out` and `came` (why, count; the largest first), out_slots and came_slots (in the
        album), columns (steps whose values are of another fingerprint, or that are new).
    """
    newest = latest(planner.dataset.uri, name)
    if newest is None:
        return None
    try:
        return _compare(planner, name, spec, newest, album)
    except (LookupError, OSError, KeyError, UserError) as error:
        told = {"name": name, "base": newest.name, "now": "now", "out": [], "came": []}
        return {**told, "state": f"cannot be compared: {type(error).__name__}", "before": None}


def _compare(planner: Planner, name: str, spec: ReleaseSpec, newest: Release, album: Album) -> dict[str, Any]:
    told: dict[str, Any] = {"name": name, "base": newest.name, "now": "now", "out": [], "came": [], "columns": []}
    rows = planner.rowsets.get(spec.rows)
    if rows is None:
        return {**told, "state": "what it would hold now is not decided: run first", "before": len(newest.ids)}
    base, ids, extra = newest, rows.all_ids(), rows.extra if isinstance(rows, Guess) else 0
    columns = {step: planner.fingerprints.get(step) for step in spec.columns}
    if _columns(base, columns) == [] and not extra and np.array_equal(base.ids, ids):
        earlier = _earlier(planner, newest)
        if earlier is None:
            return {**told, "state": "its first version, and nothing has changed since", "before": len(ids)}
        base, ids = earlier, newest.ids
        columns = {step: column["fingerprint"] for step, column in newest.columns.items()}
        told |= {"base": base.name, "now": newest.name}
    out, came = np.setdiff1d(base.ids, ids), np.setdiff1d(ids, base.ids)
    domain = _domain(planner, spec.rows)
    return {
        **told,
        "state": "",
        "before": len(base.ids),
        "after": len(ids) + extra,
        "same": len(ids) - len(came),
        "out": _counted(_why_out(planner, spec.rows, out)),
        "came": _counted(chain(_why_in(base, spec.rows, came), [NEW] * extra)),
        "out_slots": album.want(domain, out[:: max(1, len(out) // SHOWN)][:SHOWN].tolist()),
        "came_slots": album.want(domain, came[:: max(1, len(came) // SHOWN)][:SHOWN].tolist()),
        "columns": _columns(base, columns),
    }


def _earlier(planner: Planner, release: Release) -> Release | None:
    stem, _, version = release.name.rpartition("-")
    return read_release(planner.dataset.uri, f"{stem}-{int(version) - 1:04d}")


def _columns(base: Release, columns: dict[str, str | None]) -> list[str]:
    """Steps whose column is another one than in `base`."""
    then = {step: column["fingerprint"] for step, column in base.columns.items()}
    return [step for step in {**then, **columns} if then.get(step) != columns.get(step)]


def _domain(planner: Planner, rows: str) -> str:
    if rows == SOURCE:
        return SOURCE
    step = planner.graph[rows]
    return rows if step.kind == "expand" else step.domain


def _counted(reasons: Iterable[str]) -> list[dict[str, Any]]:
    counts = Counter(reasons).most_common()
    rest = sum(count for _, count in counts[MOST:])
    told = [{"why": why, "count": count} for why, count in counts[:MOST]]
    return [*told, {"why": f"{len(counts) - MOST} other reasons", "count": rest}] if rest else told


def _why_out(planner: Planner, rows: str, ids: np.ndarray) -> Iterator[str]:
    """Why each row is not there now: the first Select, in the order of the steps, that does not keep it."""
    selects: list[Step] = []
    while rows in planner.graph.steps:
        step = planner.graph[rows]
        if isinstance(step.op, Select):
            selects.insert(0, step)
        rows = step.rows
    left = ids
    if len(left) and (selects[0].domain if selects else SOURCE) == SOURCE:
        source = planner.rowsets[SOURCE]
        assert source is not None
        live = np.isin(left, source.ids(int(left.min()), int(left.max())))
        yield from [GONE] * int((~live).sum())
        left = left[live]
    for step in selects:
        if not len(left):
            return
        said = _verdicts(planner, step, left)
        found = {row["id"]: row for row in said.to_pylist()}
        stays = []
        for row_id in left.tolist():
            verdict, reason = (found.get(row_id, {}).get(name) for name in ("verdict", "reason"))
            if verdict == "kept":
                stays.append(row_id)
            elif verdict is not None:
                yield f"{step.name}: {verdict}: {reason}"
            else:
                yield UNKNOWN if step.domain == SOURCE else GONE
        left = np.array(stays, np.int64)
    yield from [UNKNOWN] * len(left)


def _verdicts(planner: Planner, step: Step, ids: np.ndarray) -> pa.Table:
    """What the Select says of rows now: as it is stored, or, where it is stale, as it would decide."""
    schema = step.op.table_schema()
    receipt, table = planner.dataset.receipt(step.name), planner.table(step.name)
    if receipt and planner.matches(step, receipt, planner.inputs(step)):
        return pick(table, ids, ["verdict", "reason"], schema)
    decided = planner.decide(step)
    return decided.filter(pc.is_in(decided["id"], pa.array(ids))).select(["id", "verdict", "reason"])


def _why_in(base: Release, rows: str, ids: np.ndarray) -> Iterator[str]:
    """Why each row was not in `base`: it was not listed yet, or its Select said otherwise."""
    listed = max((file["max_id"] for file in base.document["rows"]["files"]), default=-1)
    new = ids > listed
    yield from [NEW] * int(new.sum())
    known, selection = ids[~new], base.document["selection"]
    if not len(known) or selection["kind"] != "kept":
        yield from [UNKNOWN] * len(known)
        return
    then = _Then(join(base.dataset_uri, selection["table"]), [File(**item) for item in selection["files"]])
    schema = pa.schema([("id", pa.int64()), ("verdict", pa.string()), ("reason", pa.string())])
    said = pick(then, known, ["verdict", "reason"], schema)
    for verdict, reason in zip(said["verdict"].to_pylist(), said["reason"].to_pylist(), strict=True):
        yield f"was {verdict} by {rows}: {reason}"
    yield from [f"was not among the rows of {rows}: a step before it has changed"] * (len(known) - said.num_rows)


class _Then(Table):
    """The files of a table as a release lists them."""

    def __init__(self, uri: str, files: list[File]) -> None:
        super().__init__(uri)
        self._listed = files

    def files(self) -> list[File]:
        return self._listed
