"""The page: every part of the report in one HTML file that opens from a mail attachment.

Style, script, data and thumbnails are inlined, and a content security policy forbids the page to load anything or
to run another script than its own, whatever a caption or a file name holds. The parts read receipts and columns,
and pixels of the rows they show a thumbnail of. Written beside its place and moved there when it is whole.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from nextloom.config import local_root
from nextloom.errors import UserError
from nextloom.op import Select
from nextloom.pipelines.plan import BLOCKED, Planner
from nextloom.pipelines.recipe import SOURCE, Recipe
from nextloom.pipelines.report.album import Album
from nextloom.pipelines.report.duplicates import duplicates, has_groups
from nextloom.pipelines.report.failures import failures
from nextloom.pipelines.report.funnel import funnel
from nextloom.pipelines.report.removals import removals
from nextloom.pipelines.report.runs import runs
from nextloom.pipelines.report.thresholds import thresholds
from nextloom.pipelines.report.topics import topics
from nextloom.store.dataset import Dataset

MARK = '<meta name="generator" content="nextloom report">'
"""In the head of every page, which tells it from a file of somebody's own."""


def write_report(recipe: Recipe, dataset: Dataset, *, root: str) -> str:
    """Write ``<root>/reports/<dataset>.html``; returns its path.

    Raises:
        UserError: `root` is a URI, or another file or a link is where the page goes.
    """
    target = local_root(root, "report") / "reports" / f"{recipe.dataset}.html"
    _check_ours(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(render(gather(recipe, dataset, root=root)), encoding="utf-8")
    draft.replace(target)
    return str(target)


def _check_ours(target: Path) -> None:
    """Refuse to replace a file that is no report, and links."""
    links = [path for path in (target.parent, target) if path.is_symlink()]
    foreign = target.exists() and not (target.is_file() and MARK.encode() in target.read_bytes()[:4096])
    if links or foreign:
        raise UserError(
            "is a link" if links else "is no report of `nextloom report`, and would be replaced",
            where=str(links[0] if links else target),
            next="move it away, or give another --root",
        )


def render(report: dict[str, Any]) -> str:
    """The page that shows what `gather` found."""
    import jinja2

    folder = files("nextloom.pipelines.report")
    page, style, script = (folder.joinpath(f"page.{k}").read_text(encoding="utf-8") for k in ("html", "css", "js"))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": _count, "share": _share, "rate": _rate, "duration": _duration, "money": _money}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(page).render(report, style=style, script=script, script_digest=digest)


def gather(recipe: Recipe, dataset: Dataset, *, root: str) -> dict[str, Any]:
    """What the page shows, as plain data."""
    planner = Planner(recipe, dataset)
    album = Album(planner)
    steps, failed, selects, groups = [], [], [], []
    for step in planner.graph:
        state = planner.judge(step)
        steps.append(funnel(planner, step, state))
        if state.state == BLOCKED:
            continue
        failed += failures(planner, step)
        if isinstance(step.op, Select) and (counts := removals(planner, step)):
            moved = thresholds(planner, step, album)
            selects.append({**counts, "state": state.state, "moved": moved, "topics": topics(planner, step)})
        if has_groups(step) and (found := duplicates(planner, step, album)):
            groups.append(found)
    album.develop()
    for found in groups:
        for member in (m for group in found["shown"] for m in group["members"]):
            member |= {"key": album.key(member["slot"]), "picture": album.pictures.get(member["slot"])}
    shown = sorted({slot for s in selects if s["moved"] for slot in s["moved"]["slots"] if slot in album.pictures})
    rows = planner.rowsets[SOURCE]
    return {
        "dataset": recipe.dataset,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "total": rows.count() if rows else 0,
        "largest": max((s["counts"].get("rows", 0) for s in steps), default=0),
        "steps": steps,
        "priced": recipe.run.cpu_hour_price is not None,
        "selects": selects,
        "duplicates": groups,
        "failures": failed,
        "runs": runs(Path(root) / "runs"),
        "data": {
            "selects": [{k: v for k, v in s.items() if k != "topics"} for s in selects if s["moved"]],
            "pictures": {slot: [album.key(slot), album.pictures[slot]] for slot in shown},
        },
    }


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _share(part: float, whole: float) -> str:
    """``12.3%``; never 0% or 100% of what is not none or all."""
    if not whole:
        return ""
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1%"
    if 99.9 < share < 100:
        return ">99.9%"
    return f"{share:.1f}%".replace(".0%", "%")


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    """CPU time as one reads it: <0.1 s, 0.42 s, 12 s, 3.4 min, 1.2 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s" if seconds >= 0.095 else "<0.1 s"


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.005 or not value else "<0.01"
