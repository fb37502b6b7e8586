"""One offline HTML file about a dataset: funnel, reasons, failures, throughput, and what was trained and drawn.

Everything is inlined; the page opens from a mail attachment. It reads receipts and the small columns of verdicts
and errors, never pixels, and the summaries that trainings and drawings left below the root's `runs/` folder.
Failures are those of the rows a step is wanted on now, also of a step that stopped before its receipt.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from nextloom.config import local_root
from nextloom.op import CHILD_BITS, Expand, Select
from nextloom.pipelines.plan import BLOCKED, Planner
from nextloom.pipelines.recipe import SOURCE, Recipe, Step
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files, take_ids

EXAMPLES = 3


def write_report(recipe: Recipe, dataset: Dataset, *, root: str) -> str:
    """Write ``<root>/reports/<dataset>.html``; returns its path.

    Raises:
        UserError: `root` is a URI.
    """
    import jinja2

    target = local_root(root, "report") / "reports" / f"{recipe.dataset}.html"
    source = files("nextloom.pipelines").joinpath("report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page.render(gather(recipe, dataset, root=root)), encoding="utf-8")
    return str(target)


def gather(recipe: Recipe, dataset: Dataset, *, root: str) -> dict[str, Any]:
    """What the page shows, as plain data."""
    planner = Planner(recipe, dataset)
    steps, failures, reasons = [], [], []
    for step in planner.graph:
        state = planner.judge(step)
        receipt = {} if state.state == BLOCKED else dataset.receipt(step.name) or {}
        rate = receipt.get("cpu_seconds_per_row")
        steps.append(
            {
                "name": step.name,
                "op": step.op.name,
                "state": state.state,
                "counts": receipt.get("counts", {}),
                "per_cpu_second": round(1 / rate, 1) if rate else None,
            }
        )
        if state.state == BLOCKED:
            continue
        failures += _failures(planner, step)
        if isinstance(step.op, Select):
            reasons += _reasons(planner, step)
    total = max((s["counts"].get("rows", 0) for s in steps), default=0)
    return {
        "dataset": recipe.dataset,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "total": total,
        "steps": steps,
        "reasons": reasons,
        "failures": failures,
        "runs": _runs(Path(root) / "runs"),
    }


def _failures(planner: Planner, step: Step) -> list[dict[str, Any]]:
    """Error rows of one column grouped by stage, type and message, with example keys."""
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


def _reasons(planner: Planner, step: Step) -> list[dict[str, Any]]:
    """How many rows each rule of a Select removed first, and how many it would have removed."""
    table = planner.table(step.name)
    found = table.files()
    if not found:
        return []
    data = read_files(table.uri, found, ["id", "verdict", "reason", "rules"])
    rejected = data.filter(pc.equal(data["verdict"], "rejected"))
    first = Counter(rejected["reason"].to_pylist())
    every = Counter(rule for rules in rejected["rules"].to_pylist() for rule in json.loads(rules or "[]"))
    return [
        {"step": step.name, "rule": rule, "first": first.get(rule, 0), "every": count}
        for rule, count in every.most_common()
    ]


def _runs(folder: Path) -> list[dict[str, Any]]:
    """Summaries and pictures that trainings and drawings left, oldest first."""
    found = []
    receipts = [*folder.glob("*.run/receipt.json"), *folder.glob("*/summary.json")]
    for path in sorted(receipts, key=lambda p: p.stat().st_mtime):
        document = json.loads(path.read_text(encoding="utf-8"))
        summary = document.get("summary", document)
        values = {**summary, **summary.get("evaluation", {})}
        grid = path.parent / "grid.png"
        found.append(
            {
                "name": path.parent.name.removesuffix(".run"),
                "values": {k: _number(v) for k, v in values.items() if isinstance(v, int | float | str)},
                "picture": base64.b64encode(grid.read_bytes()).decode() if grid.is_file() else None,
            }
        )
    return found


def _number(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
