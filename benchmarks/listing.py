"""Listing of many small shards: what a shard costs besides its rows, and what a row costs.

    python benchmarks/listing.py [--shards 2000] [--rows 10] [--large 10] [--large-rows 100000]

Parquet files of links (id, url, caption, a score), listed by the source `table` and compared with an empty dataset as
`nextloom plan` does it, in one process. Small ones have `--rows` rows each, large ones `--large-rows`. Prints a table;
the last line is one JSON object:
    ms_per_small_shard      CPU-milliseconds per small shard, its rows included
    us_per_row              CPU-microseconds per row of the large ones
    ms_second_plan          CPU-milliseconds per small shard of a plan in which nothing changed
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nextloom.curation.sources.table import Table
from nextloom.store.dataset import Dataset
from nextloom.store.listing import Changes


def write(folder: Path, shards: int, rows: int) -> None:
    """Shards of links, all keys distinct."""
    folder.mkdir()
    for shard in range(shards):
        ids = [f"{shard}-{row}" for row in range(rows)]
        urls = [f"https://example.org/{name}.jpg" for name in ids]
        scores = np.random.default_rng(shard).random(rows)
        columns = {"id": ids, "url": urls, "caption": [f"image {name}" for name in ids], "score": scores}
        pq.write_table(pa.table(columns), folder / f"{shard:05d}.parquet")


def listed(folder: Path, dataset: Dataset, rows: int) -> tuple[float, float]:
    """CPU-seconds of the first listing and of one in which nothing changed."""
    source = Table(path=str(folder), key="id")
    start = time.process_time()
    changes = Changes(dataset, source)
    first = time.process_time() - start
    assert changes.new.num_rows == rows
    with dataset.lease("benchmark"):
        changes.apply()
    start = time.process_time()
    assert not Changes(dataset, Table(path=str(folder), key="id"))
    return first, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--large", type=int, default=10)
    parser.add_argument("--large-rows", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "warm", 1, 1)
        listed(folder / "warm", Dataset(str(folder / "d0")), 1)  # imports
        write(folder / "small", arguments.shards, arguments.rows)
        count = arguments.shards * arguments.rows
        small, again = listed(folder / "small", Dataset(str(folder / "d1")), count)
        print(f"{arguments.shards:>8,} shards of {arguments.rows:>9,} rows: {small:6.2f} CPU-seconds")
        write(folder / "large", arguments.large, arguments.large_rows)
        rows = arguments.large * arguments.large_rows
        large, _ = listed(folder / "large", Dataset(str(folder / "d2")), rows)
        print(f"{arguments.large:>8,} shards of {arguments.large_rows:>9,} rows: {large:6.2f} CPU-seconds")
    figures = {
        "ms_per_small_shard": 1000 * small / arguments.shards,
        "us_per_row": 1e6 * large / rows,
        "ms_second_plan": 1000 * again / arguments.shards,
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
