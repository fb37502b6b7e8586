"""Curation against a bare loop: what accounting, commits and Ray cost on top of the same kernels.

    python benchmarks/curation.py [--small 2000] [--large 20000] [--folder DIR] [--peers]

Pictures: half are crops of the photographs that scikit-image and scikit-learn ship (JPEG, 160 to 640 pixels a side),
half are OpenMoji (PNG, 96 to 512 pixels), all distinct; the larger set holds each of them ten times under other
names. Both sides decode each picture once with the same function and run the same five scorers: image_stats at two
sizes, perceptual_hash, quality at two sizes. The bare loop is a pool of two processes that writes one Parquet file and
keeps no row that fails.

Figures are CPU-seconds of all processes, as the slope between the two sizes, so that a fixed cost counts once. Prints
a table; the last line is one JSON object:
    cpu_ratio     CPU-seconds per picture of `nextloom run` over those of the bare loop
    fixed_cpu_s   CPU-seconds of a run that do not depend on the number of pictures (Ray's start, imports)
    unaccounted   pictures that ended neither as a value nor as an error, over all steps
    rss_growth    peak memory of the larger run over that of the smaller (proportional set sizes)
With --peers also Daft, Ray Data's own readers and Data-Juicer, each in a virtual environment of its own, beside
`nextloom run` in the same measure: pictures per CPU-second of a whole job on the smaller set, start-up included, and
rows unaccounted for on a copy of it with 1 % of the files cut in half (`tools/peers.py`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tools.kernels import STEPS, score
from tools.usage import Usage, measure

WORKERS = 2


def write_pictures(folder: Path, count: int) -> None:
    """`count` distinct pictures; equal bytes for equal counts."""
    import skimage
    import sklearn.datasets
    from PIL import Image

    from nextloom.samples import PHOTOS, _draw, _emoji

    places = {"skimage": Path(skimage.__file__).parent, "sklearn": Path(sklearn.__file__).parent}
    files = [places[name.partition("/")[0]] / name.partition("/")[2] for name in PHOTOS]
    photos = [Image.open(file).convert("RGB") for file in files if file.is_file()]
    photos = [photo for photo in photos if min(photo.size) > 330]
    rng = np.random.default_rng(0)
    for number in range(count // 2):
        photo = photos[number % len(photos)]
        width, height = (int(rng.integers(160, min(640, side) + 1)) for side in photo.size)
        left, top = (
            int(rng.integers(0, side - cut + 1)) for side, cut in zip(photo.size, (width, height), strict=True)
        )
        photo.crop((left, top, left + width, top + height)).save(folder / f"photo{number:05d}.jpg", quality=90)
    drawings = list(_emoji())
    for number in range(count - count // 2):
        stem, _, svg = drawings[number % len(drawings)]
        size = int(rng.integers(96, 513))
        (folder / f"emoji{number:05d}-{stem}.png").write_bytes(_draw(svg, size))


def multiply(small: Path, large: Path, times: int) -> None:
    """Each file of `small` under `times` names."""
    for file in small.iterdir():
        for copy in range(times):
            os.link(file, large / f"{copy:02d}-{file.name}")


def bare(folder: str, out: str) -> None:
    """Two processes over all files, one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(str(p) for p in Path(folder).iterdir())
    with multiprocessing.Pool(WORKERS) as pool:
        rows = pool.map(score, paths, chunksize=64)
    pq.write_table(pa.Table.from_pylist(rows), out, compression="zstd")


def run(folder: str, root: str) -> None:
    """`nextloom run` over all files."""
    from nextloom.cli import app

    recipe = {"dataset": "bench", "source": {"op": "files", "path": folder}, "steps": STEPS}
    file = Path(root) / "bench.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(recipe))
    app(["run", str(file), "--root", root], standalone_mode=False)


def unaccounted(folder: Path, root: Path) -> int:
    """Over all steps: pictures minus values minus errors."""
    count = sum(1 for _ in folder.iterdir())
    receipts = [json.loads((root / f"datasets/bench/receipts/{name}.json").read_text()) for name in STEPS]
    return sum(abs(count - r["counts"]["values"] - r["counts"]["errors"]) for r in receipts)


def side(name: str, *arguments: object) -> Usage:
    """One measured call of this file: `bare` or `run`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return measure([sys.executable, __file__, "--side", name, *map(str, arguments)], env)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--large", type=int, default=20000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--side", nargs=3)
    args = parser.parse_args()
    if args.side:
        {"bare": bare, "run": run}[args.side[0]](*args.side[1:])
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        place = Path(scratch)
        sets = {args.small: place / "small", args.large: place / "large"}
        for folder in sets.values():
            folder.mkdir()
        write_pictures(sets[args.small], args.small)
        multiply(sets[args.small], sets[args.large], args.large // args.small)
        figures: dict[tuple[str, int], Usage] = {}
        lost = 0
        for count, folder in sets.items():
            figures["bare", count] = side("bare", folder, place / f"{count}.parquet")
            figures["run", count] = side("run", folder, place / f"root{count}")
            lost += unaccounted(folder, place / f"root{count}")
        told = report(figures, args.small, args.large, lost)
        if args.peers:
            from tools.peers import compare

            told["peers"] = compare(sets[args.small], place)
        print(json.dumps(told))


def report(figures: dict[tuple[str, int], Usage], small: int, large: int, lost: int) -> dict[str, Any]:
    """Print the table; returns the figures of the last line."""
    slope, fixed = {}, {}
    print(f"{'':>6}{'pictures':>10}{'CPU s':>9}{'wall s':>9}{'peak MB':>9}")
    for name in ("bare", "run"):
        for count in (small, large):
            used = figures[name, count]
            print(f"{name:>6}{count:>10,}{used.cpu_seconds:>9.1f}{used.seconds:>9.1f}{used.peak_bytes / 2**20:>9.0f}")
        growth = figures[name, large].cpu_seconds - figures[name, small].cpu_seconds
        slope[name] = growth / (large - small)
        fixed[name] = figures[name, small].cpu_seconds - slope[name] * small
        print(f"{name:>6}  {slope[name] * 1000:.2f} CPU-ms per picture, {fixed[name]:.1f} CPU-s fixed")
    return {
        "cpu_ratio": round(slope["run"] / slope["bare"], 3),
        "fixed_cpu_s": round(fixed["run"], 1),
        "unaccounted": lost,
        "rss_growth": round(figures["run", large].peak_bytes / figures["run", small].peak_bytes, 3),
        "images_per_cpu_second": round(1 / slope["run"], 1),
    }


if __name__ == "__main__":
    main()
