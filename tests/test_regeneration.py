"""A new tokenizer: the plan names what is stale, a run ends in one new release, and at every moment of it, kills
included, readers see the whole old release or the whole new one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from engine import build, run, write_pictures
from nextloom.errors import UserError
from nextloom.pipelines.release import keep_releases, make_release, plan_with_releases
from nextloom.store.lease import LeaseHeld, LeaseLost
from nextloom.store.release import latest, open_release
from nextloom.tokenize.tokenizer_config import digest
from toy_tokenizers import random_tokenizer

pytestmark = pytest.mark.usefixtures("ray_local")

DATA = {
    "steps": {
        "stats": {"op": "image_stats"},
        "keep": {"op": "select", "where": "stats.brightness > 0.1"},
        "tokens": {"op": "image_tokens", "rows": "keep", "tokenizer": "tokenizer", "scales": 3},
        "text": {"op": "text_tokens", "rows": "keep", "empty": "allow"},
    },
    "releases": {"tokens": {"rows": "keep", "columns": ["tokens", "text"]}, "scores": {"columns": ["stats"]}},
    "execution": {"chunk_rows": 5, "workers": 1},
    "run": {"commit_seconds": 0.001},
}
DIE = """
import json, os, signal, sys
from pathlib import Path
from engine import build, run
from nextloom.pipelines import release as module
from nextloom.pipelines.release import keep_releases
from nextloom.store.table import Table
root, point, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
commit, count, publish = Table.commit, 0, module.publish
def die(): os.kill(os.getpid(), signal.SIGKILL)
def counted(self, *args, **kwargs):
    global count
    count += 1
    if point == "before_commit" and count == number: die()
    commit(self, *args, **kwargs)
    if point == "after_commit" and count == number: die()
Table.commit = counted
def published(*args):
    if point == "before_release": die()
    out = publish(*args)
    if point == "after_release" and out[1]: die()
    return out
module.publish = published
recipe, dataset = build(root, **json.loads((root / "recipe.json").read_text()))
with dataset.lease("killed"):
    pass
run(recipe, dataset)
with dataset.lease("killed"):
    keep_releases(recipe, dataset)
"""
POINTS = [
    pytest.param("before_commit", 1, marks=pytest.mark.proof),
    ("after_commit", 1),
    pytest.param("after_commit", 3, marks=pytest.mark.proof),
    pytest.param("before_release", 0, marks=pytest.mark.proof),
    ("after_release", 0),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_pictures(root / "pics", 24)
    random_tokenizer(0).save(root / "tokenizer")
    (root / "recipe.json").write_text(json.dumps(DATA))
    recipe, dataset = build(root, **DATA)
    run(recipe, dataset)
    with dataset.lease("test"):
        for name in recipe.releases:
            make_release(recipe, dataset, name)
    return root


@pytest.fixture
def released(made, tmp_path) -> tuple:
    """A recipe and a dataset with its releases; a copy, since a dataset may be moved."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    recipe, dataset = build(tmp_path, **DATA)
    done = run(recipe, dataset)
    assert [done[step]["done"] for step in ("stats", "tokens", "text")] == [0, 0, 0]
    return recipe, dataset


def regenerate(recipe, dataset) -> list[str]:
    run(recipe, dataset)
    with dataset.lease("test"):
        return [release.name for release in keep_releases(recipe, dataset)[0]]


def test_the_plan_lists_exactly_the_stale_columns_and_releases(tmp_path, released):
    recipe, dataset = released
    assert {p.step: p.state for p in plan_with_releases(recipe, dataset)} == dict.fromkeys(
        ["source", "stats", "keep", "tokens", "text", "release tokens", "release scores"], "fresh"
    )
    old = digest(tmp_path / "tokenizer")
    random_tokenizer(1).save(tmp_path / "tokenizer")
    told = {p.step: p for p in plan_with_releases(recipe, dataset)}
    assert {step for step, p in told.items() if p.state != "fresh"} == {"tokens", "release tokens"}
    assert told["tokens"].cause == f"CONFIG tokenizer {old} -> {digest(tmp_path / 'tokenizer')}"
    assert told["release tokens"].cause == "INPUT tokens" and told["release tokens"].op == "tokens-0001"
    assert regenerate(recipe, dataset) == ["tokens-0002"], "one new release, of the one that changed"
    assert regenerate(recipe, dataset) == []
    new = open_release(dataset.uri, "tokens")
    assert new.columns["tokens"]["config"]["tokenizer"] == digest(tmp_path / "tokenizer"), "a release names its digest"
    assert set(new.column("tokens")["tokenizer"].to_pylist()) == {digest(tmp_path / "tokenizer")}
    assert open_release(dataset.uri, "tokens-0001").columns["tokens"]["config"]["tokenizer"] == old


