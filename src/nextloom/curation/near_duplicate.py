"""Reduce `near_duplicate`: rows whose hashes differ in few bits share a group.

    phash:     {op: perceptual_hash}
    duplicate: {op: near_duplicate, reads: [phash], max_distance: 6}

Two rows are linked when their hashes differ in at most `max_distance` bits; a group is what links connect, and its
smallest id represents it. Exact, by the pigeonhole principle (Norouzi et al., "Fast Exact Search in Hamming Space
with Multi-Index Hashing", arXiv 1307.2982): of 4 bands of 16 bits, one differs in at most `max_distance // 4` bits,
so a hash is only compared with those that nearly share a band.

Price paid: links chain, so members of a group may be further apart than `max_distance` (`distance` says how far
from the representative); flat pictures, whatever their colour, hash alike and fall into one group; comparisons
grow with the square of the number of *different* hashes that share a band.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from nextloom.errors import UserError, did_you_mean
from nextloom.op import Reduce

BANDS = 4
BAND_BITS = 16
PAIRS_AT_ONCE = 4_000_000
"""Pairs compared in one numpy call: about 100 MB."""


class NearDuplicate(Reduce):
    """Groups of rows whose hashes differ in at most `max_distance` bits."""

    name: ClassVar[str] = "near_duplicate"
    code_version: ClassVar[int] = 1

    max_distance: int = Field(default=6, ge=0, le=8)
    """Bits in which linked hashes may differ. On 64-bit perceptual hashes 6 links re-encoded and resized copies."""
    column: str = "hash"
    """Column of the step in `reads` that holds the hash, an int64 bit pattern."""

    @field_validator("reads")
    @classmethod
    def _one_step(cls, reads: tuple[str, ...]) -> tuple[str, ...]:
        if len(reads) != 1:
            raise ValueError("near_duplicate reads exactly one step, the one that hashes")
        return reads

    def columns(self) -> pa.Schema:
        return pa.schema([("group", pa.int64()), ("hit", pa.bool_()), ("distance", pa.int32())])

    def check(self, known: Mapping[str, Iterable[str]], where: str) -> None:
        """Refuse a step without the hash column.

        Args:
            known: step -> names of its columns.
            where: config path for the message.

        Raises:
            UserError: no such column, with the nearest name.
        """
        (step,) = self.reads
        names = list(known[step])
        if self.column not in names:
            hint = did_you_mean(self.column, names)
            raise UserError(f"{step!r} has no column {self.column!r}; {hint}", where=f"{where}.reads")

    def reduce(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """Group, hit and distance of each row; null where the hash is.

        Args:
            columns: the step in `reads` -> table(id, hash, error), sorted by id.

        Returns:
            table(id, group, hit, distance) sorted by id. `group` is the smallest id of the group, `hit` is true for
            every other member, `distance` counts the bits between a row's hash and the representative's (0 to 64).

        Raises:
            UserError: the step has no such column of int64.
        """
        (step,) = self.reads
        table = columns[step]
        self.check({step: table.column_names}, "column")
        if table.schema.field(self.column).type != pa.int64():
            raise UserError(f"{step}.{self.column} is no int64 hash", where="column")
        table = table.sort_by("id")
        hashed = table.filter(table[self.column].is_valid())
        ids = hashed["id"].to_numpy()
        hashes = hashed[self.column].to_numpy().view(np.uint64)
        leader = representatives(hashes, self.max_distance)
        values = pa.table(
            {
                "group": pa.array(ids[leader], pa.int64()),
                "hit": pa.array(leader != np.arange(len(ids))),
                "distance": pa.array(np.bitwise_count(hashes ^ hashes[leader]), pa.int32()),
            }
        )
        place = pc.index_in(table["id"], hashed["id"])  # null where there is no hash, and `take` keeps that
        return values.take(place).add_column(0, "id", table["id"])


def representatives(hashes_N: np.ndarray, max_distance: int) -> np.ndarray:
    """(N,) int64: for each hash the first position of its connected group.

    Args:
        hashes_N: uint64.
        max_distance: bits in which two linked hashes may differ.
    """
    unique, first, inverse = np.unique(hashes_N, return_index=True, return_inverse=True)
    by_first = np.argsort(first)  # label = order of first appearance, so the smallest label leads
    label = np.empty_like(by_first)
    label[by_first] = np.arange(len(unique))
    unique, first = unique[by_first], first[by_first]
    root = np.arange(len(unique))
    if max_distance:
        for left, right in _candidates(unique, max_distance // BANDS):
            close = np.bitwise_count(unique[left] ^ unique[right]) <= max_distance
            root = _union(root, left[close], right[close])
    return first[root[label[inverse]]]


def _candidates(hashes_U: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions (left < right) of which some band differs in at most `radius` bits, in bounded lots."""
    masks = [sum(1 << bit for bit in bits) for r in range(radius + 1) for bits in combinations(range(BAND_BITS), r)]
    positions = np.arange(len(hashes_U))
    for band in range(BANDS):
        key = ((hashes_U >> np.uint64(band * BAND_BITS)) & np.uint64(2**BAND_BITS - 1)).astype(np.int64)
        bucket = np.argsort(key, kind="stable")
        size = np.bincount(key, minlength=2**BAND_BITS)
        start = np.cumsum(size) - size
        for mask in masks:
            other = key ^ mask
            total = np.cumsum(size[other])
            begin = 0
            while begin < len(positions):
                done = total[begin - 1] if begin else 0
                end = max(begin + 1, int(np.searchsorted(total, done + PAIRS_AT_ONCE, side="right")))
                counts = size[other[begin:end]]
                left = np.repeat(positions[begin:end], counts)
                within = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
                right = bucket[np.repeat(start[other[begin:end]], counts) + within]
                once = left < right
                yield left[once], right[once]
                begin = end


def _union(root: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join the groups of each pair: every position points at the smallest of its group, before and after."""
    while True:
        a, b = root[left], root[right]
        apart = a != b
        if not apart.any():
            return root
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(shorter := root[root], root):
            root = shorter
