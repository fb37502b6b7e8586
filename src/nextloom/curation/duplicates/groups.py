"""Groups of rows: what links connect, and which member stands for the rest.

`Components` takes links (pairs of positions) in lots of any size and order and gives each position the smallest of
its group, so the result depends on the set of links alone. `elect` picks each group's representative: the first
row, or the best by a score.

Price paid: links chain. Two members of a group may be far apart; measures to the representative show it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Components:
    """Connected groups of positions 0..count-1: union by whole arrays. Memory: 8 bytes per position and 16 per
    waiting link."""

    WAITING = 2_000_000
    """Links that are joined at once: each joining walks over all positions."""

    def __init__(self, count: int) -> None:
        self._root = np.arange(count)
        self._links: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def link(self, left: np.ndarray, right: np.ndarray) -> None:
        """Put `left[i]` and `right[i]` into one group, for every i."""
        self._links.append((left, right))
        self._waiting += len(left)
        if self._waiting >= self.WAITING:
            self._join()

    def roots(self) -> np.ndarray:
        """(count,) int64: the smallest position of each position's group."""
        self._join()
        return self._root

    def _join(self) -> None:
        if not self._waiting:
            return
        left, right = (np.concatenate(side) for side in zip(*self._links, strict=True))
        self._links, self._waiting = [], 0
        root = self._root
        while True:  # every position points at the smallest of its group, before and after each round
            a, b = root[left], root[right]
            apart = a != b
            if not apart.any():
                break
            left, right, a, b = left[apart], right[apart], a[apart], b[apart]
            np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
            while not np.array_equal(shorter := root[root], root):
                root = shorter
        self._root = root


def elect(first_N: np.ndarray, scores: pa.ChunkedArray | None = None, order: str = "highest") -> np.ndarray:
    """(N,) int64: position of the representative of each row's group.

    Args:
        first_N: position of the first row of each row's group.
        scores: a number, date or boolean per row; null and NaN lose against every value. None: the first row wins.
        order: "highest" or "lowest" score wins; equal ones go by position.
    """
    if scores is None:
        return first_N
    if pa.types.is_floating(scores.type):
        scores = pc.if_else(pc.is_nan(scores), pa.scalar(None, scores.type), scores)
    members = np.flatnonzero(np.bincount(first_N, minlength=len(first_N))[first_N] > 1)
    table = pa.table({"group": first_N[members], "score": scores.take(pa.array(members)), "position": members})
    by = [("group", "ascending"), ("score", "descending" if order == "highest" else "ascending")]
    ranked = table.take(pc.sort_indices(table, sort_keys=[*by, ("position", "ascending")], null_placement="at_end"))
    group, position = ranked["group"].to_numpy(), ranked["position"].to_numpy()
    leads = np.append(True, group[1:] != group[:-1])[: len(group)]
    best = np.arange(len(first_N))
    best[group[leads]] = position[leads]
    return best[first_N]
