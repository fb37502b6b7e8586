"""Packing: windowed LPT against next-fit and against padding, on a simulated 512-level mixture, side by side.

    python benchmarks/packing.py [--samples 100000]

Prints a table; the last line is one JSON object:
    samples_per_cpu_second   LPT, budget sweep included
    cost_ratio               CPU-seconds of LPT over those of next-fit
    balance                  mean over costliest pack, LPT (1 is perfect)
    balance_next_fit         the same for next-fit
    gain                     throughput of LPT over next-fit at 64 workers: step time is the costliest pack's
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pyarrow as pa

from nextloom.tokenize.documents import cost, picture_blocks
from nextloom.tokenize.packing import PackSamples
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule

WORKERS = 64
SCALES = 16


def mixture(count: int, seed: int = 0) -> pa.Table:
    """Lengths of `count` text-to-image samples: square 512-pixel pictures, log-normal captions of mean 120."""
    rng = np.random.default_rng(seed)
    captions = np.clip(rng.lognormal(np.log(120) - 0.32, 0.8, count), 4, 4096).astype(np.int64)
    return pa.table(
        {
            "id": np.arange(count),
            "text_tokens": pa.array(captions, pa.int32()),
            "schedule": pa.array(rng.choice([6, 12, 20, 28, 34], count, p=[0.1, 0.2, 0.4, 0.2, 0.1]), pa.int32()),
            "scales": pa.array(np.full(count, SCALES), pa.int32()),
        }
    )


def next_fit(op: PackSamples, lengths: pa.Table) -> np.ndarray:
    """Cost of each pack when samples are taken in order and a pack closes at the token cap."""
    pictures = {row: picture_blocks(schedule(FINAL_GRIDS[row], SCALES)) for row in range(len(FINAL_GRIDS))}
    packs, used = [0], 0
    for text, row in zip(lengths["text_tokens"].to_pylist(), lengths["schedule"].to_pylist(), strict=True):
        size, pairs = cost([1] * text + pictures[row])
        price = op.cost.per_token * size + op.cost.per_pair * pairs
        if used + size > op.token_cap:
            packs.append(0)
            used = 0
        used += size
        packs[-1] += price
    return np.array(packs[:-1])


def throughput(costs: np.ndarray) -> float:
    """Mean cost per step over the step's costliest pack: the share of the workers' time that is work."""
    steps = costs[: len(costs) // WORKERS * WORKERS].reshape(-1, WORKERS)
    return float(steps.mean() / steps.max(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--peers", action="store_true", help="no peer packs by cost under a cap; accepted and ignored")
    count = parser.parse_args().samples
    lengths = mixture(count)
    op = PackSamples(release="r", images="tokens", text="text", token_cap=32_768)
    start = time.process_time()
    packs, rejected = op.pack(lengths)
    lpt_seconds = time.process_time() - start
    start = time.process_time()
    plain = next_fit(op, lengths)
    plain_seconds = time.process_time() - start
    ours = packs["cost"].to_numpy()[:-1]  # the last pack takes what is left
    print(f"{count:,} samples, {SCALES} scales, cap 32,768, {WORKERS} workers")
    print(f"{'':<12}{'packs':>8}{'mean/max':>10}{'worked':>9}{'CPU s':>8}")
    for name, costs, seconds in (("LPT", ours, lpt_seconds), ("next-fit", plain, plain_seconds)):
        print(f"{name:<12}{len(costs):>8,}{costs.mean() / costs.max():>10.4f}{throughput(costs):>9.4f}{seconds:>8.2f}")
    figures = {
        "samples_per_cpu_second": round(count / lpt_seconds),
        "cost_ratio": round(lpt_seconds / plain_seconds, 2),
        "balance": round(float(ours.mean() / ours.max()), 4),
        "balance_next_fit": round(float(plain.mean() / plain.max()), 4),
        "gain": round(throughput(ours) / throughput(plain), 3),
        "rejected": rejected.num_rows,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
