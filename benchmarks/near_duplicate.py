"""Near duplicates among a million and ten million random 64-bit hashes, with planted neighbours.

    python benchmarks/near_duplicate.py [--counts 1000000 10000000] [--distance 4]

Random hashes stand far apart (two of ten million within 4 bits are a matter of a handful), so what is found is what
was planted: 1,000 pairs at each distance from 1 to `--distance`. One process, one thread. Prints a table; the last
line is one JSON object:
    recall           planted pairs that ended in one group, 1.0 is all
    seconds_1m       CPU-seconds for a million
    seconds_10m      CPU-seconds for ten million
    peak_mb_10m      memory of the process at its peak
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

PLANTED = 1000


def hashes(count: int, distance: int) -> np.ndarray:
    """Random hashes; the last PLANTED * distance of them lie 1, 2, ... `distance` bits from the first ones."""
    rng = np.random.default_rng(count)
    out = rng.integers(0, 2**64, count, dtype=np.uint64)
    for bits in range(1, distance + 1):
        for number in range(PLANTED):
            flips = rng.choice(64, bits, replace=False).astype(np.uint64)
            at = (bits - 1) * PLANTED + number
            out[count - 1 - at] = out[at] ^ np.bitwise_or.reduce(np.uint64(1) << flips)
    return out


def side(count: int, distance: int) -> None:
    """One measured process; prints its figures as JSON."""
    from nextloom.curation.duplicates.hamming import groups

    data = hashes(count, distance)
    start = time.process_time()
    leader = groups(data, distance)
    seconds = time.process_time() - start
    at = np.arange(PLANTED * distance)
    found = (leader[count - 1 - at] == leader[at]).mean()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"recall": float(found), "seconds": round(seconds, 2), "peak_mb": round(peak)}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--distance", type=int, default=4)
    parser.add_argument("--side", type=int)
    parser.add_argument("--peers", action="store_true", help="nothing more: others compare for equality, or need GPUs")
    args = parser.parse_args()
    if args.side:
        side(args.side, args.distance)
        return
    print(f"    hashes  distance  CPU s  peak MB  recall at <= {args.distance}")
    told, recall = {}, 1.0
    for count in args.counts:
        call = [sys.executable, __file__, "--side", str(count), "--distance", str(args.distance)]
        done = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        row = f"{count:>10,}{args.distance:>10}{done['seconds']:>7.1f}{done['peak_mb']:>9,}"
        print(f"{row}{done['recall']:>9.4f}")
        name = f"{count // 1_000_000}m"
        told |= {f"seconds_{name}": done["seconds"], f"peak_mb_{name}": done["peak_mb"]}
        recall = min(recall, done["recall"])
    print(json.dumps({"recall": recall, **told}))


if __name__ == "__main__":
    main()
