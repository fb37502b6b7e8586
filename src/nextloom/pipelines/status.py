"""What a dataset holds: receipts, releases, and its writer. Reads documents only, no rows."""

from __future__ import annotations

import time
from typing import Any

from nextloom.pipelines.recipe import Graph, Recipe
from nextloom.store.dataset import Dataset
from nextloom.store.lease import holder


def dataset_status(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Counts per step, releases, and the present writer, as plain data."""
    steps = []
    for step in Graph(recipe):
        receipt = dataset.receipt(step.name) or {}
        keep = ("counts", "fingerprint", "finished", "cpu_seconds_per_row")
        steps.append({"step": step.name, "op": step.op.name, **{key: receipt.get(key) for key in keep}})
        steps[-1]["counts"] = receipt.get("counts", {})
    releases = []
    for name in dataset.documents.names("releases"):
        document = dataset.documents.read(name) or {}
        keys = sum(f["rows"] for f in document["selection"]["files"])
        releases.append({"name": document["name"], "rows": keys, "columns": list(document["columns"])})
    lease = holder(dataset.documents)
    writer = None
    if lease and not lease["released"]:
        age = time.time() - lease["beat"]
        writer = (
            f"process {lease['pid']} on {lease['host'].partition('/')[0]}: {lease['purpose']}, seen {age:.0f} s ago"
        )
    return {
        "dataset": recipe.dataset,
        "uri": dataset.uri,
        "steps": steps,
        "releases": releases,
        "writer": writer,
    }
