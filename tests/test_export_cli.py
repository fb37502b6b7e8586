"""``nextloom export`` as a user types it: releases and rows, columns, frames, refusals with the next command."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import polars
import pytest
from PIL import Image

from engine import write_pictures
from exporting import manifest
from nextloom.pixels import decode

RECIPE = """
dataset: toy
source: {op: files, path: pics}
steps:
  stats:  {op: image_stats}
  keep:   {op: select, where: "stats.short_side >= 8"}
  frames: {op: gif_frames, rows: keep}
  shown:  {op: select, rows: frames, where: "source.key like '%.gif%'"}
releases:
  kept:  {rows: keep, columns: [stats]}
  other: {rows: keep}
  moments: {rows: shown}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_local):
    """Three stills, an animation of two frames, one still too small; run and released."""
    root = tmp_path_factory.mktemp("cli")
    write_pictures(root / "data/pics", 3)
    write_pictures(root / "data/pics/small", 1, size=4)
    noise = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    first, second = map(Image.fromarray, noise)
    first.save(root / "data/pics/move.gif", save_all=True, append_images=[second], duration=100)
    (root / "toy.yaml").write_text(RECIPE)
    return root


def test_an_export_from_before_the_first_run_to_the_frames(nextloom, folder, tmp_path):
    def export(*arguments):
        return nextloom("export", "toy.yaml", *arguments, cwd=folder)

    out = str(tmp_path / "out")
    code, _, err = export(out, "--to", "parquet")
    assert code == 1 and "no release 'kept' yet" in err and "next: nextloom release toy.yaml kept" in err
    code, _, err = export(out, "--to", "parquet", "--rows", "keep")
    assert (
        code == 1 and err.startswith("error: --rows: the source changed") and "nextloom run toy.yaml --to keep" in err
    )
    assert nextloom("run", "toy.yaml", cwd=folder)[0] == 0 and nextloom("release", "toy.yaml", cwd=folder)[0] == 0

    code, told, _ = export(out, "--to", "parquet")
    assert code == 0 and told.startswith(f"{out}: kept-0001, 4 of 4 rows in 1 shard, ")
    assert export(out, "--to", "parquet")[1].endswith("(unchanged)\n")
    frame = polars.read_parquet(f"{out}/*.parquet")
    assert frame["key"].to_list() == ["move.gif", "p000.png", "p001.png", "p002.png"]
    assert frame["stats.short_side"].to_list() == [24] * 4 and "stats.sharpness" in frame.columns
    assert manifest(tmp_path / "out")["fingerprints"].keys() == {"stats"}

    code, told, _ = export(str(tmp_path / "named"), "--to", "keys", "--release", "other-0001")
    assert code == 0 and "other-0001, 4 of 4 rows" in told
    code, told, _ = export(str(tmp_path / "images"), "--to", "parquet", "--rows", "keep")
    assert code == 0 and "rows of keep, 4 of 4" in told
    image = polars.read_parquet(f"{tmp_path}/images/*.parquet")["image"][1]
    assert image == (folder / "data/pics/p000.png").read_bytes()
    code, told, _ = export(
        str(tmp_path / "rows"), "--to", "keys", "--rows", "keep", "--columns", "stats.width,source.size"
    )
    assert code == 0 and "rows of keep, 4 of 4" in told
    head, first, *_ = (tmp_path / "rows/keys-000000.csv").read_text().splitlines()
    assert head == "key,caption,stats.width,source.size" and first.startswith("move.gif,,24,")

    code, _, err = export(str(tmp_path / "bare"), "--to", "webdataset", "--release", "moments")
    assert code == 1 and "move.gif#0000 is one frame" in err and "--frames png" in err
    code, told, _ = export(str(tmp_path / "bare"), "--to", "webdataset", "--release", "moments")
    assert code == 1, "nothing half is taken for an export"
    code, told, _ = export(str(tmp_path / "frames"), "--to", "webdataset", "--release", "moments", "--frames", "png")
    assert code == 0 and "moments-0001, 2 of 2 rows" in told
    with tarfile.open(tmp_path / "frames/shard-000000.tar") as tar:
        images = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".png")}
        keys = [json.load(tar.extractfile(m))["key"] for m in tar.getmembers() if m.name.endswith(".json")]
    assert keys == ["move.gif#0000", "move.gif#0001"]
    gif = (folder / "data/pics/move.gif").read_bytes()
    for number, raw in enumerate(images.values()):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw))), decode(gif, number))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out"], "Missing option '--to'"),
        (["out", "--to", "zip"], "unknown format 'zip'; known: webdataset, parquet, hf, keys"),
        (["out", "--to", "keys", "--release", "nothing"], "no release 'nothing'"),
        (["out", "--to", "keys", "--rows", "keeps"], "--rows: unknown step 'keeps'; did you mean 'keep'?"),
        (["out", "--to", "keys", "--rows", "stats"], "--rows: 'stats' chooses no rows"),
        (["out", "--to", "keys", "--release", "kept", "--rows", "keep"], "not both"),
        (["out", "--to", "keys", "--frames", "jpg"], "--frames: unknown value 'jpg'; known: refuse, png"),
        (["s3://bucket/out", "--to", "keys"], "written to a folder of this machine"),
        (["data/pics/out", "--to", "keys"], "data/pics/out: it lies in what the source lists"),
        (["data/datasets/toy/out", "--to", "keys"], "it lies in the datasets of this root"),
    ],
)
def test_mistakes_are_refused(nextloom, folder, arguments, message):
    code, out, err = nextloom("export", "toy.yaml", *arguments, cwd=folder)
    assert code in (1, 2) and out == "" and message in err
    assert not list(folder.rglob("out"))


def test_a_file_that_vanished_ends_with_code_1_and_a_list(nextloom, folder, tmp_path):
    nextloom("run", "toy.yaml", cwd=folder), nextloom("release", "toy.yaml", cwd=folder)
    raw = (folder / "data/pics/p001.png").read_bytes()
    (folder / "data/pics/p001.png").unlink()
    code, out, err = nextloom("export", "toy.yaml", str(tmp_path / "out"), "--to", "webdataset", cwd=folder)
    (folder / "data/pics/p001.png").write_bytes(raw)
    assert code == 1 and "3 of 4 rows in 1 shard" in out
    assert "1 of 4 rows of kept-0001 have no bytes any more" in err and "errors.jsonl" in err
    assert "p001.png" in (tmp_path / "out/.nextloom/errors.jsonl").read_text()
