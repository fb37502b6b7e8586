"""Hashes with a second test: rows of near hashes are linked only where their signatures agree too.

A hash of 64 bits sees the drawing; a signature (a few bytes: brightness and colour of nine cells) sees the paint. The
index of `hamming.py` finds near *hashes*; an `Items` turns each pair of hashes into the pairs of rows that have them
and keeps those whose signatures differ nowhere by more than a tolerance. Equal (hash, signature) pairs are one item.

A signature may have one byte more than there are tolerances: the contrast of the image. Resizing, cutting and packing
move the mean of a cell by a share of what varies in it, and in a flat image nothing does; so the tolerances shrink with
the larger contrast of the two, to `LEAST` of them. The relation is symmetric.

Items of one hash are sorted by cells of three bytes, one of each channel, as wide as its tolerance: what agrees with an
item lies in nine ranges of that order. So a hundred thousand flat images of one hash are not compared each with each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LOT = 1 << 18
"""Pairs of items compared at once."""
MANY = 32
"""Items of one hash from which cells are looked up."""
CHANNELS = 3
FULL, LEAST = 16, 0.25
"""Contrast from which the whole tolerance holds, and the share of it that is left where there is none."""
CELL, HASH = 9, 27
"""Bits of a cell in a place, and bits of a place below the number of its hash."""


class Items:
    """Different (hash, signature) pairs in the order of their places. Memory: 8 bytes and a signature per item.

    Args:
        rank_N: number of each row's hash among the different ones, in their order.
        signature_NS: uint8.
        tolerance_T: largest difference of each byte; of S bytes or S - 1, the last being the contrast.
    """

    def __init__(self, rank_N: np.ndarray, signature_NS: np.ndarray, tolerance_T: np.ndarray) -> None:
        self._tolerance_T = np.asarray(tolerance_T).astype(np.float32)
        width = len(self._tolerance_T)
        self._contrast = signature_NS.shape[1] > width
        spread = np.ptp(signature_NS[:, :width], axis=0) if len(rank_N) else np.zeros(width)
        channels = [np.arange(first, width, CHANNELS) for first in range(min(CHANNELS, width))]
        self._parts = [int(columns[np.argmax(spread[columns])]) for columns in channels]
        self._reach = np.maximum(1, self._tolerance_T[self._parts].astype(np.int64))
        place = self._place(rank_N.astype(np.int64), self._cells(signature_NS))
        order = np.lexsort((_mixed(signature_NS), place))
        signatures, places = signature_NS[order], place[order]
        new = np.append(True, (places[1:] != places[:-1]) | (signatures[1:] != signatures[:-1]).any(axis=1))[
            : len(order)
        ]
        self.item_N = np.empty(len(order), np.int64)
        """(N,) item of each row."""
        self.item_N[order] = np.cumsum(new) - 1
        self._signature_IS, self._place_I = signatures[new], places[new]
        self._start_U1 = np.searchsorted(self._place_I >> HASH, np.arange(int(rank_N.max(initial=-1)) + 2))

    def __len__(self) -> int:
        return len(self._place_I)

    def links(self, left_P: np.ndarray, right_P: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of items that agree, of pairs of numbers of different hashes."""
        start_U1 = self._start_U1
        fewer = start_U1[left_P + 1] - start_U1[left_P] <= start_U1[right_P + 1] - start_U1[right_P]
        left, right = np.where(fewer, left_P, right_P), np.where(fewer, right_P, left_P)
        for items, pair in _ranges(start_U1[left], start_U1[left + 1]):
            yield from self._near(items, right[pair], np.zeros_like(items))

    def within(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of items of one hash that agree."""
        for begin in range(0, len(self), LOT):
            items = np.arange(begin, min(begin + LOT, len(self)))
            rank = self._place_I[items] >> HASH
            more = self._start_U1[rank + 1] > items + 1
            yield from self._near(items[more], rank[more], items[more] + 1)

    def _near(self, items: np.ndarray, rank: np.ndarray, least: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Agreeing pairs of each item with those of its hash of `rank`, from item `least` on."""
        starts, stops = np.maximum(self._start_U1[rank], least), self._start_U1[rank + 1]
        many = stops - starts > MANY
        yield from self._agreeing(items[~many], starts[~many], stops[~many])
        if not many.any():
            return
        items, rank, least = items[many], rank[many], least[many]
        cells = self._cells(self._signature_IS[items])
        for third in (-1, 0, 1):
            for second in (-1, 0, 1):
                lowest, highest = (self._place(rank, cells + [first, second, third]) for first in (-1, 1))
                starts = np.maximum(np.searchsorted(self._place_I, lowest), least)
                yield from self._agreeing(items, starts, np.searchsorted(self._place_I, highest, side="right"))

    def _agreeing(
        self, items: np.ndarray, starts: np.ndarray, stops: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each item and those from its start to its stop, the pairs that agree."""
        for others, which in _ranges(starts, stops):
            left = items[which]
            a, b = self._signature_IS[left], self._signature_IS[others]
            close = agree(a, b, self._tolerance_T)
            if close.any():
                yield left[close], others[close]

    def _cells(self, signature_NS: np.ndarray) -> np.ndarray:
        """(N, 3) int64: what agrees is at most one apart in each."""
        cells = np.zeros((len(signature_NS), CHANNELS), np.int64)
        cells[:, : len(self._parts)] = signature_NS[:, self._parts] // self._reach
        return cells

    @staticmethod
    def _place(rank: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Position in the order of items; a cell may be one below 0."""
        place = rank
        for channel in range(CHANNELS - 1, -1, -1):
            place = (place << CELL) + cells[:, channel] + 1
        return place


def agree(left_NS: np.ndarray, right_NS: np.ndarray, tolerance_T: np.ndarray) -> np.ndarray:
    """(N,) bool: which of these pairs of signatures differ nowhere by more than their tolerance."""
    width = len(tolerance_T)
    apart = np.abs(left_NS[:, :width].astype(np.int16) - right_NS[:, :width])
    if left_NS.shape[1] == width:
        return np.asarray((apart <= tolerance_T).all(axis=1))
    contrast = np.maximum(left_NS[:, width], right_NS[:, width])
    return np.asarray((apart <= tolerance_T * np.clip(contrast / FULL, LEAST, 1)[:, None]).all(axis=1))


def _ranges(starts: np.ndarray, stops: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(position, index of its range) of every position in ranges, in lots; a long range is cut."""
    lengths = np.maximum(stops - starts, 0)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    for begin in range(0, total, LOT):
        number = np.arange(begin, min(begin + LOT, total))
        which = np.searchsorted(ends, number, side="right")
        yield starts[which] + number - (ends[which] - lengths[which]), which


def _mixed(signature_NS: np.ndarray) -> np.ndarray:
    """(N,) uint64 by which equal signatures come to lie side by side; different ones may share it."""
    wide = -(-signature_NS.shape[1] // 8)
    words = np.zeros((len(signature_NS), wide), np.uint64)
    words.view(np.uint8)[:, : signature_NS.shape[1]] = signature_NS
    mixed = words * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.arange(1, 2 * wide, 2, dtype=np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    return np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(32)), axis=1)
