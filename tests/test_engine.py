"""Runs on Ray: accounting, resume, what is redone and what is not, rows that fail, rows that kill."""

from __future__ import annotations

import shutil

import pytest

import zoo
from engine import build, contents, plans, run, write_pictures
from nextloom.cli import main
from nextloom.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = {
    "stats": {"op": "image_stats"},
    "phash": {"op": "perceptual_hash"},
    "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 4},
    "keep": {"op": "select", "where": "stats.brightness > 0.2 and not duplicate.hit"},
    "mean": {"op": "toy_ops:Mean", "rows": "keep"},
}


def with_threshold(value: float) -> dict:
    return {**STEPS, "keep": {"op": "select", "where": f"stats.brightness > {value} and not duplicate.hit"}}


def test_threshold_new_files_changed_and_deleted(tmp_path):
    write_pictures(tmp_path / "pics", 40)
    recipe, dataset = build(tmp_path, STEPS)
    first = run(recipe, dataset)
    assert first["stats"] == {"rows": 40, "values": 40, "errors": 0, "done": 40}
    keep = first["keep"]
    assert keep["kept"] + keep["rejected"] + keep["failed"] == 40
    assert first["mean"]["rows"] == keep["kept"] > 0
    assert all(p.state == "fresh" for p in plans(recipe, dataset).values())
    assert sum(r["done"] for r in run(recipe, dataset).values()) == 0

    looser, _ = build(tmp_path, with_threshold(0.1))
    before = plans(looser, dataset)
    assert before["stats"].todo == before["phash"].todo == before["duplicate"].todo == 0
    assert before["keep"].cause.startswith("CONFIG where stats.brightness > 0.2")
    again = run(looser, dataset)
    newly = again["keep"]["kept"] - keep["kept"]
    assert again["stats"]["done"] == again["duplicate"]["done"] == 0
    assert before["mean"].todo == again["mean"]["done"] == newly > 0

    write_pictures(tmp_path / "pics", 10, start=100)
    grown = plans(looser, dataset)
    assert (grown["stats"].todo, grown["stats"].cause) == (10, "NEW ROWS")
    assert grown["duplicate"].todo == grown["duplicate"].wanted == 50
    assert grown["mean"].todo is None and grown["mean"].after == "keep"
    result = run(looser, dataset)
    assert result["stats"]["done"] == result["phash"]["done"] == 10
    assert result["duplicate"]["done"] == 50

    write_pictures(tmp_path / "pics", 1, start=9, size=30)
    shutil.move(tmp_path / "pics/p030.png", tmp_path / "pics/p009.png")
    ids = set(dataset.live_rows([])["id"].to_pylist())
    changed = plans(looser, dataset)
    assert changed["stats"].todo == 1 and changed["stats"].wanted == 49
    assert run(looser, dataset)["stats"] == {"rows": 49, "values": 49, "errors": 0, "done": 1}
    now = set(dataset.live_rows([])["id"].to_pylist())
    assert len(ids - now) == 2 and min(now - ids) > max(ids), "ids are never used twice"


def test_zoo_is_accounted_for(tmp_path):
    (tmp_path / "pics").mkdir()
    names = zoo.write_all(tmp_path / "pics")
    steps = {
        "stats": {"op": "image_stats"},
        "frames": {"op": "gif_frames"},
        "inside": {"op": "image_stats", "rows": "frames"},
        "keep": {"op": "select", "where": "stats.short_side >= 1000000"},
    }
    recipe, dataset = build(tmp_path, steps)
    result = run(recipe, dataset)
    keep = result["keep"]
    assert keep["kept"] + keep["rejected"] + keep["failed"] == keep["rows"] == result["stats"]["rows"]
    assert keep["rows"] == len(names)
    assert keep["failed"] == result["stats"]["errors"] > 0, "a failed score is failed, not rejected"
    assert keep["rejected"] == result["stats"]["values"] > 0
    for step, rows in contents(recipe, dataset).items():
        for row in rows:
            if row["error"]:
                assert row["error"]["stage"] and row["error"]["type"] and row["error"]["message"], (step, row)
    assert result["inside"]["rows"] == result["frames"]["children"]


