"""Hashes with a second test: rows of near hashes are linked only where their signatures agree too.

A hash of 64 bits sees the drawing; a signature (a few bytes: brightness and colour of nine cells) sees the paint. The
index of `hamming.py` finds near *hashes*; an `Items` turns each pair of hashes into the pairs of rows that have them
and keeps those whose signatures differ nowhere by more than `tolerance`. Equal (hash, signature) pairs are one item.

Trade-off: rows of one hash and many signatures (flat images) are compared with one another; sorting by the first byte
leaves those out that are too far apart there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LOT = 1 << 21
"""Pairs of items compared at once."""


@dataclass(frozen=True, slots=True)
class Items:
    """Different (hash, signature) pairs, sorted by hash, then by signature."""

    start_U1: np.ndarray
    """Where the items of each different hash begin, and their number at the end."""
    signature_IS: np.ndarray
    """(items, S) uint8."""
    tolerance_S: np.ndarray
    """(S,) largest difference of each byte."""

    def links(self, left_P: np.ndarray, right_P: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of items that agree, of pairs of positions of different hashes."""
        sizes = np.diff(self.start_U1)
        lefts = _ranges(self.start_U1[left_P], sizes[left_P])
        pair = np.repeat(np.arange(len(left_P)), sizes[left_P])
        yield from self._agreeing(lefts, self.start_U1[right_P][pair], sizes[right_P][pair])

    def within(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of items of one hash that agree."""
        sizes = np.diff(self.start_U1)
        item = np.arange(len(self.signature_IS))
        bucket = np.repeat(np.arange(len(sizes)), sizes)
        crowded = sizes[bucket] > 1
        item, bucket = item[crowded], bucket[crowded]
        place = bucket * 512 + self.signature_IS[item, 0]  # sorted, and no bucket reaches into the next
        end = np.searchsorted(place, place + int(self.tolerance_S[0]), side="right")
        yield from self._agreeing(item, item + 1, end - np.arange(len(item)) - 1)

    def _agreeing(
        self, left_L: np.ndarray, start_L: np.ndarray, count_L: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each left item with `count` items from `start` on, those that agree; at most about `LOT` at a time."""
        edges = np.append(0, np.cumsum(count_L))
        begin = 0
        while begin < len(left_L):
            end = max(begin + 1, int(np.searchsorted(edges, edges[begin] + LOT, side="right")) - 1)
            left = np.repeat(left_L[begin:end], count_L[begin:end])
            right = _ranges(start_L[begin:end], count_L[begin:end])
            apart = np.abs(self.signature_IS[left].astype(np.int16) - self.signature_IS[right])
            close = (apart <= self.tolerance_S).all(axis=1)
            yield left[close], right[close]
            begin = end


def _ranges(start_N: np.ndarray, count_N: np.ndarray) -> np.ndarray:
    """start, start + 1, ... for each start, `count` of them, one after another."""
    ends = np.cumsum(count_N)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(start_N - (ends - count_N), count_N)


def group_items(
    hashes_N: np.ndarray, signatures_NS: np.ndarray, tolerance_S: np.ndarray
) -> tuple[np.ndarray, Items, np.ndarray, np.ndarray]:
    """(different hashes sorted, their items, each row's item, each item's first row)."""
    order = np.lexsort((*signatures_NS.T[::-1], hashes_N))
    hashes, signatures = hashes_N[order], signatures_NS[order]
    new_hash = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
    new = new_hash | np.append(True, (signatures[1:] != signatures[:-1]).any(axis=1))[: len(hashes)]
    item_N = np.empty(len(hashes), np.int64)
    item_N[order] = np.cumsum(new) - 1
    first_I = order[new]  # a stable sort: the first of equal rows is the one of smallest position
    starts = np.flatnonzero(new_hash[new])
    items = Items(np.append(starts, len(first_I)), signatures[new], tolerance_S.astype(np.int16))
    return hashes[new_hash], items, item_N, first_I
