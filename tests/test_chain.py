"""From picture files to drawn tokens through the real engine: axes, colours, and what a new tokenizer makes stale."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from engine import build, contents, plans, run
from nextloom import pixels
from nextloom.errors import UserError
from nextloom.pipelines.release import make_release
from nextloom.store.release import Release
from nextloom.tokenize.packing import open_plan, write_plan
from nextloom.tokenize.tokenizer_config import digest
from nextloom.train.decoder.data import PackedData
from toy_tokenizers import colour_tokenizer, random_tokenizer

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = {
    "stats": {"op": "image_stats"},
    "keep": {"op": "select", "where": "stats.width = 2 * stats.height"},
    "tokens": {"op": "image_tokens", "rows": "keep", "tokenizer": "tokenizer", "scales": 4, "p": 0.0},
    "text": {"op": "text_tokens", "rows": "keep"},
}
MORE = {
    "releases": {"tokens": {"rows": "keep", "columns": ["tokens", "text"]}},
    "packs": {
        "train": {
            "op": "pack",
            "release": "tokens",
            "images": "tokens",
            "text": "text",
            "token_cap": 400,
        }
    },
}


def test_red_left_blue_right_from_file_to_pack_and_back(tmp_path):
    picture = Image.new("RGB", (120, 60), (255, 0, 0))
    picture.paste((0, 0, 255), (60, 0, 120, 60))
    (tmp_path / "pics").mkdir()
    for suffix in ("png", "jpg", "webp"):
        picture.save(tmp_path / "pics" / f"flag_{suffix}.{suffix}", quality=95)
        (tmp_path / "pics" / f"flag_{suffix}.txt").write_text(f"a flag as {suffix}")
    tokenizer = colour_tokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    before = digest(tmp_path / "tokenizer")
    recipe, dataset = build(tmp_path, STEPS, **MORE)
    assert run(recipe, dataset)["tokens"]["values"] == 3
    assert digest(tmp_path / "tokenizer") == before, "extraction changes no weight"
    with dataset.lease("test"):
        release, _ = make_release(recipe, dataset, "tokens")
        write_plan(dataset, "train", recipe.packs["train"], release)
    data = PackedData(open_plan(dataset.uri, "train"), release, 0)
    documents = [document for pack in range(len(data)) for document in data.documents(pack)]
    assert sorted(bytes(d[0].ids.astype(np.uint8)).decode() for d in documents) == [
        "a flag as jpg",
        "a flag as png",
        "a flag as webp",
    ]
    for document in documents:
        drawing = document[-1]
        assert drawing.grids[-1] == (3, 6), "rows x columns of a picture twice as wide as high"
        codes = torch.from_numpy(np.asarray(drawing.targets)).long()[None]
        rgb = pixels.from_model(tokenizer.decode_codes(codes, drawing.grids)[0].numpy())
        left, right = rgb[:, :20].mean(axis=(0, 1)), rgb[:, 28:].mean(axis=(0, 1))
        assert left[0] > 180 and left[1:].max() < 75
        assert right[2] > 180 and right[:2].max() < 75


def test_each_epoch_has_its_draw_and_another_tokenizers_row_is_refused(tmp_path):
    (tmp_path / "pics").mkdir()
    for number in range(3):
        Image.effect_noise((48, 24), 20 + number).convert("RGB").save(tmp_path / "pics" / f"n{number}.png")
        (tmp_path / "pics" / f"n{number}.txt").write_text("noise")
    random_tokenizer(0).save(tmp_path / "tokenizer")
    steps = {**STEPS, "tokens": {**STEPS["tokens"], "p": 0.6, "draws": 2}}
    recipe, dataset = build(tmp_path, steps, **MORE)
    run(recipe, dataset)
    with dataset.lease("test"):
        release, _ = make_release(recipe, dataset, "tokens")
        write_plan(dataset, "train", recipe.packs["train"], release)
    data = PackedData(open_plan(dataset.uri, "train"), release, 0)
    for row in release.column("tokens").to_pylist():
        stored = {side: np.frombuffer(row[side], "<u2").reshape(2, row["n_tokens"]) for side in ("input", "target")}
        assert stored["input"][0].tolist() != stored["input"][1].tolist()
        for epoch, draw in enumerate((0, 1, 0, 1)):
            picture = data.document(row["id"], epoch=epoch)[-1]
            assert picture.inputs.tolist() == stored["input"][draw].tolist(), f"epoch {epoch}"
            assert picture.targets.tolist() == stored["target"][draw].tolist(), f"epoch {epoch}"
    packs = [pack for step in range(3 * len(data)) for pack in data.packs_of(step, 1)]
    assert {epoch for epoch, _ in packs} == {0, 1, 2}
    document = json.loads(json.dumps(release.document))
    document["columns"]["tokens"]["config"]["tokenizer"] = "0123456789abcdef"
    mixed = PackedData(open_plan(dataset.uri, "train"), Release(dataset.uri, document), 0)
    with pytest.raises(UserError, match=r"made by tokenizer .*names 0123456789abcdef\n  next: nextloom verify"):
        mixed.document(int(release.ids[0]))


def test_a_new_tokenizer_makes_only_its_tokens_stale(tmp_path):
    (tmp_path / "pics").mkdir()
    for number in range(4):
        Image.effect_noise((48, 24), 20 + number).convert("RGB").save(tmp_path / "pics" / f"n{number}.png")
        (tmp_path / "pics" / f"n{number}.txt").write_text("noise")
    random_tokenizer(0).save(tmp_path / "tokenizer")
    old = digest(tmp_path / "tokenizer")
    recipe, dataset = build(tmp_path, STEPS, **MORE)
    run(recipe, dataset)
    with dataset.lease("test"):
        first, _ = make_release(recipe, dataset, "tokens")
        assert write_plan(dataset, "train", recipe.packs["train"], first).state == "written"
    tokens = first.column("tokens")
    random_tokenizer(1).save(tmp_path / "tokenizer")
    new = digest(tmp_path / "tokenizer")
    after = plans(recipe, dataset)
    assert {name: p.state for name, p in after.items()} == {
        "source": "fresh",
        "stats": "fresh",
        "keep": "fresh",
        "tokens": "stale",
        "text": "fresh",
    }
    assert after["tokens"].cause == f"CONFIG tokenizer {old} -> {new}"
    assert after["tokens"].todo == 4
    run(recipe, dataset)
    with dataset.lease("test"):
        second, is_new = make_release(recipe, dataset, "tokens")
        assert is_new and second.name == "tokens-0002"
        assert write_plan(dataset, "train", recipe.packs["train"], second).state == "same", "lengths did not change"
    assert first.column("tokens").equals(tokens), "the old release stays readable"
    assert not second.column("tokens")["target"].equals(tokens["target"])
    random_tokenizer(0).save(tmp_path / "tokenizer")
    assert plans(recipe, dataset)["tokens"].state == "fresh", "the old tokens are still there"
    assert len(contents(recipe, dataset)["tokens"]) == 4
