"""The recipes of the repository: one that runs offline from installed packages, one that names real weights."""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from engine import contents, plans, run
from nextloom.cli import main
from nextloom.pipelines.recipe import Recipe
from nextloom.samples import write_samples
from nextloom.store.dataset import Dataset

RECIPES = Path(__file__).parents[1] / "recipes"
WORDS = ("heart", "cat", "dog", "car", "train", "flag", "tree", "apple")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A root with the sample photographs and some forty emoji."""
    root, whole = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("samples")
    write_samples(whole)
    shutil.copytree(whole / "photos", root / "samples" / "photos")
    (root / "samples" / "emoji").mkdir()
    for caption in sorted((whole / "emoji").glob("*.txt")):
        if set(caption.read_text().split()) & set(WORDS) and len(list((root / "samples/emoji").iterdir())) < 80:
            for file in (caption, caption.with_suffix(".png")):
                shutil.copy(file, root / "samples/emoji")
    return root


def test_every_scorer_runs_offline_and_a_decision_measures_nothing(pictures, ray_local, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = str(RECIPES / "images.yaml")
    recipe = Recipe.load(path, root=str(pictures), sets=["steps.balanced.max_ratio=0.5", "steps.colourful.top=0.5"])
    dataset = Dataset(str(pictures / "datasets" / "images"))
    result = run(recipe, dataset)
    count = result["stats"]["rows"]
    assert count > 50
    for step, counts in result.items():
        parts = ("kept", "rejected", "failed") if "kept" in counts else ("values", "errors")
        assert sum(counts[name] for name in parts) == counts["rows"], step
        assert counts.get("errors", 0) == 0, step
    assert 0 < result["balanced"]["kept"] < result["keep"]["kept"] < count
    topics = {row["key"]: row for row in contents(recipe, dataset)["topic"]}
    assert topics["photos/chelsea.png"]["label"] == "cat" and topics["photos/chelsea.png"]["primary"] == "animal"

    looser = Recipe.load(
        path,
        root=str(pictures),
        sets=[
            "steps.keep.where=stats.short_side >= 32 and unsafe.score < 0.5",
            "steps.balanced.max_ratio=3.0",
            "steps.topic.margin=0.05",
        ],
    )
    told = plans(looser, dataset)
    measured = ("stats", "quality", "phash", "look", "unsafe", "topics")
    assert all(told[step].todo == 0 for step in measured)
    again = run(looser, dataset)
    assert all(again[step]["done"] == 0 for step in measured)
    assert again["topic"]["done"] == count and again["keep"]["kept"] > result["keep"]["kept"]
    newly = again["balanced"]["kept"] - again["words"]["done"]
    assert 0 <= newly < again["balanced"]["kept"], "only newly kept rows are read for text"


def test_real_weights_that_are_absent_fail_the_plan_and_say_how_they_get_there(pictures, monkeypatch, capsys):
    (pictures / "images").mkdir()
    with tarfile.open(pictures / "images/00000.tar", "w") as tar:
        for file in sorted((pictures / "samples/photos").glob("c*")):
            tar.add(file, file.name)
    arguments = ["--root", str(pictures), "--set", "source.path=images/00000.tar"]
    monkeypatch.setattr(sys, "argv", ["nextloom", "plan", str(RECIPES / "images_gpu.yaml"), *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    out, err = capsys.readouterr()
    for step in ("clip", "aesthetic", "look", "topics"):
        line = next(line for line in out.splitlines() if line.startswith(f"{step} "))
        assert "blocked" in line and "no weights" in line, line
    words = " ".join(out.split())  # the table folds long cells
    assert "hf download" in words and "improved-aesthetic-predictor" in words
    assert "error: steps.clip: 8 of 18 steps and releases cannot be made" in err and "next:" in err
