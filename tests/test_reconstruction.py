"""Figures of a tokenizer, restated: while it trains, and of a folder of pictures (`nextloom evaluate`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from nextloom import pixels
from nextloom.cli import main
from nextloom.errors import UserError
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.train.engine.tracker import read
from nextloom.train.launch import launch
from nextloom.train.tokenizer.recipe import TokenizerRecipe
from nextloom.train.tokenizer.reconstruction import ReconstructionRecipe, evaluate
from nextloom.train.tokenizer.task import TokenizerTask
from test_training import world
from toy_stages import as_input, noise, task_of, tokenizer_recipe


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return world(tmp_path_factory.mktemp("figures"), painted=True)


@pytest.fixture(scope="module")
def trained(root) -> TokenizerRecipe:
    wanted = tokenizer_recipe(root, "board", steps=2, execution={"eval_every": 2})
    launch(wanted)
    return wanted


def test_held_pictures_are_never_trained_on_and_are_what_is_judged(root):
    wanted = tokenizer_recipe(root, "held", held=3)
    pictures = [noise(32, 32, seed) for seed in range(10)]
    task = TokenizerTask(wanted, pictures, ids=np.arange(100, 110))
    seen = {n for step in range(3 * task.order.per_epoch) for n in task.order.at(step)[1]}
    assert len(task.held) == 3 and seen == set(range(10)) - task.held
    shifted = TokenizerTask(wanted, [noise(32, 32, 77), *pictures], ids=np.array([50, *range(100, 110)]))
    assert len({n - 1 for n in shifted.held} & task.held) >= 2, "by id: at most one moves when a picture is added"
    model = task.build()
    own = [pictures[n] for n in sorted(task.held)]
    assert task.evaluate(model) == task.evaluate(model, own) != task.evaluate(model, pictures[:3])
    with pytest.raises(UserError, match="10 of 10 pictures are to be held out"):
        TokenizerTask(tokenizer_recipe(root, "held", held=10), pictures)


def test_figures_restated(root):
    task = task_of(tokenizer_recipe(root, "figures"), 3)
    model = task.build()
    found = task.evaluate(model)
    grids, psnr, rests, codes = schedule(FINAL_GRIDS[20], 4), [], [], []
    for picture in task.pictures:
        x = as_input(picture)
        with torch.no_grad():
            indices, _ = model.tokenize(x, grids)
            drawn = model.decode_codes(indices, grids)[0]
            z = rest = model.encode(x)
            table, at, shares = model.codebook(), 0, []
            for h, w in grids:
                part = indices[0, at : at + h * w]
                up = F.interpolate(table[part].T.reshape(1, -1, h, w), size=grids[-1], mode="bicubic")
                rest, at = rest - up, at + h * w
                shares.append(float(rest.norm() / z.norm()))
        rgb = ((drawn.double() + 1) * 127.5).round().permute(1, 2, 0).numpy()
        psnr.append(10 * np.log10(255**2 / np.mean((rgb - picture) ** 2)))
        rests.append(shares)
        codes.append(indices[0].numpy())
    assert found["psnr_db"] == pytest.approx(np.mean(psnr), abs=1e-3)
    for k, wanted in enumerate(np.mean(rests, axis=0), 1):
        assert found[f"rest/{k}"] == pytest.approx(wanted, rel=1e-4)
    at = 0
    for k, (h, w) in enumerate(grids, 1):
        part = np.concatenate([c[at : at + h * w] for c in codes])
        share = np.unique(part, return_counts=True)[1] / len(part)
        assert found[f"codes_used/{k}"] == len(share)
        assert found[f"perplexity/{k}"] == pytest.approx(np.prod(share**-share))
        at += h * w
    assert found["codes_used"] == len(np.unique(np.concatenate(codes)))


def test_figures_and_pictures_reach_tensorboard(trained):
    board = EventAccumulator(str(trained.run_folder / "tensorboard"))
    board.Reload()
    scalars = set(board.Tags()["scalars"])
    for name in ("psnr_db", "ssim", "codes_used/1", "perplexity/4", "rest/2"):
        assert f"eval/{name}" in scalars
    assert board.Tags()["images"] == ["pictures"]
    line = [x for x in read(trained.run_folder) if "eval/ssim" in x]
    assert [x["step"] for x in line] == [2]
    with Image.open(trained.run_folder / "pictures" / "step-000000002.png") as picture:
        assert picture.size[0] >= 8 * 72


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three pictures of several shapes, one below another folder, and a file that is none."""
    path = tmp_path_factory.mktemp("pictures")
    (path / "deeper").mkdir()
    for name, shape in {"a.png": (200, 160), "deeper/b.PNG": (64, 64), "c.png": (40, 200)}.items():
        Image.fromarray(noise(*shape, seed=len(name))).save(path / name, format="PNG")
    (path / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (path / "notes.txt").write_text("no picture")
    return path


def test_evaluation_measures_the_way_of_extraction(trained, folder):
    wanted = ReconstructionRecipe(tokenizer=trained.output, pictures=str(folder), levels=(64, 128))
    found = evaluate(wanted)
    assert (found["files"], found["failed"]) == (4, 1) and "broken.jpg" in found["failures"][0]["file"]
    model = Tokenizer.load(trained.output)
    for line, side, count, enlarged in zip(found["levels"], (32, 64), (4, 8), (0, 1), strict=True):
        assert (line["side"], line["pictures"], line["enlarged"], line["paper"]) == (side, 3, enlarged, None)
        grids, psnr, same = schedule(FINAL_GRIDS[20], count), [], []
        for file in sorted(folder.rglob("*.[pP][nN][gG]")):
            x = torch.from_numpy(pixels.to_model(pixels.decode(file.read_bytes()), side, side))[None]
            drawn = model.decode_codes(model.tokenize(x, grids)[0], grids)[0]
            a, b = (((t.double() + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8) for t in (x[0], drawn))
            psnr.append(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))
            same.append(structural_similarity(a, b, channel_axis=-1, data_range=255))
        assert line["psnr_db"] == pytest.approx(np.mean(psnr), abs=1e-3)
        assert line["ssim_uniform"] == pytest.approx(np.mean(same), abs=1e-4)


def test_pictures_in_their_own_shape_and_beyond_four_to_one(trained, folder, tmp_path):
    empty = tmp_path
    fields = {"tokenizer": trained.output, "pictures": str(folder), "levels": (64,), "shape": "own"}
    line = evaluate(ReconstructionRecipe(**fields))["levels"][0]
    assert (line["pictures"], line["too_long"]) == (2, 1)
    with pytest.raises(UserError, match="no pictures here"):
        evaluate(ReconstructionRecipe(**fields | {"pictures": str(empty)}))
    with pytest.raises(UserError, match="no such folder"):
        evaluate(ReconstructionRecipe(**fields | {"pictures": str(folder / "nowhere")}))
    with pytest.raises(UserError, match="no tokenizer"):
        evaluate(ReconstructionRecipe(**fields | {"tokenizer": str(folder)}))


@pytest.mark.parametrize(
    ("name", "beside"),
    [("imagenet-1k-val", ["none", "25.228 / 0.820"]), ("emoji", ["other data", "other data"])],
)
def test_the_published_figures_stand_beside_their_own_data_set(
    trained, folder, tmp_path, monkeypatch, capsys, name, beside
):
    recipe = tmp_path / "reconstruction.yaml"
    recipe.write_text(
        f"evaluate: reconstruction\ntokenizer: {trained.output}\npictures: {folder}\n"
        f"dataset_name: {name}\nlevels: [256, 512]\nlimit: 2\n"
    )
    monkeypatch.setattr("sys.argv", ["nextloom", "evaluate", str(recipe)])
    with pytest.raises(SystemExit, match="0"):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1].strip() for line in lines[1:3]] == beside
    monkeypatch.setattr("sys.argv", ["nextloom", "evaluate", str(recipe), "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    found = json.loads(capsys.readouterr().out)
    papers = [line["paper"] for line in found["levels"]]
    assert papers == [None, {"psnr_db": 25.228, "ssim": 0.82} if "none" in beside else None]


def test_an_evaluation_of_another_kind_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "other.yaml").write_text("evaluate: drawings\n")
    monkeypatch.setattr("sys.argv", ["nextloom", "evaluate", str(tmp_path / "other.yaml")])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "unknown evaluation 'drawings'; known: reconstruction" in capsys.readouterr().err
