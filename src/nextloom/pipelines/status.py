"""What a dataset holds: receipts, releases, and its writer.

Counts are those of the last finished run, marked where the recipe or the code has changed since. Reads documents
and the source's listing, no rows.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from nextloom.errors import Damaged, UserError
from nextloom.pipelines.plan import wanted_fingerprints
from nextloom.pipelines.recipe import Graph, Recipe
from nextloom.store.dataset import KEPT, Dataset
from nextloom.store.lease import describe_holder, holder
from nextloom.store.release import is_broken, read_release, versions


def dataset_status(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Counts per step, releases, and the present writer, as plain data.

    `current` of a step: its counts are about the step as the recipe has it now; None where that cannot be told
    (no run yet, or the source or weights are absent). `problems`: documents and logs that cannot be read, with what to
    do; they stop nothing here.
    """
    steps, problems = [], []
    fingerprints = wanted_fingerprints(recipe, dataset)
    for step in Graph(recipe):
        try:
            receipt = dataset.receipt(step.name, strict=True) or {}
        except UserError as damage:
            receipt = {}
            problems.append(_told(damage))
        keep = ("fingerprint", "finished", "cpu_seconds_per_row", "waiting")
        known = receipt and step.name in fingerprints
        steps.append(
            {
                "step": step.name,
                "op": step.op.name,
                "current": receipt["fingerprint"] == fingerprints[step.name] if known else None,
                "counts": receipt.get("counts", {}),
                **{key: receipt.get(key) for key in keep},
            }
        )
    releases = []
    for name, _ in versions(dataset.documents):
        try:
            if release := read_release(dataset.uri, name):
                rows, columns = release.document["rows_count"], list(release.document["columns"])
                releases.append({"name": name, "rows": rows, "columns": columns, "broken": is_broken(dataset, release)})
        except UserError as damage:
            releases.append({"name": name, "rows": None, "columns": [], "broken": True})
            problems.append(_told(damage))
    for name in KEPT:
        try:
            dataset.table(name).files()
        except UserError as damage:
            problems.append(_told(damage))
    return {
        "dataset": recipe.dataset,
        "uri": dataset.uri,
        "steps": steps,
        "releases": releases,
        "problems": problems,
        "writer": _writer(dataset),
    }


def _told(error: UserError) -> str:
    return str(error).replace("\n  next:", ";")


def _writer(dataset: Dataset) -> str | None:
    """Who holds the lease and was seen when; None when nobody does, or its holder died."""
    told = describe_holder(dataset.documents)
    if not told:
        return None
    with suppress(Damaged):
        if lease := holder(dataset.documents):
            told += f", seen {time.time() - lease['beat']:.0f} s ago"
    return told
