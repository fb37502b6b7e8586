"""Making a release: only of steps that are fresh, so that a manifest never mixes old and new."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from nextloom.errors import UserError, did_you_mean
from nextloom.op import digest
from nextloom.pipelines.plan import FRESH, Planner
from nextloom.pipelines.recipe import SOURCE, Recipe
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files, take_ids
from nextloom.store.release import Release, publish
from nextloom.store.rowset import RowSet, describe
from nextloom.store.table import Table


def make_release(recipe: Recipe, dataset: Dataset, name: str) -> tuple[Release, bool]:
    """Publish release `name` of the recipe; one equal to the newest is not written again.

    Returns:
        The release, and whether it is new.

    Raises:
        UserError: unknown name, or a step it needs is not fresh (says which, and the command).
    """
    spec = recipe.releases.get(name)
    if spec is None:
        raise UserError(f"unknown release; {did_you_mean(name, recipe.releases)}", where=f"releases.{name}")
    planner = Planner(recipe, dataset)
    hint = f"nextloom run RECIPE --to {name}"
    if planner.changes:
        raise UserError(f"the source changed: {planner.changes.describe()} rows", where=f"releases.{name}", next=hint)
    for step in planner.graph.upto(name):
        state = planner.judge(step)
        if state.state != FRESH:
            raise UserError(f"{step.name} is {state.state} {state.cause}".strip(), where=f"releases.{name}", next=hint)
    rows = planner.rowsets[spec.rows]
    assert isinstance(rows, RowSet)
    domain = SOURCE if spec.rows == SOURCE else planner.graph[spec.rows].domain
    if spec.rows in planner.graph.steps and planner.graph[spec.rows].kind == "expand":
        domain = spec.rows
    table = dataset.rows if domain == SOURCE else planner.table(domain)
    ids = rows.all_ids()
    if not len(ids):
        raise UserError("it would have no rows", where=f"releases.{name}", next="nextloom report RECIPE says why")
    content: dict[str, Any] = {
        "dataset": recipe.dataset,
        "content": _rows_digest(table, ids),
        "rows_count": len(ids),
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
    return publish(dataset, name, content)


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
