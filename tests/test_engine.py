"""Runs on Ray: accounting, resume, what is redone and what is not, rows that fail, rows that kill."""

from __future__ import annotations

import os
import shutil

import pytest
from PIL import Image

import zoo
from engine import build, contents, plans, run, write_pictures
from nextloom.cli import main
from nextloom.errors import UserError
from nextloom.pipelines.recipe import Recipe
from nextloom.pipelines.release import make_release

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = {
    "stats": {"op": "image_stats"},
    "phash": {"op": "perceptual_hash"},
    "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 4},
    "keep": {"op": "select", "where": "stats.brightness > 0.2 and not duplicate.hit"},
    "mean": {"op": "toy_ops:Mean", "rows": "keep"},
    "wide": {"op": "select", "rows": "keep", "where": "stats.width >= 1"},
    "length": {"op": "toy_ops:KeyLength", "rows": "wide"},
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
    assert (
        before["keep"].cause
        == "CONFIG where stats.brightness > 0.2 and not duplicate.hit -> stats.brightness > 0.1 and not duplicate.hit"
    )
    again = run(looser, dataset)
    newly = again["keep"]["kept"] - keep["kept"]
    assert again["stats"]["done"] == again["duplicate"]["done"] == 0
    assert before["mean"].todo == again["mean"]["done"] == newly > 0
    assert before["length"].todo == again["length"]["done"] == newly, "through two selects"

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
        "keep": {"op": "select", "where": "stats.short_side >= 32"},
    }
    recipe, dataset = build(tmp_path, steps)
    result = run(recipe, dataset)
    keep = result["keep"]
    failed = {row["key"] for row in contents(recipe, dataset)["stats"] if row["error"]}
    (tmp_path / "bad").mkdir()
    assert failed == {write(tmp_path / "bad").name for write in zoo.UNREADABLE}
    assert min(keep["kept"], keep["rejected"], keep["failed"]) > 0
    assert keep["kept"] + keep["rejected"] + keep["failed"] == keep["rows"] == result["stats"]["rows"]
    assert keep["rows"] == len(names)
    assert keep["failed"] == result["stats"]["errors"] > 0, "a failed score is failed, not rejected"
    assert keep["kept"] + keep["rejected"] == result["stats"]["values"]
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
    for _ in range(2):  # asking again does not help
        with pytest.raises(UserError, match=r"steps.mean: 10 of 20 rows failed, more than max_error_rate 0.1"):
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
    with pytest.raises(UserError, match=r"steps.broken: cannot set up no_model: OSError: weights are corrupt"):
        run(recipe, dataset)
    assert plans(recipe, dataset)["broken"].todo == 4


def test_one_fetch_and_one_decode_per_pass(tmp_path):
    write_pictures(tmp_path / "pics", 6)
    recipe, dataset = build(tmp_path, {"stats": {"op": "image_stats"}, "phash": {"op": "perceptual_hash"}})
    from nextloom import pixels, untrusted
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
            patch.setattr(untrusted.Door, "read", counted("fetch", untrusted.Door.read))
            patch.setattr(pixels, "decode", counted("decode", pixels.decode))
            rows = worker.Source(dataset.rows.uri, tuple(dataset.rows.files()), recipe.source.door())
            import pyarrow as pa

            chunk = pa.table({"id": [0, 1, 2, 3, 4, 5], "stats": [True] * 6, "phash": [True] * 6})
            records = worker.Worker(tasks, rows)(chunk)
    assert calls == {"fetch": 6, "decode": 6}
    assert records["rows"].to_pylist() == [6, 6]


