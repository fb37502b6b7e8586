"""All pairs of 64-bit hashes that differ in at most a few bits: an exact banded index that sorts.

The bits are cut into B blocks. Two hashes that differ in at most d bits agree on at least B - d blocks, so under
some choice of B - d blocks (a *key*) they agree on all of it (Manku, Jain, Das Sarma, "Detecting near-duplicates for
web crawling", WWW 2007). For each of the C(B, d) keys the bits are moved so that the key is on top, the hashes are
sorted, and each is compared with its first, second, ... successor for as long as the key is the same: a few array
operations per shift and no bucket structure. A pair is given under its first key alone.

    B = d + 1   few keys of few bits: little sorting, many comparisons      small N
    B = d + 2.. more keys, longer ones: more sorting, fewer comparisons     large N

B is chosen by an estimate of both costs from a sample, and blocks get equal entropy, not equal width, so that bits
which hardly vary do not make a key useless. Both change the time alone, never the pairs.

A pair of hashes links the rows that have them; where rows have signatures too, only those that agree (`items.py`).

Price paid: comparisons grow with the square of the number of *different* hashes that share a key. Memory: about
75 bytes per hash where `groups` runs (170 with signatures), 25 in each Ray worker, and lots of bounded size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from nextloom.curation.duplicates.groups import Components
from nextloom.curation.duplicates.items import Items

BITS = 64
LOT = 1 << 15
"""Hashes handled at once: their temporaries stay in the cache."""
SAMPLE = 1 << 16
SECONDS_PER_SORTED, SECONDS_PER_PAIR = 9e-8, 1.6e-9
"""Measured (docs/log.md): moving and sorting a hash under one key; comparing one pair."""
SECONDS_PER_KEY = 1e-4
RAY_FROM = 10.0
"""Estimated CPU-seconds from which Ray's workers are asked; below, starting them costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Key:
    """One choice of blocks, as moves of bits that bring it to the top."""

    moves: tuple[tuple[int, int], ...]
    """(mask of bits, places to the left; negative: to the right) that together permute all 64 bits."""
    width: int
    """Bits of the key."""
    skipped: tuple[int, ...]
    """Masks, after the move, of the blocks left out below the key's last: agreeing there, a pair has an earlier key."""


def groups(
    hashes_N: np.ndarray,
    max_distance: int,
    workers: int | None = None,
    signatures_NS: np.ndarray | None = None,
    tolerance_S: np.ndarray | None = None,
) -> np.ndarray:
    """(N,) int64: for each hash the first position of its connected group.

    Args:
        hashes_N: uint64, in any order, with any number of equal ones.
        max_distance: bits in which two linked hashes may differ; time grows steeply, 8 is practical.
        workers: Ray tasks to spread the keys over. Default: as many as CPUs when Ray is up and there is enough to
            do, else this process. The groups are the same.
        signatures_NS: uint8; rows are linked only where these agree too, equal hashes included.
        tolerance_S: how far two agreeing signatures may differ in each byte, see `items.py`.
    """
    unique_U, rank_N = np.unique(hashes_N, return_inverse=True)
    items, item_N, count = None, rank_N, len(unique_U)
    if signatures_NS is not None and tolerance_S is not None:
        items = Items(rank_N, signatures_NS, tolerance_S)
        item_N, count = items.item_N, len(items)
    first = np.empty(count, np.int64)
    first[item_N[::-1]] = np.arange(len(hashes_N))[::-1]  # of an index that is there twice the last value stays
    rank = np.empty_like(first)
    by_first = np.argsort(first)
    rank[by_first] = np.arange(count)  # positions by first appearance: the smallest of a group is its first
    links = Components(count)
    for left, right in items.within() if items else ():
        links.link(rank[left], rank[right])
    if max_distance and len(unique_U) > 1:
        chosen, seconds = plan(unique_U, max_distance)
        for left, right in _spread(unique_U, items, max_distance, chosen, _parts(workers, seconds, len(chosen))):
            links.link(rank[left], rank[right])
    return first[by_first[links.roots()[rank[item_N]]]]


