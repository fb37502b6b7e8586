"""Runs: the summaries and pictures that trainings and drawings left below the root's `runs/` folder."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any


def runs(folder: Path) -> list[dict[str, Any]]:
    """Name, values and picture (base64 of a PNG, or None) of each run, oldest first."""
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
