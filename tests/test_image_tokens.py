"""The image_tokens step: columns, identity, golden output, the tokenizer's digest, and what planning imports."""

import hashlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from engine import build, contents, run
from nextloom import pixels
from nextloom.errors import UserError
from nextloom.op import Row
from nextloom.pipelines.plan import op_identity
from nextloom.tokenize.image_tokens import ImageTokens
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import digest, unpack_indices
from nextloom.train.tokenizer.recipe import TokenizerRecipe
from nextloom.train.tokenizer.task import TokenizerTask
from toy_tokenizers import SMALL, random_tokenizer

CONFIG = SMALL.model_copy(update={"pixel_dim": 4})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    random_tokenizer(0, CONFIG).save(path)
    return str(path)


def picture(height=50, width=70, seed=0):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + seed + c)) * np.cos(y / (7 + c)) for c in range(3)]
    return ((np.stack(waves, axis=2) + 1) * 127.5).astype(np.uint8)


def row(number=0, **shape):
    return Row(id=number, key=f"key{number}", pixels=picture(seed=number, **shape))


def ready(folder, **fields):
    op = ImageTokens(tokenizer=folder, **{"scales": 4, **fields})
    op.setup()
    return op


def test_values_match_the_schema_and_decode_to_a_picture(folder):
    op = ready(folder, clean=True)
    value = op.measure(row(height=30, width=60))
    assert list(value) == op.columns().names
    grids = schedule(FINAL_GRIDS[value["schedule"]], 4)
    assert (value["scales"], grids[-1]) == (4, (3, 6))
    for name in ("target", "input", "clean"):
        codes = unpack_indices(value[name])
        assert len(codes) == value["n_tokens"] == sum(h * w for h, w in grids)
        assert codes.max() < 64
    tokenizer = Tokenizer.load(folder)
    drawn = tokenizer.decode_codes(torch.from_numpy(unpack_indices(value["clean"]))[None], grids)
    assert drawn.shape == (1, 3, 24, 48)


def test_self_correction_follows_the_fields(folder):
    drawn = ready(folder, clean=True).measure(row())
    assert drawn["input"] != drawn["target"]
    plain = ready(folder, p=0.0).measure(row())
    assert plain["input"] == plain["target"] == drawn["clean"]
    assert plain["clean"] is None
    assert ready(folder, seed=1).measure(row())["input"] != drawn["input"]


def test_draws_are_independent_and_the_first_is_the_only_one_of_one(folder):
    one, three = (ready(folder, draws=draws).measure(row()) for draws in (1, 3))
    count = one["n_tokens"]
    sides = {side: unpack_indices(three[side]).reshape(3, count) for side in ("input", "target")}
    assert (three["draws"], three["n_tokens"]) == (3, count)
    for side, drawn in sides.items():
        assert drawn[0].tolist() == unpack_indices(one[side]).tolist()
        assert len({tuple(d) for d in drawn.tolist()}) == 3, side
    assert three == ready(folder, draws=3).measure(row()), "hashes, not a stream"


def test_a_row_says_what_was_encoded(folder):
    value = ready(folder).measure(row(height=50, width=70))
    assert schedule(FINAL_GRIDS[value["schedule"]], 4)[-1] == (3, 4), "4:3 out of 7:5"
    box = [value[name] for name in ("left", "top", "crop_width", "crop_height")]
    assert np.allclose(box, [(70 - 200 / 3) / 2, 0, 200 / 3, 50])
    assert value["tokenizer"] == digest(folder) and value["resampling"] == "lanczos"
    assert value["extractor"] == ImageTokens(tokenizer=folder, scales=4).version()


