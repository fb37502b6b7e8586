"""Outputs of trainings and drawings that are theirs: what is allowed, and how a run goes on after damage or a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextloom.errors import UserError
from nextloom.tokenize.tokenizer_config import digest
from nextloom.train.decoder.task import DecoderTask
from nextloom.train.engine import folder
from nextloom.train.launch import inspect, launch
from test_training import recipe, world


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return world(tmp_path_factory.mktemp("outputs"))


def interrupted(root: Path, monkeypatch, output: str):
    """A training of four steps that died in the third."""
    wanted = recipe(root, output=output, steps=4, execution={"checkpoint_every": 1})
    batch = DecoderTask.batch
    with monkeypatch.context() as patch:
        patch.setattr(DecoderTask, "batch", lambda self, step, *rest: 1 / (step < 2) and batch(self, step, *rest))
        with pytest.raises(ZeroDivisionError):
            launch(wanted)
    return wanted


def test_an_empty_folder_and_an_absolute_path_are_places_for_an_output(root, tmp_path):
    (root / "empty").mkdir()
    for output in ("empty", "runs/deep/er", str(tmp_path / "elsewhere")):
        wanted = recipe(root, output=output, steps=1, warmup=0)
        assert launch(wanted)["state"] == "trained" and launch(wanted)["state"] == "fresh"
        again = recipe(root, output=output, steps=2, warmup=0)
        assert launch(again)["state"] == "trained", "what we made is ours to replace"


def test_notes_that_appear_during_the_training_stay_and_the_training_is_not_lost(root, monkeypatch):
    wanted = recipe(root, output="busy", steps=3, execution={"checkpoint_every": 1})
    launch(recipe(root, output="busy", steps=2))
    evaluate = DecoderTask.evaluate
    notes = root / "busy" / "notes.txt"

    def meanwhile(self, model):
        notes.write_text("mine")
        return evaluate(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(DecoderTask, "evaluate", meanwhile)
        with pytest.raises(UserError, match=r"busy holds other files(.|\n)*notes\.txt"):
            launch(wanted)
    assert notes.read_text() == "mine"
    notes.unlink()
    assert inspect(wanted).cause == "3 of 3 steps done" and launch(wanted)["state"] == "trained"


def test_what_a_training_does_not_write_by_name_outlives_fresh(root):
    wanted = recipe(root, output="kept", steps=1, warmup=0, execution={"checkpoint_every": 1})
    launch(wanted)
    mine = [wanted.run_folder / name for name in ("why.md", "checkpoints/best.pt", "tensorboard/notes.txt")]
    for path in mine:
        path.write_text("mine")
    assert launch(wanted, fresh=True)["state"] == "trained"
    assert all(path.read_text() == "mine" for path in mine)


@pytest.mark.parametrize("name", ["", "checkpoints", "tensorboard", "pictures", "metrics.jsonl", "run.json", "lease"])
def test_links_where_a_training_writes_are_refused(root, tmp_path, name):
    output = f"linked {name.partition('.')[0]}"
    wanted = recipe(root, output=output, steps=1, warmup=0)
    away = tmp_path / "away"
    if name:
        wanted.run_folder.mkdir()
        (wanted.run_folder / "receipt.json").write_text(json.dumps({"identity": {}, "start": "x"}))
    away.mkdir()
    (away / "thesis.txt").write_text("mine")
    (wanted.run_folder / name if name else wanted.run_folder).symlink_to(away)
    with pytest.raises(UserError, match="is a link"):
        launch(wanted, fresh=True)
    assert [path.name for path in away.iterdir()] == ["thesis.txt"]


def test_killed_while_it_clears_an_older_training_away_it_starts_over(root, monkeypatch):
    wanted = interrupted(root, monkeypatch, "clearing")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "remove_own", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            launch(wanted, fresh=True)
    assert inspect(wanted).state == "missing", "not resumed from what was to be thrown away"
    assert launch(wanted)["state"] == "trained"


def test_a_lost_run_document_is_read_out_of_the_newest_checkpoint(root, monkeypatch):
    wanted = interrupted(root, monkeypatch, "lost")
    (wanted.run_folder / "run.json").unlink()
    assert inspect(wanted).cause == "2 of 4 steps done"
    with pytest.raises(UserError, match="an unfinished training of another recipe or data lies here: seed 0 -> 1"):
        launch(recipe(root, output="lost", steps=4, seed=1))
    assert launch(wanted)["state"] == "trained" and launch(wanted)["state"] == "fresh"


@pytest.mark.parametrize("content", [b"", b'{"identity": ', b"[]", b"\xff\xfe"])
def test_a_damaged_document_is_named_and_moving_it_away_goes_on(root, monkeypatch, content):
    wanted = interrupted(root, monkeypatch, f"damaged{len(content)}{content[:1].hex()}")
    path = wanted.run_folder / "run.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="this document is damaged") as caught:
        launch(wanted)
    assert f"mv {path} {path}.damaged" in str(caught.value)
    path.rename(f"{path}.damaged")
    assert launch(wanted)["state"] == "trained"


def test_killed_between_the_swap_and_the_receipt_the_output_is_known_as_ours(root, monkeypatch):
    wanted = recipe(root, output="swapped", steps=1, warmup=0)
    with monkeypatch.context() as patch:
        patch.setattr("nextloom.train.work.read_metrics", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            launch(wanted)
    made = digest(wanted.output)
    assert launch(wanted)["state"] == "trained" and digest(wanted.output) == made