def animation(path, *colours):
    frames = [Image.new("RGB", (12, 12), colour) for colour in colours]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def test_children_live_and_die_with_their_parents(tmp_path):
    (tmp_path / "pics").mkdir()
    animation(tmp_path / "pics/a.gif", "red", "green", "blue", "white")
    animation(tmp_path / "pics/b.gif", "red", "blue", "black")
    steps = {
        "frames": {"op": "gif_frames"},
        "inside": {"op": "toy_ops:Mean", "rows": "frames"},
        "keep": {"op": "select", "rows": "frames", "where": "inside.value > 60 and source.frame >= 0"},
    }
    recipe, dataset = build(tmp_path, steps, releases={"r": {"rows": "keep", "columns": ["inside"]}})
    assert run(recipe, dataset)["inside"]["rows"] == 7
    os.remove(tmp_path / "pics/b.gif")
    animation(tmp_path / "pics/a.gif", "white", "black")
    result = run(recipe, dataset)
    assert result["frames"]["children"] == result["inside"]["rows"] == result["keep"]["rows"] == 2
    assert result["keep"]["kept"] == 1
    with dataset.lease("test"):
        release, _ = make_release(recipe, dataset, "r")
    assert release.column("inside")["value"].to_pylist() == [255.0]
    assert release.rows()["key"].to_pylist() == ["a.gif#0000"]


def test_a_source_that_is_narrowed_moved_or_away_keeps_its_rows(tmp_path):
    write_pictures(tmp_path / "pics", 6)
    steps = {"mean": {"op": "toy_ops:Mean"}}
    recipe, dataset = build(tmp_path, steps)
    run(recipe, dataset)
    ids = dataset.live_rows(["key"]).to_pylist()
    narrow = Recipe.build(
        {"dataset": "toy", "source": {"op": "files", "path": "pics", "glob": "p00[0-2]*"}, "steps": steps},
        root=str(tmp_path),
    )
    assert plans(narrow, dataset)["source"].cause == "-3"
    assert run(narrow, dataset)["mean"] == {"rows": 3, "values": 3, "errors": 0, "done": 0}
    assert plans(recipe, dataset)["source"].cause == "3 back"
    assert run(recipe, dataset)["mean"]["done"] == 0
    assert dataset.live_rows(["key"]).to_pylist() == ids
    os.rename(tmp_path / "pics", tmp_path / "elsewhere")
    moved = Recipe.build(
        {"dataset": "toy", "source": {"op": "files", "path": "elsewhere"}, "steps": steps}, root=str(tmp_path)
    )
    assert plans(moved, dataset)["source"].cause == "6 moved"
    assert run(moved, dataset)["mean"]["done"] == 0
    assert all("elsewhere" in uri for uri in dataset.live_rows(["uri"])["uri"].to_pylist())
    (tmp_path / "pics").mkdir()
    with pytest.raises(UserError, match="lists nothing, but 6 rows are known"):
        run(recipe, dataset)


def test_nothing_kept_and_nothing_listed(tmp_path):
    (tmp_path / "pics").mkdir()
    steps = {
        **STEPS,
        "late": {"op": "select", "rows": "keep", "where": "mean.value > 1"},
        "hash2": {"op": "perceptual_hash", "rows": "keep"},
        "dup2": {"op": "near_duplicate", "rows": "keep", "reads": ["hash2"]},
    }
    recipe, dataset = build(tmp_path, steps, releases={"r": {"rows": "late", "columns": ["mean"]}})
    assert all(not p.todo for p in plans(recipe, dataset).values())
    assert run(recipe, dataset)["late"] == {"rows": 0, "kept": 0, "rejected": 0, "failed": 0, "done": 0}
    write_pictures(tmp_path / "pics", 3)
    none = {**steps, "keep": {"op": "select", "where": "stats.width > 10000"}}
    recipe, _ = build(tmp_path, none, releases={"r": {"rows": "late", "columns": ["mean"]}})
    result = run(recipe, dataset)
    assert result["keep"]["rejected"] == 3 and result["mean"]["rows"] == result["dup2"]["rows"] == 0
    with dataset.lease("test"), pytest.raises(UserError, match="it would have no rows"):
        make_release(recipe, dataset, "r")