def test_two_levels_share_a_decode_as_two_steps(folder, tmp_path, ray_local):
    (tmp_path / "pics").mkdir()
    for number in range(3):
        Image.fromarray(picture(seed=number)).save(tmp_path / "pics" / f"{number}.png")
    steps = {f"scales{k}": {"op": "image_tokens", "tokenizer": folder, "scales": k} for k in (3, 5)}
    recipe, dataset = build(tmp_path, steps)
    assert [run(recipe, dataset)[name]["values"] for name in steps] == [3, 3]
    counts = [[r["n_tokens"] for r in contents(recipe, dataset)[name]] for name in steps]
    assert counts[0] != counts[1]


def test_a_row_does_not_depend_on_its_neighbours(folder):
    rows = [row(i) for i in range(37)]
    together = ready(folder).process(rows)
    assert ready(folder).process(rows[::-1]) == together[::-1]
    assert ready(folder).process([rows[20]]) == [together[20]]


def test_a_picture_beyond_four_to_one_is_an_error_row_among_values(folder):
    value, error = ready(folder).process([row(), row(1, height=10, width=60)])
    assert value["n_tokens"] == 23
    assert isinstance(error, ValueError)
    assert "longer than 4:1" in str(error)


def test_extraction_leaves_the_tokenizer_as_it_was(folder):
    before = digest(folder)
    ready(folder).process([row(i) for i in range(3)])
    assert digest(folder) == before


def test_the_identity_is_the_tokenizers_two_files(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("trained on Sunday")
    op = ImageTokens(tokenizer=str(copy), scales=4)
    assert op_identity(op, "steps.tokens")["tokenizer"] == digest(folder) == op.digest_weights("tokenizer")
    assert len(digest(folder)) == 16
    for name in ("config.json", "model.safetensors"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content + b" ")
        assert digest(copy) != digest(folder)
        (copy / name).unlink()
        with pytest.raises(UserError, match=r"^steps\.tokens\.tokenizer: no weights at .*copy\n  next: nextloom train"):
            op_identity(op, "steps.tokens")
        (copy / name).write_bytes(content)


def test_training_and_extraction_see_bitwise_the_same_picture(folder):
    seen = []

    class Recorder(Tokenizer):
        def encode(self, x):
            seen.append(x.clone())
            return super().encode(x)

    op = ready(folder)
    op._tokenizer.__class__ = Recorder
    op.measure(row(height=64, width=48))
    recipe = TokenizerRecipe(output="", dataset="", release="", steps=900, tokenizer=CONFIG, scales=4, batch=1)
    task = TokenizerTask(recipe, [picture(height=64, width=48)])
    batch = task.batch(0)["pictures"]
    assert torch.equal(seen[0], batch)
    assert np.array_equal(batch[0].numpy(), pixels.to_model(picture(height=64, width=48), *batch.shape[2:]))


def test_golden_output(folder):
    value = ready(folder, clean=True).measure(row())
    total = hashlib.sha256(b"".join(value[n] for n in ("target", "input", "clean"))).hexdigest()[:16]
    assert (value["schedule"], value["n_tokens"], total) == (15, 23, "52269a125aa4a64f"), (
        "the same picture gives other codes: bump code_version"
    )


def test_a_level_is_a_name_for_scales(folder):
    level, scales = ImageTokens(tokenizer=folder, level=128), ImageTokens(tokenizer=folder, scales=8)
    assert level.identity() == scales.identity()
    for wrong in ({}, {"scales": 8, "level": 128}, {"scales": 19}, {"level": 100}):
        with pytest.raises(ValidationError):
            ImageTokens(tokenizer=folder, **wrong)


def test_the_version_names_decoding_and_resizing(folder):
    version = ImageTokens(tokenizer=folder, scales=4).version()
    assert pixels.DECODE_VERSION in version
    assert pixels.RESIZE_VERSION in version


def test_planning_imports_neither_torch_nor_ray():
    code = (
        "import sys; import nextloom.tokenize.image_tokens, nextloom.tokenize.text_tokens, nextloom.tokenize.schedule;"
        "print([name for name in ('torch', 'ray', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
