"""Curves: figures of a training over its steps, as lines that the page draws with axes.

At most `POINTS` points a curve: of each stretch of steps the lowest and the highest value, so that a spike of one step
is seen however long the training. Numbers that are not finite are left out and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
WIDTH, HEIGHT = 300, 110
"""Inner size of a chart, in the units of its view box."""
POINTS = 240
MOST = 12
"""Charts of one training."""
LATE = ("lr", "per_second", "step_seconds")
"""Shown last: they say how a training goes, not what it learns."""


def read(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Lines of a run's metrics with a step and figures, and how many lines could not be read."""
    path = folder / METRICS
    if not path.is_file():
        return [], 0
    lines, bad = {}, 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
                if "event" not in line:
                    lines[int(line["step"])] = line  # a resumed run repeats steps: the last counts
            except (ValueError, TypeError, KeyError, RecursionError):
                bad += 1
    return [lines[step] for step in sorted(lines)], bad


def curves(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One chart per figure: the loss, then what is judged, then the rest.

    Returns:
        name, last (its last value as text), dropped (values that are no finite number), `points` (an SVG list of
        points), dots (few points, which are also shown as such), `x` and `y` (ticks: place and text), log.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    dropped: dict[str, int] = {}
    for line in lines:
        for name, value in line.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            series.setdefault(name, [])
            if math.isfinite(value):
                series[name].append((line["step"], float(value)))
            else:
                dropped[name] = dropped.get(name, 0) + 1
    order = sorted(series, key=lambda name: (name in LATE, name != "loss", len(series[name]), name))
    return [_chart(name, series[name], dropped.get(name, 0)) for name in order[:MOST]]


def _chart(name: str, values: list[tuple[int, float]], dropped: int) -> dict[str, Any]:
    found = {"name": name, "last": f"{values[-1][1]:.4g}" if values else "", "dropped": dropped}
    if not values:
        return {**found, "points": "", "dots": [], "x": [], "y": [], "log": False}
    low, high = min(v for _, v in values), max(v for _, v in values)
    log = low > 0 and high / low > 100
    bottom, top = (math.log10(low), math.log10(high)) if log else (low, high)
    if top - bottom < 1e-12 * max(1.0, abs(top)):
        bottom, top = bottom - 0.5, top + 0.5
    first, last = values[0][0], values[-1][0]

    def place(step: int, value: float) -> tuple[float, float]:
        x = (step - first) / (last - first) if last > first else 0.5
        y = ((math.log10(value) if log else value) - bottom) / (top - bottom)
        return round(x * WIDTH, 1), round((1 - y) * HEIGHT, 1)

    points = [place(*value) for value in _thinned(values)]
    middle = 10 ** ((bottom + top) / 2) if log else (bottom + top) / 2
    levels = (high, middle, low) if high > low else (low,)
    steps = dict.fromkeys((first, (first + last) // 2, last))
    return {
        **found,
        "points": " ".join(f"{x:g},{y:g}" for x, y in points),
        "dots": points if len(points) <= 30 else [],
        "x": [{"at": place(step, low)[0], "text": f"{step:,}"} for step in steps],
        "y": [{"at": place(first, level)[1], "text": _spoken(level)} for level in levels],
        "log": log,
    }


def _spoken(value: float) -> str:
    """A number of a few characters: 0.12, 9.4e-4."""
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.3g}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}"


def _thinned(values: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `POINTS` of the values: of each stretch the lowest and the highest, and the first and last of all."""
    if len(values) <= POINTS:
        return values
    stretches = POINTS // 2 - 1
    kept = {0, len(values) - 1}
    for i in range(stretches):
        part = range(i * len(values) // stretches, (i + 1) * len(values) // stretches)
        kept |= {min(part, key=lambda at: values[at][1]), max(part, key=lambda at: values[at][1])}
    return [values[at] for at in sorted(kept)]
