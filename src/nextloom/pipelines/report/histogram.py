"""A histogram of one column: an axis chosen from a sample, counts of all rows added up window by window.

The axis covers 99% of the sample and every threshold; what lies outside is counted in its end bins. Columns of
positive numbers with a long tail get a logarithmic axis; bins of whole numbers begin at whole numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

BINS = 48
TAIL = 0.005
"""Share of the sample beyond either end of the axis."""
LONG = 0.1
"""Half of the sample lies in this share of the axis: a long tail."""


class Histogram:
    """Counts of kept and rejected rows per bin.

    Args:
        sample: values, NaN where there is none.
        thresholds: numbers the axis must reach.
        integer: whether the column holds whole numbers.
    """

    def __init__(self, sample: np.ndarray, thresholds: list[float], *, integer: bool) -> None:
        seen = sample[np.isfinite(sample)]
        tails = (
            [np.quantile(seen, q, method=m) for q, m in ((TAIL, "lower"), (1 - TAIL, "higher"))] if len(seen) else []
        )
        ends = [*tails, *thresholds]
        low, high = float(min(ends)), float(max(ends))
        self.integer = integer
        self.log = low > 0 and len(seen) > 0 and float(np.median(seen)) - low < LONG * (high - low)
        self.edges = _edges(low, high, integer=integer, log=self.log)
        self.kept = np.zeros(len(self.edges) - 1, np.int64)
        self.rejected = np.zeros(len(self.edges) - 1, np.int64)
        self.missing = 0

    def add(self, values: np.ndarray, kept: np.ndarray) -> None:
        """Count rows: their values, and whether each is kept."""
        seen = np.isfinite(values)
        self.missing += int((~seen).sum())
        bins = np.clip(np.searchsorted(self.edges, values[seen], side="right") - 1, 0, len(self.kept) - 1)
        self.kept += np.bincount(bins[kept[seen]], minlength=len(self.kept))
        self.rejected += np.bincount(bins[~kept[seen]], minlength=len(self.kept))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the page."""
        return {
            "integer": self.integer,
            "log": self.log,
            "edges": self.edges.tolist(),
            "kept": self.kept.tolist(),
            "rejected": self.rejected.tolist(),
            "missing": self.missing,
        }


def _edges(low: float, high: float, *, integer: bool, log: bool) -> np.ndarray:
    """Ascending edges of at most about `BINS` bins, from below `low` to above `high`."""
    if log:
        ratio = (high / low) ** (1 / BINS)
        edges = np.geomspace(low / ratio, high * ratio, BINS + 3)
        return np.unique(np.round(edges)) if integer and high > 2 * BINS else edges
    if integer:
        width = max(1, math.ceil((high - low + 1) / BINS))
        start = _below(math.floor(low / width)) * width
        return np.arange(start, high + 2 * width, width, dtype=np.float64)
    width = _round_up((high - low) / BINS) if high > low else max(abs(low), 1) / BINS
    start = _below(math.floor(low / width))
    return np.arange(start, max(math.ceil(high / width), start + 1) + 2) * width


def _below(bin: int) -> int:
    """The bin before, so that a threshold at the end can be moved past it; nothing counted is below zero."""
    return bin if bin == 0 else bin - 1


def _round_up(width: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten: bins that begin at numbers one can read."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= width * (1 - 1e-9))
