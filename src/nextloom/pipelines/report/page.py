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
from nextloom.pipelines.report.changes import changes
from nextloom.pipelines.report.duplicates import duplicates
from nextloom.pipelines.report.failures import failures
from nextloom.pipelines.report.funnel import funnel
from nextloom.pipelines.report.removals import removals
from nextloom.pipelines.report.runs import runs
from nextloom.pipelines.report.sheet import sheet
from nextloom.pipelines.report.survivors import survivors
from nextloom.pipelines.report.thresholds import thresholds
from nextloom.pipelines.report.topics import topics
from nextloom.pipelines.vanishing import has_groups
from nextloom.store.dataset import Dataset

MOVABLE = ("step", "kept", "rejected", "rules", "joint", "moved")
"""What the page's script needs to know of a Select whose thresholds can be moved."""
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
    """The page that shows what `gather` found. A picture that stands in the page's text is not in its data again."""
    import jinja2

    folder = files("nextloom.pipelines.report")
    names = ("page.html", "page.parts.html", "page.css", "page.js")
    texts = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in names}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": _count, "share": _share, "rate": _rate, "duration": _duration, "money": _money}
    digest = base64.b64encode(hashlib.sha256(texts["page.js"].encode()).digest()).decode()
    data, seen = report["data"], _in_the_text(report)
    pictures = {slot: [key, "" if slot in seen else uri] for slot, (key, uri) in data["pictures"].items()}
    content = {**report, "data": {**data, "pictures": pictures}}
    page = environment.get_template("page.html")
    return page.render(content, style=texts["page.css"], script=texts["page.js"], script_digest=digest)


def _in_the_text(report: dict[str, Any]) -> set[int]:
    """Slots of the pictures that the page shows without its script."""
    rows = [row for select in report["selects"] for strip in select["sheet"] for row in strip["rows"]]
    rows += [row for select in report["selects"] for pair in select["survivors"] for row in pair["rows"]]
    rows += [row for change in report["changes"] for side in ("out_rows", "came_rows") for row in change.get(side, ())]
    rows += [row for found in report["duplicates"] for group in found["shown"] for row in group["members"]]
    return {row["slot"] for row in rows if row["picture"]}


def gather(recipe: Recipe, dataset: Dataset, *, root: str) -> dict[str, Any]:
    """What the page shows, as plain data."""
    planner = Planner(recipe, dataset)
    album = Album(planner)
    steps, failed, selects, groups = [], [], [], []
    for step in planner.graph:
        state = planner.judge(step)
        steps.append({**funnel(planner, step, state), "warning": state.warning})
        if state.state == BLOCKED:
            continue
        failed += failures(planner, step)
        if isinstance(step.op, Select) and (counts := removals(planner, step)):
            found = {"sheet": sheet(planner, step, album), "survivors": survivors(planner, step, album)}
            found |= {"moved": thresholds(planner, step, album), "topics": topics(planner, step)}
            selects.append({**counts, "state": state.state, **found})
        if has_groups(step) and (shown := duplicates(planner, step, album)):
            groups.append(shown)
    changed = [found for name, spec in recipe.releases.items() if (found := changes(planner, name, spec, album))]
    album.develop()
    for select in selects:
        for part in (*select["sheet"], *select["survivors"]):
            part["rows"] = album.shown(part["slots"] if "slots" in part else part["shown"])
    for found in changed:
        for side in ("out", "came"):
            found[f"{side}_rows"] = album.shown(found.get(f"{side}_slots", ()))
    for found in groups:
        for member in (m for group in found["shown"] for m in group["members"]):
            member |= {"key": album.key(member["slot"]), "picture": album.pictures.get(member["slot"])}
    moved = sorted({slot for s in selects if s["moved"] for slot in s["moved"]["slots"] if slot in album.pictures})
    rows = planner.rowsets[SOURCE]
    return {
        "dataset": recipe.dataset,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "total": rows.count() if rows else 0,
        "largest": max((s["counts"].get("rows", 0) for s in steps), default=0),
        "steps": steps,
        "priced": recipe.run.cpu_hour_price is not None,
        "changes": changed,
        "selects": selects,
        "duplicates": groups,
        "failures": failed,
        "runs": runs(Path(root) / "runs"),
        "data": {
            "selects": [{name: s[name] for name in MOVABLE} for s in selects if s["moved"]],
            "pictures": {slot: [album.key(slot), album.pictures[slot]] for slot in moved},
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
