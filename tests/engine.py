"""Helpers for tests of the engine: little pictures, recipes as data, runs, and what a dataset holds in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from nextloom.pipelines.plan import StepPlan, plan
from nextloom.pipelines.progress import Progress
from nextloom.pipelines.recipe import Recipe
from nextloom.pipelines.run import Run
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files


def write_pictures(folder: Path, count: int, *, start: int = 0, size: int = 24) -> None:
    """`count` small PNGs p000.png ... of different brightness, equal for equal numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        noise = np.random.default_rng(number).integers(0, 256, (size, size, 3))
        Image.fromarray((noise * (number % 10) // 9).astype(np.uint8)).save(folder / f"p{number:03d}.png")


def build(root: Path, steps: dict[str, Any], **more: Any) -> tuple[Recipe, Dataset]:
    """A recipe over the pictures in ``root/pics``, and its dataset; one worker unless `run` says how many."""
    run = {"workers": 1, **more.pop("run", {})}
    data = {"dataset": "toy", "source": {"op": "files", "path": "pics"}, "steps": steps, **more, "run": run}
    recipe = Recipe.build(data, root=str(root))
    return recipe, Dataset(str(root / "datasets" / "toy"))


def run(recipe: Recipe, dataset: Dataset, **options: Any) -> dict[str, dict[str, int]]:
    """Run it; counts per step, with `done` added."""
    with dataset.lease("test"), Progress(show=False) as progress:
        results = Run(recipe, dataset, progress=progress, **options).execute()
    return {r.step: {**r.counts, "done": r.done} for r in results}


def plans(recipe: Recipe, dataset: Dataset, **options: Any) -> dict[str, StepPlan]:
    """The plan by step."""
    return {p.step: p for p in plan(recipe, dataset, **options)}


def contents(recipe: Recipe, dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    """step -> every row of its column, sorted by id, with the row's key; what two equal runs agree on."""
    from nextloom.pipelines.plan import Planner

    planner = Planner(recipe, dataset)
    keys = {"source": {row["id"]: row["key"] for row in dataset.live_rows(["key"]).to_pylist()}}
    out = {}
    for step in planner.graph:
        planner.judge(step)
        table = planner.table(step.name)
        data: pa.Table = read_files(table.uri, table.files())
        rows = data.to_pylist()
        if step.kind == "expand":
            keys[step.name] = {row["id"]: row["key"] for row in rows}
        out[step.name] = [{**row, "key": row.get("key") or keys[step.domain].get(row["id"])} for row in rows]
    return out
