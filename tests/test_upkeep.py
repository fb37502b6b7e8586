"""Compaction and vacuum in daily use: fewer files, equal values, states that stay, releases that read the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from engine import build, contents, plans, run, write_pictures
from nextloom.pipelines import compact as module
from nextloom.pipelines.compact import compact, groups
from nextloom.pipelines.plan import wanted_fingerprints
from nextloom.pipelines.release import make_release
from nextloom.store.files import File
from nextloom.store.release import open_release
from nextloom.store.vacuum import find_garbage, vacuum

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = {
    "stats": {"op": "image_stats"},
    "phash": {"op": "perceptual_hash"},
    "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 0},
    "keep": {"op": "select", "where": "stats.brightness >= 0.9 and not duplicate.hit"},
    "mean": {"op": "toy_ops:Mean", "rows": "keep"},
}


def loosened(root: Path, threshold: float, **more):
    where = f"stats.brightness >= {threshold} and not duplicate.hit"
    steps = {**STEPS, "keep": {"op": "select", "where": where}}
    releases = {"r": {"rows": "keep", "columns": ["mean"]}}
    return build(root, steps, releases=releases, **more)


def parquet(root: Path) -> int:
    return sum(1 for _ in (root / "datasets").rglob("*.parquet") if "_delta_log" not in str(_))


def old(root: Path) -> None:
    """Everything was written two hours ago."""
    then = time.time() - 7200
    for path in (root / "datasets").rglob("*"):
        os.utime(path, (then, then))


def released(root: Path, name: str) -> pa.Table:
    return open_release(str(root / "datasets/toy"), name).column("mean")


def test_ten_loosened_selections_then_compact_then_vacuum(tmp_path):
    write_pictures(tmp_path / "pics", 40)
    thresholds = [0.42 - 0.04 * i for i in range(10)]
    for threshold in thresholds:
        recipe, dataset = loosened(tmp_path, threshold)
        run(recipe, dataset)
        with dataset.lease("test"):
            make_release(recipe, dataset, "r")
    names = [path.stem for path in sorted((tmp_path / "datasets/toy/releases").iterdir())]
    assert len(names) > 5
    before, values = {name: released(tmp_path, name) for name in names}, contents(recipe, dataset)
    files = len(dataset.column("mean", wanted_fingerprints(recipe, dataset)["mean"]).files())
    assert files > 5

    with dataset.lease("test"):
        done = {t.table: (t.before, t.after) for t in compact(recipe, dataset)}
    print({"files before and after": {t: pair for t, pair in done.items() if pair[0]}})
    assert done["mean"] == (files, 1)
    assert all(p.state == "fresh" for p in plans(recipe, dataset).values()), "compaction makes nothing stale"
    assert contents(recipe, dataset) == values
    with dataset.lease("test"):
        assert not make_release(recipe, dataset, "r")[1], "the same content is the same release"
    assert {name: released(tmp_path, name) for name in names} == before

    old(tmp_path)
    counted = parquet(tmp_path)
    with dataset.lease("test"):
        vacuum(dataset, find_garbage(dataset, wanted_fingerprints(recipe, dataset)))
    assert parquet(tmp_path) < counted, "verdicts of nine earlier thresholds, of no release but their own, are gone"
    assert {name: released(tmp_path, name) for name in names} == before
    assert contents(recipe, dataset) == values
    assert sum(r["done"] for r in run(recipe, dataset).values()) == 0
    with dataset.lease("test"):
        assert find_garbage(dataset, wanted_fingerprints(recipe, dataset)) == []


def test_retried_errors_leave_releases_as_they_were(tmp_path):
    write_pictures(tmp_path / "pics", 20)
    flag = tmp_path / "down"
    flag.touch()
    steps = {"up": {"op": "toy_ops:WhileUp", "flag": str(flag)}}
    recipe, dataset = build(tmp_path, steps, releases={"r": {"columns": ["up"]}})
    run(recipe, dataset)
    with dataset.lease("test"):
        make_release(recipe, dataset, "r")
    flag.unlink()
    assert run(recipe, dataset, retry_errors=True)["up"]["done"] == 20
    old(tmp_path)
    with dataset.lease("test"):
        compact(recipe, dataset)
        vacuum(dataset, find_garbage(dataset, wanted_fingerprints(recipe, dataset)))
        new, _ = make_release(recipe, dataset, "r")
    first = open_release(dataset.uri, "r-0001").column("up")
    assert first["error"].null_count == 0, "the failed rows, as they were"
    assert new.name == "r-0002" and new.column("up")["error"].null_count == 20


def test_what_an_unfinished_run_committed_stays(tmp_path):
    write_pictures(tmp_path / "pics", 6)
    recipe, dataset = build(tmp_path, {"mean": {"op": "toy_ops:Mean"}})
    run(recipe, dataset)
    os.remove(tmp_path / "datasets/toy/receipts/mean.json")  # as if it was killed before the receipt
    other, _ = build(tmp_path, {"mean": {"op": "toy_ops:Mean", "refuse_below": 1}})
    old(tmp_path)
    with dataset.lease("test"):
        assert find_garbage(dataset, wanted_fingerprints(recipe, dataset)) == []
        (garbage,) = find_garbage(dataset, wanted_fingerprints(other, dataset))
        assert garbage.dead and garbage.table.startswith("columns/mean/")
        assert find_garbage(dataset, wanted_fingerprints(other, dataset), older_than=3) == []
        vacuum(dataset, [garbage])
    assert not (tmp_path / "datasets/toy" / garbage.table).exists()
    assert run(recipe, dataset)["mean"]["done"] == 6


DIE = """
import os, sys
from pathlib import Path
from nextloom.pipelines import compact
from test_upkeep import loosened
compact._renew_receipts = lambda *_: os._exit(7)
recipe, dataset = loosened(Path(sys.argv[1]), 0.1)
with dataset.lease("test"):
    compact.compact(recipe, dataset)
"""


def test_killed_between_merging_and_receipts(tmp_path):
    for count in (12, 20):
        write_pictures(tmp_path / "pics", count)
        recipe, dataset = loosened(tmp_path, 0.1)
        run(recipe, dataset)
    values = contents(recipe, dataset)
    assert subprocess.run([sys.executable, "-c", DIE, tmp_path], timeout=100).returncode == 7
    result = run(recipe, dataset)
    assert result["stats"]["done"] == result["mean"]["done"] == 0, "no score and no token is made again"
    assert result["keep"]["done"] == 20
    assert contents(recipe, dataset) == values


def test_groups_are_neighbours_below_the_target(monkeypatch):
    monkeypatch.setattr(module, "TARGET_BYTES", 100)
    files = [File(f"f{i}", size, 1, 0, i, i) for i, size in enumerate([40, 40, 40, 500, 10, 10])]
    assert [[f.path for f in group] for group in groups(files)] == [["f0", "f1"], ["f4", "f5"]]