def test_exit_codes_of_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "pics").mkdir()
    zoo.write_all(tmp_path / "pics")
    text = "dataset: toy\nsource: {op: files, path: pics}\nsteps: {stats: {op: image_stats}}\n"
    (tmp_path / "zoo.yaml").write_text(text)
    arguments = ["nextloom", "run", str(tmp_path / "zoo.yaml"), "--root", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0, "failed rows are rows, not a failed run"
    monkeypatch.setattr("sys.argv", [*arguments, "--retry-errors", "--set", "steps.stats.execution.max_error_rate=0.1"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert "error: steps.stats:" in message and "more than max_error_rate 0.1 allows" in message and "next:" in message


def test_error_rate_stops_the_step_and_retry_mends_it(tmp_path):
    write_pictures(tmp_path / "pics", 20)
    strict = {"mean": {"op": "toy_ops:Mean", "refuse_below": 60, "execution": {"max_error_rate": 0.1}}}
    recipe, dataset = build(tmp_path, strict)
    with pytest.raises(UserError, match=r"steps.mean: .* of 20 rows failed, more than max_error_rate 0.1"):
        run(recipe, dataset)
    recipe, _ = build(tmp_path, {"mean": {"op": "toy_ops:Mean", "refuse_below": 60}})
    failed = run(recipe, dataset)["mean"]
    assert failed["done"] == 0 and failed["errors"] == 10, "what was done before the stop is kept"
    assert run(recipe, dataset, retry_errors=True)["mean"] == {**failed, "done": 10}


def test_a_row_that_kills_its_worker(tmp_path):
    write_pictures(tmp_path / "pics", 200, size=4)
    steps = {"length": {"op": "toy_ops:KeyLength", "deadly": ["p077.png"]}, "mean": {"op": "toy_ops:Mean"}}
    recipe, dataset = build(tmp_path, steps, execution={"chunk_rows": 40})
    result = run(recipe, dataset)
    assert result["length"] == {"rows": 200, "values": 199, "errors": 1, "done": 200}
    assert result["mean"] == {"rows": 200, "values": 200, "errors": 0, "done": 200}
    (bad,) = [row for row in contents(recipe, dataset)["length"] if row["error"]]
    assert bad["key"] == "p077.png" and bad["error"]["type"] == "WorkerDied"


def test_a_model_that_cannot_load_stops_the_step(tmp_path):
    write_pictures(tmp_path / "pics", 4)
    recipe, dataset = build(tmp_path, {"broken": {"op": "toy_ops:NoModel"}})
    with pytest.raises(Exception, match="weights are corrupt"):
        run(recipe, dataset)
    assert plans(recipe, dataset)["broken"].todo == 4


def test_one_fetch_and_one_decode_per_pass(tmp_path):
    write_pictures(tmp_path / "pics", 6)
    recipe, dataset = build(tmp_path, {"stats": {"op": "image_stats"}, "phash": {"op": "perceptual_hash"}})
    from nextloom import pixels
    from nextloom.pipelines import worker
    from nextloom.pipelines.plan import Planner

    with dataset.lease("test"):
        planner = Planner(recipe, dataset)
        planner.sync()
        for step in planner.graph:
            planner.judge(step)
        tasks = [worker.Task(s.name, s.op, planner.table(s.name).uri) for s in planner.graph]
        calls = {"fetch": 0, "decode": 0}

        def counted(name, function):
            def call(*args):
                calls[name] += 1
                return function(*args)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "fetch", counted("fetch", worker.fetch))
            patch.setattr(pixels, "decode", counted("decode", pixels.decode))
            rows = worker.Source(dataset.rows.uri, tuple(dataset.rows.files()))
            import pyarrow as pa

            chunk = pa.table({"id": [0, 1, 2, 3, 4, 5], "stats": [True] * 6, "phash": [True] * 6})
            records = worker.Worker(tasks, rows)(chunk)
    assert calls == {"fetch": 6, "decode": 6}
    assert records["rows"].to_pylist() == [6, 6]
