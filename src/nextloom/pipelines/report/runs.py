"""Runs: what trainings and drawings left below the root's `runs/` folder: curves, last figures, a picture."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from nextloom.pipelines.report.curves import METRICS, curves, read

MOST_BYTES = 400_000
"""A larger picture is made smaller."""
SIDE = 1600


def runs(folder: Path) -> list[dict[str, Any]]:
    """Name, state, values, curves and picture (data URI, or None) of each run, oldest first.

    A training that has not finished has the state `at step N`; a document that cannot be read is said in `state`.
    """
    paths = {*folder.glob("*.run/receipt.json"), *folder.glob("*/summary.json"), *folder.glob(f"*.run/{METRICS}")}
    newest = {path.parent: 0.0 for path in paths}
    for path in paths:
        newest[path.parent] = max(newest[path.parent], path.stat().st_mtime)
    return [_run(place) for place in sorted(newest, key=lambda place: (newest[place], place.name))]


def _run(place: Path) -> dict[str, Any]:
    document, state = {}, ""
    finished = [path for path in (place / "receipt.json", place / "summary.json") if path.is_file()]
    lines, bad = read(place)
    if finished:
        try:
            document = json.loads(finished[0].read_text(encoding="utf-8"))
            document = document.get("summary", document)
            document = {**document, **document.get("evaluation", {})}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            document, state = {}, f"{finished[0].name} cannot be read"
    elif lines:
        state = f"not finished: at step {lines[-1]['step']:,}"
    return {
        "name": place.name.removesuffix(".run"),
        "state": state + (f"; {bad:,} lines of {METRICS} cannot be read" if bad else ""),
        "values": {k: _number(v) for k, v in document.items() if isinstance(v, int | float | str)},
        "curves": curves(lines),
        "picture": _picture(place / "grid.png"),
    }


def _picture(path: Path) -> str | None:
    """Data URI of a PNG, or of a smaller WebP of it; None without one."""
    if not path.is_file():
        return None
    if path.stat().st_size <= MOST_BYTES:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except Exception:  # the page shows what there is
        return None
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
