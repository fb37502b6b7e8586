"""Repair of pack plans, and the verbs unlock and vacuum as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

import toy_dataset
from nextloom.cli import main
from nextloom.documents import Folder
from nextloom.errors import Damaged
from nextloom.pipelines.audit import audit
from nextloom.pipelines.rebuild import rebuild
from nextloom.pipelines.recipe import Recipe
from nextloom.store.dataset import Dataset
from nextloom.store.release import open_release
from nextloom.tokenize.packing import open_plan, write_plan

DATA = {
    "dataset": "toy",
    "source": {"op": "files", "path": "pics"},
    "steps": {"tokens": {"op": "image_tokens", "tokenizer": "absent", "scales": 4}, "text": {"op": "text_tokens"}},
    "releases": {"tokens": {"columns": ["tokens", "text"]}},
    "packs": {"train": {"op": "pack", "release": "tokens", "images": "tokens", "text": "text", "token_cap": 200}},
}


@pytest.fixture
def typed(tmp_path, capsys):
    """Run a verb on the recipe in this process: (code, everything it printed)."""
    (tmp_path / "pics").mkdir()
    file = tmp_path / "toy.json"
    file.write_text(json.dumps(DATA))

    def call(verb: str, *options: str) -> tuple[int, str]:
        argv, path = sys.argv, [*sys.path]
        sys.argv = ["nextloom", verb, str(file), "--root", str(tmp_path), *options]
        try:
            with pytest.raises(SystemExit) as end:
                main()
        finally:
            sys.argv, sys.path[:] = argv, path
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out + err

    return call


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    uri = str(tmp_path / "datasets/toy")
    toy_dataset.build(uri, ["a red ball", "two", "three words here", "b"])
    return Dataset(uri)


def packed(dataset: Dataset, recipe: Recipe) -> str:
    with dataset.lease("pack"):
        return write_plan(dataset, "train", recipe.packs["train"], open_release(dataset.uri, "tokens")).state


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize(
    ("pattern", "plant"),
    [
        ("part-*.parquet", Path.unlink),
        ("part-*.parquet", flip),
        ("_delta_log/*1.json", Path.unlink),
        ("_delta_log/*1.json", lambda entry: entry.write_text("")),
    ],
)
def test_a_damaged_pack_plan_is_found_dropped_and_made_anew(tmp_path, dataset, typed, pattern, plant):
    recipe = Recipe.build(DATA, root=str(tmp_path))
    assert packed(dataset, recipe) == "written"
    before = open_plan(dataset.uri, "train").packs()
    assert audit(recipe, dataset).findings == []
    (target,) = Path(dataset.uri, "packs/train", open_plan(dataset.uri, "train").fingerprint).glob(pattern)
    plant(target)
    (finding,) = audit(recipe, dataset).findings
    assert str(target.parent) in finding.where and finding.next == "nextloom rebuild RECIPE train"
    with dataset.lease("rebuild"):
        assert rebuild(recipe, dataset, "train")
    with pytest.raises(Exception, match="no pack plan 'train'"):
        open_plan(dataset.uri, "train")
    assert packed(dataset, recipe) == "written"
    assert open_plan(dataset.uri, "train").packs().equals(before) and audit(recipe, dataset).findings == []


def test_readers_of_a_damaged_pack_plan_name_the_file_and_the_command(tmp_path, dataset):
    packed(dataset, Recipe.build(DATA, root=str(tmp_path)))
    plan = open_plan(dataset.uri, "train")
    (target,) = Path(dataset.uri, "packs/train", plan.fingerprint).glob("part-*.parquet")
    target.unlink()
    with pytest.raises(Damaged, match=r"is lost\n  next: nextloom rebuild RECIPE train"):
        plan.packs()


def test_unlock_asks_for_a_confirmation(dataset, typed):
    now = time.time()
    document = {"epoch": 9, "host": "far", "pid": 4711, "started": "1", "purpose": "nextloom run x.yaml"}
    Folder(dataset.uri).write("lease/000000009.json", {**document, "since": now, "beat": now, "released": False})
    code, told = typed("unlock")
    assert code == 1 and "the lease is held by a process on far (nextloom run x.yaml)" in told and "4711" not in told
    assert "toy.json --root" in told and told.rstrip().endswith("--yes")
    code, told = typed("status")
    assert code == 0 and "writer: a process on far (nextloom run x.yaml), seen " in told
    code, told = typed("unlock", "--yes")
    assert code == 0 and "toy: the lease is free; it was held by a process on far" in told
    assert typed("status")[1].endswith("writer: none\n")
    assert typed("unlock") == (0, "toy: the lease is free\n")


def test_vacuum_lists_the_paths_it_deletes(dataset, typed):
    dead = Path(dataset.uri, "columns/tokens/dead")
    shutil.copytree(Path(dataset.uri, "columns/tokens/i0"), dead)
    for path in dead.rglob("*"):
        os.utime(path, (1e9, 1e9))
    names = sorted(str(path.relative_to(dataset.uri)) for path in dead.rglob("*") if path.is_file())
    code, told = typed("vacuum")
    assert code == 0 and all(f"  {name}\n" in told for name in names) and "--delete deletes them" in told
    assert dead.exists()
    code, told = typed("vacuum", "--delete")
    assert code == 0 and all(f"  {name}\n" in told for name in names) and told.rstrip().endswith("deleted")
    assert not dead.exists() and typed("vacuum")[1] == "0 files, 0 bytes can go; --delete deletes them\n"
