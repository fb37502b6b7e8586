"""Drawing: what counts as one's own, what is fresh, what is refused, and that an output is of one drawing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer as TextTokenizer
from tokenizers.models import WordLevel

import toy_dataset
from nextloom.errors import UserError
from nextloom.tokenize.text_tokens import TextTokens
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.train.decoder import drawing
from nextloom.train.decoder.drawing import draw_recipe
from nextloom.train.decoder.prompts import encoded
from nextloom.train.launch import launch
from nextloom.train.pictures.likeness import chance, own_nearest, psnr
from nextloom.train.pictures.rows import originals
from nextloom.untrusted import Door
from test_training import CAPTIONS, TOKENIZER, learnt, recipe, world


def plain(*values: int, shape: tuple[int, int] = (4, 4)) -> list[np.ndarray]:
    return [np.full((*shape, 3), value, np.uint8) for value in values]


def test_own_nearest_counts_drawings_that_are_nearer_to_their_own_than_to_any_other():
    targets = plain(0, 100, 255)
    assert own_nearest(plain(10, 90, 200), targets).tolist() == [True, True, True]
    assert own_nearest(plain(10, 10, 10), targets).tolist() == [True, False, False]
    assert own_nearest(plain(255, 0, 100), targets).tolist() == [False, False, False]
    assert own_nearest(plain(7, 50), plain(7, 7)).tolist() == [False, False], "a tie is a miss"
    assert own_nearest(plain(50), plain(200)).tolist() == [True], "nothing else to be nearer to"
    wide = plain(0, 255, shape=(2, 8))
    mixed = [targets[0], wide[0], targets[2], wide[1]]
    assert own_nearest([targets[0], wide[1], targets[2], wide[1]], mixed).tolist() == [True, False, True, True]
    assert chance([*targets, *wide]).tolist() == pytest.approx([1 / 3] * 3 + [1 / 2] * 2)


def test_own_nearest_equals_the_distances_one_by_one():
    rng = np.random.default_rng(0)
    targets = list(rng.integers(0, 256, (20, 6, 5, 3), np.uint8))
    drawings = [np.clip(t + rng.normal(0, 90, t.shape), 0, 255).astype(np.uint8) for t in targets]
    near = [[np.sum((d.astype(int) - t) ** 2) for t in targets] for d in drawings]
    expected = [row[k] < min(row[:k] + row[k + 1 :]) for k, row in enumerate(near)]
    assert own_nearest(drawings, targets).tolist() == expected
    assert psnr(targets[0], targets[0]) == 99 and psnr(*plain(0, 255)) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawing")
    learnt(folder)
    fields = {"decoder": "run", "tokenizer": "tokenizer", "dataset": "toys", "output": "drawings"}
    (folder / "draw.yaml").write_text(yaml.safe_dump({**fields, "temperature": 0, "guidance": 0}))
    return folder


def draw(root: Path, *sets: str) -> dict:
    return draw_recipe(str(root / "draw.yaml"), root=str(root), sets=sets)


def names(root: Path, folder: str) -> list[str]:
    return sorted(p.name for p in (root / folder).iterdir())


def test_captions_learnt_by_heart_give_their_own_pictures_back(root):
    summary = draw(root)
    figures = {name: summary[name] for name in ("state", "drawings", "seen", "own_nearest", "chance")}
    assert figures == {"state": "drawn", "drawings": 8, "seen": 8, "own_nearest": 1.0, "chance": 0.125}
    assert "unseen" not in summary and summary["reconstruction_psnr"] > 0
    assert names(root, "drawings") == [*(f"{k:04d}.png" for k in range(8)), "grid.png", "summary.json"]
    original = np.asarray(Image.open(root / "toys-pictures" / "3.png"))
    assert np.array_equal(np.asarray(Image.open(root / "drawings" / "0003.png")), original)
    assert draw(root)["state"] == "fresh"
    assert draw(root, "batch=3")["state"] == "fresh", "how many are drawn together is not identity"
    shutil.copytree(root / "run", root / "elsewhere")
    assert draw(root, "decoder=elsewhere")["state"] == "fresh", "nor is where things lie"
    assert draw(root, "seed=1", "output=seeded")["state"] == "drawn"


def test_a_prompt_of_ones_own_draws_what_its_caption_draws(root):
    draw(root)
    summary = draw(root, f"prompts=[{CAPTIONS[0]}]", "output=own")
    assert summary["drawings"] == 1 and "own_nearest" not in summary
    assert (root / "own" / "0000.png").read_bytes() == (root / "drawings" / "0000.png").read_bytes()
    with pytest.raises(UserError, match="prompts: an empty prompt"):
        draw(root, "prompts=['']", "output=own")


def test_fewer_prompts_leave_no_old_picture(root):
    draw(root, "prompts=[red heart, sun, a face]", "output=fewer")
    draw(root, "prompts=[sun]", "output=fewer")
    assert names(root, "fewer") == ["0000.png", "grid.png", "summary.json"]


def test_a_killed_redraw_is_not_fresh_and_leaves_the_old_drawings_whole(root, monkeypatch):
    draw(root, "prompts=[sun, red heart]", "output=killed")
    before = {p.name: p.read_bytes() for p in (root / "killed").iterdir()}
    again = ("prompts=[a face, sad cat]", "output=killed")
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "sheet", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            draw(root, *again)
    assert {p.name: p.read_bytes() for p in (root / "killed").iterdir()} == before
    assert draw(root, *again)["state"] == "drawn" and draw(root, *again)["state"] == "fresh"
    assert not [p for p in root.iterdir() if p.suffix in (".part", ".old")]


def test_what_does_not_belong_together_is_refused(root, tmp_path):
    torch.manual_seed(5)
    Tokenizer(TOKENIZER).save(tmp_path / "other")
    with pytest.raises(UserError, match="the decoder was trained with tokenizer"):
        draw(root, f"tokenizer={tmp_path / 'other'}")
    world(tmp_path, ["other captions"] * 3)
    with pytest.raises(UserError, match="not the one the decoder was trained on"):
        draw(root, f"dataset={tmp_path / 'toys'}")
    with pytest.raises(UserError, match="holds other files"):
        draw(root, "output=.")
    copy = tmp_path / "decoder"
    shutil.copytree(root / "run", copy)
    config = json.loads((copy / "config.json").read_text())
    config["text"]["fingerprint"] = "another"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the decoder was trained on another"):
        draw(root, f"decoder={copy}", "output=refused")


def test_rows_that_the_decoder_has_not_seen_are_counted_apart(tmp_path):
    world(tmp_path, painted=True, failed=(6, 7))
    launch(recipe(tmp_path, steps=2))
    toy_dataset.build(str(tmp_path / "toys"), CAPTIONS, seed=1, tokenizer=str(tmp_path / "tokenizer"), name="all")
    fields = {"decoder": "run", "tokenizer": "tokenizer", "dataset": "toys", "output": "drawings"}
    (tmp_path / "draw.yaml").write_text(yaml.safe_dump(fields))
    own, other = draw(tmp_path), draw(tmp_path, "release=all")
    assert (own["drawings"], own["seen"]) == (6, 6)
    assert (other["drawings"], other["seen"], other["unseen"], other["chance_unseen"]) == (8, 6, 2, 0.125)
    assert "own_nearest_unseen" in other


def test_prompts_need_the_text_tokenizer_of_the_captions(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, vocab in zip(paths, ({"red": 1, "?": 0}, {"red": 2, "?": 0}), strict=True):
        TextTokenizer(WordLevel(vocab, unk_token="?")).save(str(path))
    config = TextTokens(tokenizer=str(paths[0])).identity()
    about = {"text": {"step": "text", "config": config}}
    assert encoded(["red"], about, str(paths[0]), 20).texts == [[1]]
    with pytest.raises(UserError, match=r"text_tokenizer: this file has digest(.|\n)*name the file"):
        encoded(["red"], about, str(paths[1]), 20)
    with pytest.raises(UserError, match=r"text_tokenizer: (.|\n)*--set text_tokenizer=PATH"):
        encoded(["red"], about, None, 20)
    with pytest.raises(UserError, match="trained without captions"):
        encoded(["red"], {"text": None}, None, 20)


def test_frames_are_pictures_of_their_own(tmp_path):
    path = tmp_path / "blink.gif"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    rows = [{"id": k, "key": f"blink.gif#{k}", "uri": str(path), "frame": k} for k in (0, 1)]
    table = pa.Table.from_pylist(rows)
    release = SimpleNamespace(name="frames-0001", columns={}, rows=lambda ids: table, door=Door([str(tmp_path)]))
    first, second = originals(release)
    assert first.rgb[0, 0].tolist() == [255, 0, 0] and second.rgb[0, 0].tolist() == [0, 0, 255]
    assert first.caption == ""
