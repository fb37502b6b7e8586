"""A release that would lose more than half of its rows reaches no reader unasked; sparse reads hold few rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine import build, run, write_pictures
from nextloom.cli import main
from nextloom.errors import Damaged
from nextloom.pipelines.release import Shrinks, keep_releases, make_release
from nextloom.pipelines.verify import mend, verify
from nextloom.store import files as module
from nextloom.store.files import read_files, take_ids, write_file
from nextloom.store.release import latest, open_release

STEPS = {"stats": {"op": "image_stats"}}


def recipe_of(root: Path, threshold: float):
    steps = {**STEPS, "keep": {"op": "select", "where": f"stats.brightness >= {threshold}"}}
    releases = {"r": {"rows": "keep", "columns": ["stats"]}, "all": {"columns": ["stats"]}}
    return build(root, steps, releases=releases), {"steps": steps, "releases": releases}


def test_a_release_that_would_shrink_by_more_than_half(tmp_path, ray_local, capsys):
    """before: a threshold that slipped, or half a source, was published by the next plain run."""
    write_pictures(tmp_path / "pics", 10)
    (recipe, dataset), _ = recipe_of(tmp_path, -1)
    run(recipe, dataset)
    with dataset.lease("test"):
        assert [len(make_release(recipe, dataset, name)[0].ids) for name in ("r", "all")] == [10, 10]

    (recipe, dataset), data = recipe_of(tmp_path, 0.25)  # keeps 5: half of them is no alarm
    run(recipe, dataset)
    with dataset.lease("test"):
        (made,), refused = keep_releases(recipe, dataset)
    assert (made.name, len(made.ids), refused) == ("r-0002", 5, [])

    (recipe, dataset), data = recipe_of(tmp_path, 0.4)
    file = tmp_path / "toy.yaml"
    file.write_text(json.dumps({"dataset": "toy", "source": {"op": "files", "path": "pics"}, **data}))
    for verb in (["run"], ["release", "r"]):
        code, err = typed([verb[0], str(file), *verb[1:], "--root", str(tmp_path)], capsys)
        assert code == 1, err
        assert "releases.r: it would shrink from 5 rows (r-0002) to 2; it was not published" in err
        assert f"nextloom release {file} --root {tmp_path} r --allow-shrink" in err
        assert latest(dataset.uri, "r").name == "r-0002"
    with dataset.lease("test"), pytest.raises(Shrinks):
        make_release(recipe, dataset, "r")
    code, err = typed(["run", str(file), "--root", str(tmp_path), "--allow-shrink"], capsys)
    assert code == 0, err
    assert len(open_release(dataset.uri, "r").ids) == 2 and latest(dataset.uri, "r").name == "r-0003"


def typed(arguments: list[str], capsys) -> tuple[int, str]:
    argv, path = sys.argv, [*sys.path]
    sys.argv = ["nextloom", *arguments]
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv, sys.path[:] = argv, path
    return int(end.value.code or 0), capsys.readouterr().err


def test_rows_far_apart_are_read_without_those_between(tmp_path, monkeypatch):
    """before: 8 rows out of 4,096 with images of 20 KB in a column held all 80 MB."""
    rng, uri = np.random.default_rng(0), str(tmp_path / "t")
    images = [rng.bytes(20_000) for _ in range(64)] * 64
    table = pa.table({"id": np.arange(4096), "raw": pa.array(images, pa.binary())})
    files = [write_file(uri, table.slice(start, 2048)) for start in (0, 2048)]
    ids = np.array([4000, 5, 700, 1300, 2600, 3300, 9, 2047])
    before = pa.total_allocated_bytes()
    pool, peak = pa.default_memory_pool(), []
    original = module.pq.ParquetFile.read_row_group

    def read(self, *args, **kwargs):
        data = original(self, *args, **kwargs)
        peak.append(pool.bytes_allocated() - before)
        return data

    monkeypatch.setattr(module.pq.ParquetFile, "read_row_group", read)
    found = take_ids(uri, files, ids)
    assert found["id"].to_pylist() == ids.tolist()
    assert found["raw"].to_pylist() == [images[i] for i in ids]
    assert max(peak) < 25e6, "a row group of 256 rows at a time"
    whole = read_files(uri, files)
    assert take_ids(uri, files, np.arange(4096)).equals(whole), "many rows are read in one go"
    with pytest.raises(LookupError, match="1 of 2 ids are absent, the first is 9999"):
        take_ids(uri, files, np.array([5, 9999]))


def test_a_sparse_read_names_the_damaged_file(tmp_path):
    uri = str(tmp_path / "columns/stats/f")
    file = write_file(uri, pa.table({"id": np.arange(1000), "value": np.arange(1000.0)}))
    path = Path(uri, file.path)
    raw = bytearray(path.read_bytes())
    raw[200] ^= 1
    path.write_bytes(raw)
    with pytest.raises(
        Damaged, match=r"does not hold the bytes that were written\n  next: nextloom rebuild RECIPE stats"
    ):
        take_ids(uri, [file], np.array([5]))


def test_damage_in_the_rows_of_an_expand_is_found_and_mended(tmp_path, ray_local):
    write_pictures(tmp_path / "pics", 6)
    steps = {"frames": {"op": "gif_frames"}, "mean": {"op": "toy_ops:Mean", "rows": "frames"}}
    recipe, dataset = build(tmp_path, steps, releases={"r": {"rows": "frames", "columns": ["mean"]}})
    run(recipe, dataset)
    with dataset.lease("test"):
        release, _ = make_release(recipe, dataset, "r")
    before = release.column("mean").to_pylist()
    (path,) = Path(dataset.uri, "columns/frames").glob("*/part-*.parquet")
    path.write_bytes(path.read_bytes()[:-500] + bytes(500))
    result = verify(recipe, release)
    assert [(f.column, f.check, f.key) for f in result.findings] == [("frames", "pages", path.name)]
    with dataset.lease("test"):
        assert mend(recipe, dataset, release, result.findings) == 1
    assert run(recipe, dataset)["frames"]["done"] == 6
    with dataset.lease("test"):
        again, new = make_release(recipe, dataset, "r")
    assert new and again.column("mean").to_pylist() == before and verify(recipe, again).findings == []
