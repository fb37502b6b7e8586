"""Which pictures each step shows: batches of one shape, an endless order that is a function of the step alone.

An epoch shuffles every bucket (pictures of one shape) by a hash, cuts it into batches and shuffles those; a last short
batch is filled from the start of its bucket. Without weights each picture comes once.

With weights, an epoch draws each bucket anew by systematic resampling: copies of picture i are n_b w_i / W_b rounded
down or up, with that mean over epochs, where the bucket's n_b is its share of all weights times the number of pictures.
So the number of batches is the same in every epoch, and a step still says its epoch by one division. Price paid: a
weight far below the mean shows its picture in some epochs only.

Source: Kitagawa, "Monte Carlo filter and smoother" (1996), for systematic resampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from nextloom.hashing import hash64, uniform

Batch = tuple[int, list[int]]
"""(bucket, picture numbers)."""


class Order:
    """Batches of every step.

    Args:
        buckets: picture numbers by bucket.
        batch: pictures per step.
        seed: of all hashes.
        weights: of each picture number, at least 0; those of weight 0 are never shown.
    """

    def __init__(
        self, buckets: Mapping[int, Sequence[int]], batch: int, seed: int, weights: np.ndarray | None = None
    ) -> None:
        self._buckets = {row: np.asarray(numbers) for row, numbers in sorted(buckets.items())}
        self._batch, self._seed, self._weights = batch, seed, weights
        self._shown = {row: len(numbers) for row, numbers in self._buckets.items()}
        if weights is not None:
            parts = {row: float(weights[numbers].sum()) for row, numbers in self._buckets.items()}
            count, total = sum(self._shown.values()), sum(parts.values())
            assert total > 0, "all weights are 0"
            self._shown = {row: max(1, round(count * part / total)) for row, part in parts.items() if part > 0}
        self.per_epoch = sum(math.ceil(shown / batch) for shown in self._shown.values())
        self._epoch = lru_cache(maxsize=2)(self._make)

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        return self._epoch(step // self.per_epoch)[step % self.per_epoch]

    def _make(self, epoch: int) -> list[Batch]:
        size, batches = self._batch, []
        for row, shown in self._shown.items():
            numbers = self._buckets[row] if self._weights is None else self._draw(epoch, row)
            order = shuffled(shown, "pictures", self._seed, epoch, row)
            filled = np.resize(numbers[order], math.ceil(shown / size) * size)
            batches += [(row, part.tolist()) for part in filled.reshape(-1, size)]
        return [batches[i] for i in shuffled(len(batches), "batches", self._seed, epoch)]

    def _draw(self, epoch: int, row: int) -> np.ndarray:
        """Systematic resampling of one bucket: ticks at a distance of W / n over the weights in hashed order."""
        assert self._weights is not None
        mixed = self._buckets[row][shuffled(len(self._buckets[row]), "draws", self._seed, epoch, row)]
        ends = np.cumsum(self._weights[mixed])
        shown = self._shown[row]
        ticks = (uniform(np.zeros(1, np.int64), "tick", self._seed, epoch, row) + np.arange(shown)) * (ends[-1] / shown)
        return mixed[np.minimum(np.searchsorted(ends, ticks, side="right"), len(mixed) - 1)]


def shuffled(count: int, *names: str | int) -> np.ndarray:
    """range(count) in the order of its hashes."""
    return np.argsort(hash64(np.arange(count), *names), kind="stable")
