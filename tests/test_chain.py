"""From picture files to drawn tokens through the real engine: axes, colours, and what a new tokenizer makes stale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from engine import build, contents, plans, run
from nextloom import pixels
from nextloom.pipelines.release import make_release
from nextloom.tokenize.packing import open_plan, write_plan
from nextloom.tokenize.tokenizer_config import digest
from nextloom.train.data import PackedData
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
