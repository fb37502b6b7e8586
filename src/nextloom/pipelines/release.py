"""Making a release: only of steps that are fresh, so that a manifest never mixes old and new.

A release that was published once is kept up: a run that changes what it holds ends with its next version, the one
commit that readers see. Until then, and after, the old version reads as before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from nextloom.errors import Damaged, UserError, did_you_mean
from nextloom.op import digest
from nextloom.pipelines.plan import BLOCKED, FRESH, MISSING, STALE, Planner, StepPlan
from nextloom.pipelines.recipe import SOURCE, Recipe
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files, take_ids
from nextloom.store.release import Release, content_digest, latest, publish, versions
from nextloom.store.rowset import RowSet, describe
from nextloom.store.table import Table

SHRINKS_BELOW = 2
"""A new version with fewer than one in so many rows of the last one is refused."""


class Shrinks(UserError):
    """A release would lose more than half of its rows."""


def make_release(
    recipe: Recipe, dataset: Dataset, name: str, planner: Planner | None = None, *, allow_shrink: bool = False
) -> tuple[Release, bool]:
    """Publish release `name` of the recipe; one equal to the newest is not written again.

    Args:
        recipe, dataset: whose; the caller holds the lease.
        name: of the release in the recipe.
        planner: of this recipe, when there is one; a new one lists the source.
        allow_shrink: publish it also with less than half of the rows that its last version has.

    Returns:
        The release, and whether it is new.

    Raises:
        Damaged: a column it needs is damaged.
        Shrinks: it would lose more than half of its rows, and `allow_shrink` is not set.
        UserError: unknown name, or a step it needs is not fresh (says which, and the command).
    """
    content = fresh_content(recipe, dataset, name, planner or Planner(recipe, dataset))
    if not allow_shrink:
        _refuse_shrinking(dataset, name, content["rows_count"])
    return publish(dataset, name, content)


def fresh_content(recipe: Recipe, dataset: Dataset, name: str, planner: Planner) -> dict[str, Any]:
    """What release `name` would hold now; raises as `make_release` does. Writes nothing."""
    spec = recipe.releases.get(name)
    if spec is None:
        raise UserError(f"unknown release; {did_you_mean(name, recipe.releases)}", where=f"releases.{name}")
    hint = f"nextloom run RECIPE --to {name}"
    if planner.changes:
        raise UserError(f"the source changed: {planner.changes.describe()} rows", where=f"releases.{name}", next=hint)
    for step in planner.graph.upto(name):
        state = planner.judge(step)
        if step.name in planner.damaged:
            raise planner.damaged[step.name]
        if state.state != FRESH:
            raise UserError(f"{step.name} is {state.state} {state.cause}".strip(), where=f"releases.{name}", next=hint)
    content = _content(planner, name)
    if not content["rows_count"]:
        raise UserError("it would have no rows", where=f"releases.{name}", next="nextloom report RECIPE says why")
    return content


def _refuse_shrinking(dataset: Dataset, name: str, rows: int) -> None:
    """A source that lists less by mistake, or a threshold that slipped, would reach every reader of the release."""
    try:
        newest = latest(dataset.uri, name)
    except Damaged:
        return  # how many rows it had is not known
    if newest and rows * SHRINKS_BELOW < newest.document["rows_count"]:
        had = newest.document["rows_count"]
        raise Shrinks(
            f"it would shrink from {had:,} rows ({newest.name}) to {rows:,}; it was not published",
            where=f"releases.{name}",
            next=f"nextloom report RECIPE says why; if it is meant: nextloom release RECIPE {name} --allow-shrink",
        )


def keep_releases(
    recipe: Recipe, dataset: Dataset, to: str | None = None, *, allow_shrink: bool = False
) -> tuple[list[Release], list[UserError]]:
    """Publish the next version of each release that has one already and holds other things now.

    Args:
        recipe: its releases.
        dataset: the caller holds its lease.
        to: only this release; a step names none.
        allow_shrink: also one that has less than half of the rows it had.

    Returns:
        The new releases, and why others were not published: a damaged manifest or file, or too few rows.
    """
    names = [name for name in recipe.releases if to in (None, name) and versions(dataset.documents, name)]
    planner = Planner(recipe, dataset) if names else None
    made, refused = [], []
    for name in names:
        try:
            release, new = make_release(recipe, dataset, name, planner, allow_shrink=allow_shrink)
            made += [release] if new else []
        except (Damaged, Shrinks) as error:
            refused.append(error)
    return made, refused


def plan_with_releases(
    recipe: Recipe, dataset: Dataset, *, to: str | None = None, retry_errors: bool = False
) -> list[StepPlan]:
    """The plan of all steps, and of the releases that they end in: which of them a run makes stale. Writes nothing."""
    planner = Planner(recipe, dataset, retry_errors=retry_errors)
    plans = [planner.source(), *(planner.judge(step) for step in planner.graph.upto(to))]
    states = {plan.step: plan.state for plan in plans}
    return plans + [_planned(planner, name, states) for name in recipe.releases if to in (None, name)]


def _planned(planner: Planner, name: str, states: dict[str, str]) -> StepPlan:
    """State of one release: missing, fresh, or stale with the steps that make it so."""
    plan = StepPlan(f"release {name}", "", "release", FRESH, todo=None)
    try:
        newest = latest(planner.dataset.uri, name)
    except Damaged as damage:
        plan.state, plan.cause, plan.next = BLOCKED, str(damage).replace("\n  next:", ";"), damage.next or ""
        return plan
    plan.op = newest.name if newest else ""
    changed = [step.name for step in planner.graph.upto(name) if states[step.name] != FRESH]
    if planner.changes:
        changed.insert(0, SOURCE)
    if newest is None:
        plan.state = MISSING
        return plan
    plan.wanted = newest.document["rows_count"]
    if changed:
        plan.state, plan.cause = STALE, f"INPUT {', '.join(changed)}"
    else:
        try:
            same = newest.digest == content_digest(_content(planner, name))
        except Damaged as damage:
            plan.state, plan.cause, plan.next = BLOCKED, str(damage).replace("\n  next:", ";"), damage.next or ""
            return plan
        if not same:
            plan.state, plan.cause = STALE, "INPUT"
    return plan


def _content(planner: Planner, name: str) -> dict[str, Any]:
    """What a release of fresh steps fixes; all of them have been judged."""
    recipe, dataset, spec = planner.recipe, planner.dataset, planner.recipe.releases[name]
    rows = planner.rowsets[spec.rows]
    assert isinstance(rows, RowSet)
    domain = SOURCE if spec.rows == SOURCE else planner.graph[spec.rows].domain
    if spec.rows in planner.graph.steps and planner.graph[spec.rows].kind == "expand":
        domain = spec.rows
    table = dataset.rows if domain == SOURCE else planner.table(domain)
    ids = rows.all_ids()
    return {
        "dataset": recipe.dataset,
        "content": _rows_digest(table, ids) if len(ids) else "",
        "rows_count": len(ids),
        "door": recipe.source.door().as_dict(),
        "selection": {**rows.as_dict(dataset.uri), "step": spec.rows},
        "rows": describe(table.uri, dataset.uri, table.files()),
        "columns": {
            step: {
                **describe(planner.table(step).uri, dataset.uri, planner.table(step).files()),
                "op": recipe.steps[step].name,
                "content": getattr(recipe.steps[step], "content", ""),
                "version": recipe.steps[step].version(),
                "config": planner.identities[step],
                "fingerprint": planner.fingerprints[step],
                "failed": _failed_digest(planner.table(step), ids),
            }
            for step in spec.columns
        },
    }


def _rows_digest(table: Table, ids: np.ndarray) -> str:
    """Identity of the rows: their ids, keys and versions, so that a rebuilt dataset of other files is another."""
    rows = take_ids(table.uri, table.files(), ids, ["key", "version"])
    return digest([rows[name].to_pylist() for name in ("id", "key", "version")])


def _failed_digest(table: Table, ids: np.ndarray) -> str:
    """Identity of the failed ids within the release."""
    files = [f for f in table.files() if f.errors]
    if not files:
        return ""
    data = read_files(table.uri, files, ["id", "error"])
    failed = data.filter(pc.is_valid(data["error"]))["id"].to_numpy()
    failed = failed[np.isin(failed, ids)]
    return digest(failed.tolist()) if len(failed) else ""