def pairs(sorted_U: np.ndarray, max_distance: int, chosen: list[Key]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (left, right) of the pairs that differ in at most `max_distance` bits, in lots; each pair once.

    Args:
        sorted_U: uint64, different and sorted.
        max_distance: as given to `plan`.
        chosen: all keys of a `plan`; some of them give the pairs of which these are the first keys.
    """
    for key in chosen:
        moved = _move(sorted_U, key.moves)
        moved.sort()
        back = tuple((_shift(mask, places), -places) for mask, places in key.moves)
        for left, right in _successors(moved, key, max_distance):
            yield np.searchsorted(sorted_U, _move(left, back)), np.searchsorted(sorted_U, _move(right, back))


def plan(sorted_U: np.ndarray, max_distance: int) -> tuple[list[Key], float]:
    """The keys with the least estimated cost for these hashes, and that cost in CPU-seconds."""
    count = len(sorted_U)
    sample = sorted_U[:: max(1, count // SAMPLE)]
    best: list[Key] = []
    cost = float("inf")
    for blocks in range(max_distance + 1, max_distance + 7):
        sorting = SECONDS_PER_KEY + SECONDS_PER_SORTED * count
        if comb(blocks, max_distance) * sorting >= cost:
            break  # more blocks mean more keys to sort by
        keys = _keys(_edges(sample, blocks), max_distance)
        met = [_meetings(sample, key) for key in keys[:: max(1, len(keys) // 8)]]
        compared = float(np.mean(met)) * (count / len(sample)) ** 2
        seconds = len(keys) * (sorting + SECONDS_PER_PAIR * compared)
        if seconds < cost:
            best, cost = keys, seconds
    return best, cost


def _edges(sample: np.ndarray, blocks: int) -> list[int]:
    """`blocks` + 1 bit positions from 0 to 64 that cut the bits into blocks of about equal entropy."""
    ones = np.array([np.mean(sample >> np.uint64(bit) & np.uint64(1)) for bit in range(BITS)])
    inside = np.clip(ones, 1e-12, 1 - 1e-12)
    entropy = np.cumsum(-inside * np.log2(inside) - (1 - inside) * np.log2(1 - inside))
    cuts = np.searchsorted(entropy, entropy[-1] * np.arange(1, blocks) / blocks) + 1
    return [0, *np.minimum(cuts, BITS).tolist(), BITS]


def _keys(edges: list[int], max_distance: int) -> list[Key]:
    """A key for each choice of all but `max_distance` blocks, in lexicographic order."""
    blocks = len(edges) - 1
    keys = []
    for chosen in combinations(range(blocks), blocks - max_distance):
        moves: dict[int, int] = {}
        skipped, place = [], 0
        for block in sorted(range(blocks), key=lambda b: (b in chosen, b)):
            low, high = edges[block], edges[block + 1]
            mask = (1 << high) - (1 << low)
            moves[place - low] = moves.get(place - low, 0) | mask
            if block not in chosen and block < chosen[-1]:
                skipped.append(_shift(mask, place - low))
            place += high - low
        width = sum(edges[b + 1] - edges[b] for b in chosen)
        keys.append(Key(tuple((m, s) for s, m in moves.items() if m), width, tuple(skipped)))
    assert len(keys) == comb(blocks, max_distance)
    return keys


def _shift(mask: int, places: int) -> int:
    return mask << places if places >= 0 else mask >> -places


def _move(hashes_N: np.ndarray, moves: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The hashes with their bits moved."""
    out = np.zeros_like(hashes_N)
    part = np.empty(min(LOT, len(hashes_N)), np.uint64)
    for begin in range(0, len(hashes_N), LOT):
        lot, target = hashes_N[begin : begin + LOT], out[begin : begin + LOT]
        bits = part[: len(lot)]
        for mask, places in moves:
            np.bitwise_and(lot, np.uint64(mask), out=bits)
            (np.left_shift if places >= 0 else np.right_shift)(bits, np.uint64(abs(places)), out=bits)
            target |= bits
    return out


def _top(moved: np.ndarray, width: int) -> np.ndarray:
    """The `width` highest bits; a key of no bits is 0."""
    return moved >> np.uint64(BITS - width) if width else np.zeros_like(moved)


def _meetings(sample: np.ndarray, key: Key) -> int:
    """Pairs of the sample that agree on the key."""
    runs = np.unique(_top(_move(sample, key.moves), key.width), return_counts=True)[1]
    return int((runs * (runs - 1) // 2).sum())


def _successors(moved: np.ndarray, key: Key, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of hashes with equal keys, of sorted moved ones, that are close and have no earlier key."""
    for begin in range(0, len(moved), LOT):
        end = min(begin + LOT, len(moved))
        top = _top(moved[begin:end], key.width)
        starts = np.flatnonzero(np.append(True, top[1:] != top[:-1]))
        stops = np.append(starts[1:] + begin, _run_end(moved, end, key.width))
        after = np.repeat(stops, np.diff(np.append(starts, len(top)))) - np.arange(begin, end) - 1
        lefts, longest = None, int(after.max())
        for step in range(1, longest + 1):
            if lefts is None and step & (step - 1) == 0 and np.count_nonzero(after >= step) * 4 < len(after):
                lefts = np.arange(begin, end)  # few have so many successors: go on with those alone
            if lefts is None:
                stop = min(end, len(moved) - step)
                difference = moved[begin + step : stop + step] ^ moved[begin:stop]
            else:
                lefts = lefts[after[lefts - begin] >= step]
                difference = moved[lefts + step] ^ moved[lefts]
            close = np.flatnonzero(np.bitwise_count(difference) <= max_distance)
            if not len(close):
                continue
            found = difference[close]
            ours = _top(found, key.width) == 0
            for mask in key.skipped:
                ours &= (found & np.uint64(mask)) != 0
            left = (close + begin if lefts is None else lefts[close])[ours]
            yield moved[left], moved[left + step]


def _run_end(moved: np.ndarray, end: int, width: int) -> int:
    """Where the run of equal keys ends that the hash before `end` is in."""
    if not width:
        return len(moved)
    following = ((int(moved[end - 1]) >> (BITS - width)) + 1) << (BITS - width)
    if following >> BITS:
        return len(moved)
    return end + int(np.searchsorted(moved[end:], np.uint64(following)))


def _parts(workers: int | None, seconds: float, keys: int) -> int:
    """Ray tasks to use; 0: none."""
    ray = sys.modules.get("ray")  # Ray that is up has been imported
    if ray is None or not ray.is_initialized():
        return 0
    if workers is None:
        workers = int(ray.cluster_resources().get("CPU", 1)) if seconds >= RAY_FROM else 0
    return min(workers, keys)


def _spread(
    sorted_U: np.ndarray, items: Items | None, max_distance: int, chosen: list[Key], parts: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Links between hashes, or items: found here, or by `parts` Ray tasks with every parts-th key each.

    Tasks started inside a task do not dead-lock: one that waits in `ray.get` gives its CPU away.
    """
    if parts < 2:
        yield from _links(sorted_U, items, max_distance, chosen)
        return
    import ray

    shared = ray.put((sorted_U, items))
    task = ray.remote(max_retries=2)(_forest)
    waiting = [task.remote(shared, max_distance, chosen[part::parts]) for part in range(parts)]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield ray.get(done[0])


def _links(
    sorted_U: np.ndarray, items: Items | None, max_distance: int, chosen: list[Key]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of near hashes; with items, the pairs of these that agree."""
    for near in pairs(sorted_U, max_distance, chosen):
        if items is None:
            yield near
        else:
            yield from items.links(*near)


def _forest(
    shared: tuple[np.ndarray, Items | None], max_distance: int, chosen: list[Key]
) -> tuple[np.ndarray, np.ndarray]:
    """One link per hash or item that is not the first of its group: fewer than those, however many pairs there are."""
    sorted_U, items = shared
    links = Components(len(sorted_U if items is None else items))
    for left, right in _links(sorted_U, items, max_distance, chosen):
        links.link(left, right)
    root = links.roots()
    linked = np.flatnonzero(root != np.arange(len(root)))
    return linked, root[linked]