def test_values_that_are_none(tmp_path):
    write_pictures(tmp_path / "pics", 6)
    recipe, dataset = build(
        tmp_path,
        {"odd": {"op": "toy_ops:Odd"}, "keep": {"op": "select", "where": "odd.value > 0"}},
    )
    result = run(recipe, dataset)
    assert result["keep"] == {"rows": 6, "kept": 1, "rejected": 0, "failed": 5, "done": 6}
    messages = {row["key"]: row["error"] and row["error"]["message"] for row in contents(recipe, dataset)["odd"]}
    assert messages == {
        "p000.png": "value is nan",
        "p001.png": "the op announces ['value'] and returned NoneType",
        "p002.png": "the op announces ['value'] and returned ['valeu']",
        "p003.png": "a lone surrogate: \\ud83d",
        "p004.png": messages["p004.png"],
        "p005.png": None,
    }
    assert "text" in messages["p004.png"] or "str" in messages["p004.png"]


def test_a_reader_follows_when_its_input_is_mended(tmp_path):
    write_pictures(tmp_path / "pics", 4)
    flag = tmp_path / "down"
    flag.touch()
    steps = {
        "first": {"op": "toy_ops:WhileUp", "flag": str(flag)},
        "second": {"op": "toy_ops:Doubled", "reads": ["first"]},
    }
    recipe, dataset = build(tmp_path, steps)
    assert run(recipe, dataset)["second"]["errors"] == 4
    flag.unlink()
    run(recipe, dataset, to="first", retry_errors=True)
    assert plans(recipe, dataset)["second"].todo == 4
    assert run(recipe, dataset)["second"] == {"rows": 4, "values": 4, "errors": 0, "done": 4}


def test_resources_that_are_not_there_are_refused(tmp_path):
    write_pictures(tmp_path / "pics", 1)
    recipe, dataset = build(tmp_path, {"mean": {"op": "toy_ops:Mean", "execution": {"num_gpus": 1}}})
    with pytest.raises(UserError, match=r"steps.mean.execution.num_gpus: 1 GPUs per worker .* the cluster has 0"):
        run(recipe, dataset)


def test_weights_that_change_under_a_run_store_nothing(tmp_path):
    write_pictures(tmp_path / "pics", 2)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"old")
    recipe, dataset = build(tmp_path, {"w": {"op": "toy_ops:Swapped", "path": str(weights)}})
    with pytest.raises(UserError, match="these weights changed after the run had begun"):
        run(recipe, dataset)
    assert plans(recipe, dataset)["w"].todo == 2


def test_a_gpu_is_fed_by_threads_with_the_same_values(tmp_path):
    """The reading of a GPU pass, on this machine's CPU: a worker built for such a task, against one that is not."""
    import pyarrow as pa

    from nextloom.pipelines import worker
    from nextloom.pipelines.plan import Planner
    from nextloom.store.files import File, read_files

    write_pictures(tmp_path / "pics", 25)
    (tmp_path / "pics" / "p099.png").write_bytes(b"no picture")
    found = {}
    for gpus in (0, 1):
        steps = {"stats": {"op": "image_stats", "execution": {"num_gpus": gpus, "num_cpus": 2}}}
        recipe, dataset = build(tmp_path, steps, dataset=f"toy{gpus}")
        dataset = type(dataset)(str(tmp_path / "datasets" / f"toy{gpus}"))
        with dataset.lease("test"):
            planner = Planner(recipe, dataset)
            planner.sync()
            (step,) = planner.graph
            planner.judge(step)
            uri = planner.table("stats").uri
            rows = worker.Source(dataset.rows.uri, tuple(dataset.rows.files()), recipe.source.door())
            made = worker.Worker([worker.Task("stats", step.op, uri)], rows)
            assert bool(made._readers) == bool(gpus)
            (record,) = made(pa.table({"id": range(26), "stats": [True] * 26})).to_pylist()
        assert record["busy"] > 0 and record["waited"] > 0 and record["errors"] == 1
        file = File(**{name: record[name] for name in File.__dataclass_fields__})
        found[gpus] = read_files(uri, [file]).to_pylist()
    assert found[0] == found[1]