@pytest.mark.parametrize(("point", "number"), POINTS)
def test_killed_anywhere_readers_see_the_old_release_or_the_new_one(tmp_path, released, point, number):
    recipe, dataset = released
    before = open_release(dataset.uri, "tokens")
    old = before.column("tokens")
    random_tokenizer(1).save(tmp_path / "tokenizer")
    killed = subprocess.run([sys.executable, "-c", DIE, tmp_path, point, str(number)], capture_output=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    seen = latest(dataset.uri, "tokens")
    assert open_release(dataset.uri, "tokens-0001").column("tokens").equals(old)
    if point != "after_release":
        assert seen.name == "tokens-0001" and regenerate(recipe, dataset) == ["tokens-0002"]
    else:
        assert seen.name == "tokens-0002" and regenerate(recipe, dataset) == []
    new = open_release(dataset.uri, "tokens")
    digests = new.column("tokens")["tokenizer"].to_pylist()
    assert set(digests) == {digest(tmp_path / "tokenizer")} and len(digests) == old.num_rows
    assert open_release(dataset.uri, "tokens-0001").column("tokens").equals(old)


def test_of_two_regenerations_one_is_refused_and_an_overtaken_one_cannot_publish(tmp_path, released):
    recipe, dataset = released
    random_tokenizer(1).save(tmp_path / "tokenizer")
    other_recipe, other = build(tmp_path, **DATA)
    held, done, refused = threading.Event(), threading.Event(), []

    def first():
        with dataset.lease("first regeneration"):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    held.wait(60)
    try:
        run(other_recipe, other)
    except LeaseHeld as error:
        refused.append(str(error))
    done.set()
    thread.join()
    assert refused and "first regeneration" in refused[0] and f"process {os.getpid()}" in refused[0]
    run(recipe, dataset)
    lease = dataset.lease("overtaken")
    lease.__enter__()
    other.documents.create(f"lease/{lease._epoch + 1:09d}.json", {"pid": 1, "host": "x", "released": False})
    with pytest.raises(LeaseLost):
        keep_releases(recipe, dataset)
    assert latest(dataset.uri, "tokens").name == "tokens-0001"


def test_a_trainer_refuses_a_tokenizer_that_did_not_make_the_release(tmp_path, released):
    from nextloom.tokenize.packing import write_plan
    from nextloom.train.inputs import inputs
    from nextloom.train.recipe import build as training

    packs = {"train": {"op": "pack", "release": "tokens", "images": "tokens", "text": "text", "token_cap": 200}}
    recipe, dataset = build(tmp_path, **DATA, packs=packs)
    with dataset.lease("test"):
        write_plan(dataset, "train", recipe.packs["train"], open_release(dataset.uri, "tokens"))
    model = {"text_vocab": 256, "codes": 64, "semantic_dim": 8, "pixel_dim": 8, "width": 32, "layers": 1}
    config = random_tokenizer(0).config
    model |= {"codes": config.codes, "semantic_dim": config.semantic_dim, "pixel_dim": config.pixel_dim}
    model |= {"heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64}
    data = {"train": "decoder", "output": "out", "dataset": "datasets/toy", "packs": "train", "tokenizer": "tokenizer"}
    job = training({**data, "steps": 2, "warmup": 1, "model": model}, root=str(tmp_path))
    assert inputs(job)["tokenizer"] == digest(tmp_path / "tokenizer")
    both = {**DATA, "steps": {**DATA["steps"], "fine": {**DATA["steps"]["tokens"], "tokenizer": "other", "scales": 4}}}
    both["releases"] = {"mixed": {"rows": "keep", "columns": ["tokens", "text", "fine"]}}
    random_tokenizer(2).save(tmp_path / "other")
    mixed, _ = build(tmp_path, **both)
    run(mixed, dataset)
    with dataset.lease("test"):
        make_release(mixed, dataset, "mixed")
    with pytest.raises(UserError, match=r"different tokenizers: tokens by \w+, fine by \w+\n  next: nextloom run"):
        inputs(training({**data, "release": "mixed", "steps": 2, "warmup": 1, "model": model}, root=str(tmp_path)))
    random_tokenizer(1).save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"made by a\s+tokenizer with digest .*\n  next: nextloom run RECIPE"):
        inputs(job)
    assert regenerate(recipe, dataset) == ["tokens-0002"]
    with dataset.lease("test"):
        state = write_plan(dataset, "train", recipe.packs["train"], open_release(dataset.uri, "tokens")).state
    assert state == "same", "packs outlive the tokenizer"
    assert inputs(job)["tokenizer"] == digest(tmp_path / "tokenizer")
