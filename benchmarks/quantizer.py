"""The quantiser against the published form, which holds the whole distance matrix of a scale.

    python benchmarks/quantizer.py [--codes 32768] [--repeat 3]

Random features and a random codebook of 32 + 8 dimensions; the square schedules of 12, 16 and 18 steps (900, 3,684
and 10,084 codes); one picture, one thread, both sides in processes of their own that alternate. The other side is
TokenFlow's form: |z|^2 + |e|^2 - 2 z.e for each part, all cells of a scale by all codes, summed and argmin.

CPU-seconds are the least of `--repeat` runs; memory is what the peak of the process grows by. Prints a table; the
last line is one JSON object:
    speedup        CPU-seconds of the other side over ours, the least over the schedules
    memory_ratio   memory of the other side over ours, the least over the schedules
    mismatches     indices that differ, over all schedules
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

import torch
from torch.nn import functional as F

from nextloom.tokenize.quantizer import Quantizer
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule

STEPS = (12, 16, 18)
SEMANTIC, PIXEL = 32, 8


def published(z: torch.Tensor, grids, quantizer: Quantizer) -> torch.Tensor:
    """(N,) indices by whole distance matrices."""
    books = [F.normalize(part.detach(), dim=1) for part in (quantizer.semantic, quantizer.pixel)]
    rest, found = z, []
    for grid in grids:
        u = F.interpolate(rest, size=grid, mode="area").flatten(2)[0].t()
        distance = 0
        for part, book in zip(u.split([SEMANTIC, PIXEL], dim=1), books, strict=True):
            part = F.normalize(part, dim=1)
            distance = distance + (
                part.square().sum(1, keepdim=True) + book.square().sum(1) - 2 * torch.einsum("bd,nd->bn", part, book)
            )
        index = distance.argmin(1)
        q = torch.cat([book[index] for book in books], dim=1).t().reshape(1, -1, *grid)
        rest = rest - F.interpolate(q, size=z.shape[-2:], mode="bicubic")
        found.append(index)
    return torch.cat(found)


def side(name: str, codes: int, steps: int, file: str) -> None:
    """One process: encode once to warm up at a small size, then the picture; writes figures and indices."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quantizer = Quantizer(codes, SEMANTIC, PIXEL)
    with torch.no_grad():
        for part in (quantizer.semantic, quantizer.pixel):
            part.copy_(torch.randn(part.shape))
    grids = schedule(FINAL_GRIDS[20], steps)
    z = torch.randn(1, SEMANTIC + PIXEL, *grids[-1])

    def ours(z: torch.Tensor, grids) -> torch.Tensor:
        return quantizer.encode(z, grids)[1][0]

    def theirs(z: torch.Tensor, grids) -> torch.Tensor:
        with torch.no_grad():
            return published(z, grids, quantizer)

    encode = {"ours": ours, "published": theirs}[name]
    small = schedule(FINAL_GRIDS[20], 3)
    encode(z[..., : small[-1][0], : small[-1][1]].contiguous(), small)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    indices = encode(z, grids)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    torch.save({"seconds": seconds, "bytes": grown, "indices": indices}, file)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--codes", type=int, default=32_768)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--side", nargs=4)
    parser.add_argument("--peers", action="store_true", help="nothing more: the other side is always there")
    args = parser.parse_args()
    if args.side:
        name, codes, steps, file = args.side
        side(name, int(codes), int(steps), file)
        return
    print(
        f"{'steps':>6}{'codes':>8}{'ours s':>9}{'other s':>9}{'speedup':>9}{'ours MB':>9}{'other MB':>9}{'memory':>8}"
    )
    speedups, memories, mismatches = [], [], 0
    for steps in STEPS:
        runs: dict[str, list[dict]] = {"ours": [], "published": []}
        for _ in range(args.repeat):
            for name, results in runs.items():
                with tempfile.NamedTemporaryFile(suffix=".pt") as file:
                    call = [sys.executable, __file__, "--side", name, str(args.codes), str(steps), file.name]
                    subprocess.run(call, check=True)
                    results.append(torch.load(file.name))
        ours, other = ({k: min(r[k] for r in runs[n]) for k in ("seconds", "bytes")} for n in runs)
        wrong = int((runs["ours"][0]["indices"] != runs["published"][0]["indices"]).sum())
        speedups.append(other["seconds"] / ours["seconds"])
        memories.append(other["bytes"] / max(ours["bytes"], 2**20))
        mismatches += wrong
        print(
            f"{steps:>6}{len(runs['ours'][0]['indices']):>8,}{ours['seconds']:>9.3f}{other['seconds']:>9.3f}"
            f"{speedups[-1]:>9.2f}{ours['bytes'] / 2**20:>9.1f}{other['bytes'] / 2**20:>9.1f}{memories[-1]:>8.1f}"
        )
    figures = {"speedup": min(speedups), "memory_ratio": min(memories)}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()} | {"mismatches": mismatches}))


if __name__ == "__main__":
    main()
