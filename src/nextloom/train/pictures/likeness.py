"""How like two pictures are, and how often a drawing is nearest to its own original."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures; 99 for equal ones."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def own_nearest(drawings: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the nearest target of drawing k is target k, (n,) bool.

    Nearest by squared error among the targets of the drawing's shape; ties are misses. Exact: sums of products of
    uint8 are integers far below 2^53. One matrix product per shape, so n^2 float64 are held for n of one shape.
    """
    hits = np.zeros(len(drawings), bool)
    for members in _by_shape(targets).values():
        mine = [k for k in members if drawings[k].shape == targets[k].shape]
        if not mine:
            continue
        drawn, wanted = (
            np.stack([pictures[k].reshape(-1) for k in numbers]).astype(np.float64)
            for pictures, numbers in ((drawings, mine), (targets, members))
        )
        distance = (drawn**2).sum(1)[:, None] + (wanted**2).sum(1) - 2 * drawn @ wanted.T
        own = np.searchsorted(members, mine)
        rows = np.arange(len(mine))
        others = distance.copy()
        others[rows, own] = np.inf
        hits[mine] = distance[rows, own] < others.min(axis=1)
    return hits


def chance(targets: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) float64: how often a random guess among the targets of its shape would be each target."""
    sizes = Counter(target.shape for target in targets)
    return np.array([1 / sizes[target.shape] for target in targets])


def _by_shape(pictures: Sequence[np.ndarray]) -> dict[tuple[int, ...], list[int]]:
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, picture in enumerate(pictures):
        found[picture.shape].append(number)
    return found
