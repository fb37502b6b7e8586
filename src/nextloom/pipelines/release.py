"""Making a release: only of steps that are fresh, so that a manifest never mixes old and new."""

from __future__ import annotations

from typing import Any

from nextloom.errors import UserError, did_you_mean
from nextloom.pipelines.plan import FRESH, Planner
from nextloom.pipelines.recipe import SOURCE, Recipe
from nextloom.store.dataset import Dataset
from nextloom.store.release import Release, describe, publish
from nextloom.store.rowset import RowSet


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
        new, gone = planner.changes.new.num_rows, len(planner.changes.gone)
        raise UserError(f"the source changed: {new} new rows, {gone} gone", where=f"releases.{name}", next=hint)
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
    content: dict[str, Any] = {
        "dataset": recipe.dataset,
        "selection": {
            **describe(rows.uri, dataset.uri, rows.files),
            "kind": rows.kind,
            "gone": rows.gone.tolist(),
            "step": spec.rows,
            "result": rows.digest,
        },
        "rows": describe(table.uri, dataset.uri, table.files()),
        "columns": {
            step: {
                **describe(planner.table(step).uri, dataset.uri, planner.table(step).files()),
                "op": recipe.steps[step].name,
                "version": recipe.steps[step].version(),
                "config": planner.identities[step],
                "fingerprint": planner.fingerprints[step],
            }
            for step in spec.columns
        },
    }
    return publish(dataset, name, content)
