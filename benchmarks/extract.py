"""Extraction of tokens: pictures per CPU-second, where the time goes, and how near it comes to the bare model.

    python benchmarks/extract.py [--pictures 12] [--profiles toy full]

Photographs that scikit-image and scikit-learn ship, through the worker that `nextloom run` uses (fetch, decode, resize,
encode, quantise with self-correction, Parquet), one process and one thread, with random weights. `toy` has 8 pixels and
512 codes, `full` 16 pixels, the published networks and 32,768 codes. The ceiling is the model alone on inputs that are
ready in memory: encoder and quantiser. Prints a table; the last line is one JSON object:
    images_per_cpu_second_256, _512      of the full profile, and with toy_ before it of the toy
    share_decode, share_encode, share_quantise, share_write      of the full profile at 256
    ceiling_share                        the ceiling's CPU-seconds over the worker's, the least over all cases
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import skimage
import sklearn
import torch

from nextloom import pixels
from nextloom.pipelines import worker as worker_module
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import Recipe
from nextloom.pipelines.worker import Source, Task, Worker
from nextloom.samples import PHOTOS
from nextloom.store.dataset import Dataset
from nextloom.tokenize.image_tokens import ImageTokens
from nextloom.tokenize.quantizer import Correction, Quantizer
from nextloom.tokenize.schedule import FINAL_GRIDS, bucket, schedule
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import PROFILES

LEVELS = (256, 512)
PLACES = {"skimage": Path(skimage.__file__).parent, "sklearn": Path(sklearn.__file__).parent}


def write_pictures(folder: Path, count: int) -> None:
    """`count` photographs, some of them twice under other names where there are too few."""
    folder.mkdir(parents=True)
    files = [PLACES[name.partition("/")[0]] / name.partition("/")[2] for name in PHOTOS]
    files = [file for file in files if file.is_file()]
    for number in range(count):
        file = files[number % len(files)]
        shutil.copy(file, folder / f"{number:04d}-{file.name}")


class Clock:
    """CPU-seconds inside named functions, while patched in."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._undo: list[tuple[Any, str, Any]] = []

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        original = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - start

        setattr(owner, attribute, timed)
        self._undo.append((owner, attribute, original))

    def stop(self) -> None:
        for owner, attribute, original in self._undo:
            setattr(owner, attribute, original)


def extract(root: Path, level: int) -> tuple[float, dict[str, float]]:
    """CPU-seconds of the worker on all pictures, and of its parts."""
    recipe = Recipe.build(
        {
            "dataset": f"bench{level}",
            "source": {"op": "files", "path": "pics"},
            "steps": {"tokens": {"op": "image_tokens", "tokenizer": "tokenizer", "level": level}},
        },
        root=str(root),
    )
    dataset = Dataset(str(root / "datasets" / recipe.dataset))
    with dataset.lease("benchmark"):
        planner = Planner(recipe, dataset)
        planner.sync()
        (step,) = planner.graph
        planner.judge(step)
        rows = Source(dataset.rows.uri, tuple(dataset.rows.files()))
        worker = Worker([Task("tokens", step.op, planner.table("tokens").uri)], rows)  # type: ignore[arg-type]
        ids = dataset.live_rows([])["id"].to_numpy()
        chunk = pa.table({"id": ids, "tokens": np.ones(len(ids), bool)})
        worker(chunk.slice(0, 1))
        clock = Clock()
        clock.watch(pixels, "decode", "decode")
        clock.watch(pixels, "to_model", "decode")
        clock.watch(Tokenizer, "features", "encode")
        clock.watch(Quantizer, "encode", "quantise")
        clock.watch(worker_module, "write_file", "write")
        start = time.process_time()
        worker(chunk)
        total = time.process_time() - start
        clock.stop()
    return total, clock.seconds


def ceiling(root: Path, level: int) -> float:
    """CPU-seconds of encoder and quantiser on the same pictures, ready in memory."""
    tokenizer = Tokenizer.load(root / "tokenizer")
    op = ImageTokens(tokenizer=str(root / "tokenizer"), level=level)  # type: ignore[arg-type]
    ready = []
    for file in sorted((root / "pics").iterdir()):
        rgb = pixels.decode(file.read_bytes())
        grids = schedule(FINAL_GRIDS[bucket(rgb.shape[0], rgb.shape[1], op.count)], op.count)
        side = [cells * tokenizer.config.patch for cells in grids[-1]]
        ready.append((torch.from_numpy(pixels.to_model(rgb, *side))[None], grids, file.name))
    tokenizer.tokenize(ready[0][0], ready[0][1])
    start = time.process_time()
    for x, grids, key in ready:
        tokenizer.tokenize(x, grids, Correction(op.p, op.top_k, op.tau, op.seed), [key])
    return time.process_time() - start


def best(measure: Callable[[], Any], key: Callable[[Any], float]) -> Any:
    """The quicker of two runs."""
    return min((measure() for _ in range(2)), key=key)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--profiles", nargs="*", default=["toy", "full"])
    parser.add_argument("--peers", action="store_true", help="nothing more: no other tool does this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("profile  level  images per CPU-s  decode  encode  quantise  write  other  ceiling share")
    told: dict[str, float] = {}
    shares = []
    for profile in args.profiles:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            write_pictures(root / "pics", args.pictures)
            torch.manual_seed(0)
            Tokenizer(PROFILES[profile]()).save(root / "tokenizer")
            for level in LEVELS:
                total, parts = best(lambda: extract(root, level), lambda r: r[0])  # noqa: B023
                bare = best(lambda: ceiling(root, level), lambda r: r)  # noqa: B023
                share = {name: parts[name] / total for name in ("decode", "encode", "quantise", "write")}
                shares.append(bare / total)
                prefix = "" if profile == "full" else f"{profile}_"
                told[f"{prefix}images_per_cpu_second_{level}"] = round(args.pictures / total, 3)
                if (profile, level) == ("full", 256) or len(args.profiles) == 1:
                    told |= {f"share_{name}": round(value, 3) for name, value in share.items()}
                cells = "".join(f"{value:>9.1%}" for value in (*share.values(), 1 - sum(share.values())))
                print(f"{profile:>7}{level:>7}{args.pictures / total:>18.2f}{cells}{bare / total:>12.3f}")
    print(json.dumps({**told, "ceiling_share": round(min(shares), 3)}))


if __name__ == "__main__":
    main()
