"""Packs of equal cost: windowed LPT over integer costs, with a hard cap on tokens.

    1. window      k = floor(sum of cost / budget) empty packs; samples by falling cost, each into the least loaded
                   pack; what no longer fits goes on to the next window, the last window packs everything
    2. budget      `sweep` tries some and takes the one whose packs are the most equal

Equal cost for every pack is possible when the budget is no less than the costliest sample and not much more than
the cap's worth of tokens. Costs are integers, so that ties and sums are the same on every machine.

In pure Python with heapq; samples/s are in `packing`. Best-fit packs 0.03 % tighter but sorts samples by kind: some
packs are all text, some have none.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

SWEEP_SAMPLES = 20_000


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples in the order in which they are packed, one entry per sample in every array (int64)."""

    ids: np.ndarray
    tokens: np.ndarray
    pairs: np.ndarray
    cost: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def lpt(samples: Samples, cap: int, budget: int, window: int) -> list[list[int]]:
    """Windowed LPT: lists of positions in `samples`. Ties: earlier sample first, then the pack opened first."""
    packs: list[list[int]] = []
    waiting: list[int] = []
    for start in range(0, len(samples), window):
        waiting += range(start, min(start + window, len(samples)))
        last = start + window >= len(samples)
        while waiting:
            positions = np.asarray(waiting)
            need = int(samples.cost[positions].sum()) / budget, int(samples.tokens[positions].sum()) / cap
            count = -int(-max(need) // 1) if last else int(max(need))
            count = min(max(count, int(last)), len(positions))
            full, left = _fill(samples, positions, count, cap, budget)
            packs += full
            waiting = left
            if not last:
                break
    return packs


def _fill(
    samples: Samples, positions: np.ndarray, count: int, cap: int, budget: int
) -> tuple[list[list[int]], list[int]]:
    """LPT into `count` packs; returns the packs and what did not fit, in its old order.

    Load is max(cost / budget, tokens / cap), kept in integers, so that a pack out of token room is never the least
    loaded one for ever.
    """
    costs, tokens = samples.cost[positions], samples.tokens[positions]
    by_cost = np.argsort(-costs, kind="stable").tolist()
    costs, tokens, where = costs.tolist(), tokens.tolist(), positions.tolist()
    alone = [[where[i]] for i in by_cost if costs[i] > budget]
    packs: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    spent, used, left = [0] * count, [0] * count, []
    for i in by_cost[len(alone) :]:
        number = heap[0][1] if heap else -1
        if number < 0 or spent[number] + costs[i] > budget or used[number] + tokens[i] > cap:
            left.append(i)
            continue
        spent[number] += costs[i]
        used[number] += tokens[i]
        packs[number].append(where[i])
        heapq.heapreplace(heap, (max(spent[number] * cap, used[number] * budget), number))
    return alone + [pack for pack in packs if pack], [where[i] for i in sorted(left)]


def sweep(samples: Samples, cap: int, per_token: int) -> int:
    """The budget, from 0.90 to 1.20 of `per_token * cap`, whose packs are the most equal (mean over largest cost).

    It is never below the costliest sample. Among budgets that are equal to a thousandth the largest wins: fewer,
    fuller packs. Judged on the first `SWEEP_SAMPLES` samples, which are a random draw.
    """
    if not len(samples):
        return per_token * cap
    part = Samples(*(getattr(samples, name)[:SWEEP_SAMPLES] for name in Samples.__slots__))
    largest = int(samples.cost.max())
    candidates = {per_token * cap * share // 100 for share in range(90, 121, 2)}
    candidates = {budget for budget in candidates if budget >= largest} or {largest}

    def merit(budget: int) -> tuple[float, int]:
        costs = [int(part.cost[pack].sum()) for pack in lpt(part, cap, budget, len(part))]
        return round(sum(costs) / len(costs) / max(costs), 3), budget

    return max(candidates, key=merit)
