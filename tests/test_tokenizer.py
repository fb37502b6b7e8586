"""The tokenizer: sizes, folder and digest, the bit rule on whole pictures, axes, and the training task."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from nextloom.config import validate
from nextloom.errors import UserError
from nextloom.tokenize.cnn import Decoder, Encoder
from nextloom.tokenize.quantizer import Correction
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.teacher import make_teacher
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import (
    CnnConfig,
    TokenizerConfig,
    digest,
    pack_indices,
    read_config,
    toy,
    unpack_indices,
)
from nextloom.train.tokenizer.recipe import TokenizerRecipe
from nextloom.train.tokenizer.task import TokenizerTask
from toy_tokenizers import SMALL, random_tokenizer

SQUARE = schedule(FINAL_GRIDS[20], 4)


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(config=SMALL, seed=0):
    return random_tokenizer(seed, config)


def noise(count, height=32, width=32, seed=1):
    torch.manual_seed(seed)
    return torch.rand(count, 3, height, width) * 2 - 1


@pytest.mark.parametrize(
    ("kind", "config", "weights"),
    [
        (Encoder, CnnConfig(), 29_298_176),
        (Decoder, CnnConfig(), 42_449_795),
        (Decoder, CnnConfig(channels=256, blocks=4), 237_117_187),
    ],
    ids=["encoder", "decoder", "double capacity"],
)
def test_full_size_networks_have_the_published_number_of_weights(kind, config, weights):
    with torch.device("meta"):
        assert sum(p.numel() for p in kind(config).parameters()) == weights
    assert config.patch == 16


def test_any_shape_of_picture_gives_one_cell_per_code():
    model = make(
        SMALL.model_copy(update={"pixel_encoder": CnnConfig(channels=8, multipliers=(1, 2, 2), groups=4, unshuffle=2)})
    )
    for row in (0, 10, 20, 33, 40):
        grids = schedule(FINAL_GRIDS[row], 6)
        height, width = (8 * side for side in grids[-1])
        codes, _ = model.tokenize(noise(2, height, width), grids)
        assert codes.shape == (2, sum(h * w for h, w in grids))
        picture = model.decode_codes(codes, grids)
        assert picture.shape == (2, 3, height, width)
        assert picture.abs().max() <= 1


def test_decoding_a_prefix_of_the_scales_gives_the_coarse_picture():
    model, x = make(), noise(1)
    codes, _ = model.tokenize(x, SQUARE)
    coarse = model.decode_codes(codes[:, :5], SQUARE[:2], size=SQUARE[-1])
    with torch.no_grad():
        expected = model.decode(model.quantizer(model.encode(x), SQUARE[:2]).features)[0].clamp(-1, 1)
    torch.testing.assert_close(coarse, expected, atol=1e-5, rtol=0)


def test_the_codebook_is_normalised_per_part():
    table = make().codebook()
    assert table.shape == (64, 12)
    torch.testing.assert_close(table[:, :4].norm(dim=1), torch.ones(64))
    torch.testing.assert_close(table[:, 4:].norm(dim=1), torch.ones(64))


def test_save_load_and_digest(tmp_path):
    model = make()
    model.save(tmp_path / "a")
    model.to(memory_format=torch.channels_last).save(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    loaded = Tokenizer.load(tmp_path / "a")
    assert loaded.config == SMALL == read_config(tmp_path / "a")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert not loaded.training
    loaded.save(tmp_path / "c")
    assert digest(tmp_path / "c") == digest(tmp_path / "a")
    with torch.no_grad():
        next(loaded.parameters()).add_(1e-3)
    loaded.save(tmp_path / "d")
    assert digest(tmp_path / "d") != digest(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        digest(tmp_path / "nowhere")


def test_indices_of_a_picture_are_the_same_alone_in_a_batch_permuted_and_in_another_process(tmp_path):
    model, x = make(toy()), noise(37, 48, 48)
    grids, correction = schedule(FINAL_GRIDS[20], 6), Correction(seed=2)
    keys = [f"row{i}" for i in range(37)]
    inputs, targets = model.tokenize(x, grids, correction, keys)
    order = torch.randperm(37)
    assert torch.equal(model.tokenize(x[order], grids, correction, [keys[i] for i in order])[1], targets[order])
    for i in (0, 20, 36):
        alone = model.tokenize(x[i : i + 1].clone(), grids, correction, [keys[i]])
        assert torch.equal(alone[0][0], inputs[i])
        assert torch.equal(alone[1][0], targets[i])
    model.save(tmp_path)
    np.save(tmp_path / "x.npy", x[30:].numpy())
    code = f"""
import numpy as np, torch
from nextloom.tokenize.quantizer import Correction
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.tokenizer import Tokenizer
torch.set_num_threads(2)
pair = Tokenizer.load({str(tmp_path)!r}).tokenize(
    torch.from_numpy(np.load({str(tmp_path / "x.npy")!r})), schedule(FINAL_GRIDS[20], 6), Correction(seed=2),
    [f"row{{i}}" for i in range(30, 37)])
print([p.tolist() for p in pair])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [inputs[30:].tolist(), targets[30:].tolist()]
    assert torch.get_num_threads() == 1


def test_code_32767_round_trips():
    codes = np.array([0, 1, 32_766, 32_767])
    raw = pack_indices(codes, 32_768)
    assert raw == bytes([0, 0, 1, 0, 0xFE, 0x7F, 0xFF, 0x7F])
    assert unpack_indices(raw).tolist() == codes.tolist()
    assert unpack_indices(pack_indices(np.array([65_535]), 65_536)).tolist() == [65_535]
    with pytest.raises(ValueError, match="outside"):
        pack_indices(np.array([64]), 64)


def test_codebooks_beyond_16_bits_are_refused():
    with pytest.raises(ValidationError, match=r"65,537 codes.*at most 65,536"):
        TokenizerConfig(codes=65_537)
    with pytest.raises(ValueError, match="at most 65,536"):
        pack_indices(np.array([0]), 65_537)
    assert TokenizerConfig(codes=65_536).codes == 65_536


def test_networks_of_different_patches_are_refused():
    with pytest.raises(UserError, match="pixels per code"):
        validate(TokenizerConfig, {"pixel_decoder": {"multipliers": [1, 1]}}, where="tokenizer")


def pictures(count=9):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 40 if i % 3 else 80, 3), dtype=np.uint8) for i in range(count)]


def wanted(**fields):
    """A recipe; the task itself reads no file."""
    return TokenizerRecipe(**{"output": "", "dataset": "", "release": "", "steps": 10, "warmup": 0, **fields})


@pytest.fixture(scope="module")
def task():
    return TokenizerTask(
        wanted(tokenizer=SMALL, scales=4, batch=4, steps=10, drop_until=0.1, vq_weight=0.25), pictures()
    )


def test_a_batch_is_a_function_of_the_step_and_ranks_share_it(task):
    other = TokenizerTask(task.recipe, pictures())
    for step in (7, 0, 3):
        whole = task.batch(step)
        assert torch.equal(whole["pictures"], other.batch(step)["pictures"])
        halves = [other.batch(step, rank, 2) for rank in (0, 1)]
        for name in ("pictures", "teacher"):
            assert torch.equal(whole[name], torch.cat([h[name] for h in halves]))
    assert not torch.equal(task.batch(0)["pictures"], task.batch(3)["pictures"])


def test_an_epoch_shows_every_picture(task):
    per_epoch = 2 + 1  # six square pictures, three wide ones, four to a batch
    seen = torch.cat([task.batch(step)["pictures"].flatten(1)[:, :50] for step in range(per_epoch)])
    assert len(seen.unique(dim=0)) == 9
    assert {tuple(task.batch(step)["pictures"].shape[2:]) for step in range(per_epoch)} == {(32, 32), (24, 48)}


def test_training_lowers_the_loss_and_the_same_seed_repeats_it(task):
    def run():
        model = task.build()
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for step in range(8):
            total, count, metrics = task.loss(model, task.batch(step % 3), step)
            assert set(metrics) == {"mse", "vq", "semantic"}
            (total / count).backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(total.item() / count)
        return losses

    first = run()
    assert first[-1] < 0.8 * first[0]
    assert run() == first


def test_evaluation_counts_codes_and_decibels(task, tmp_path):
    model = task.build()
    measured = task.evaluate(model)
    assert 0 < measured["psnr_db"] < 15
    assert -1 <= measured["semantic_cosine"] <= 1
    assert 1 <= measured["perplexity"] <= measured["codes_used"] <= 64
    task.save(model, tmp_path)
    assert task.evaluate(Tokenizer.load(tmp_path))["codes_used"] == measured["codes_used"]


def test_the_teacher_has_real_weights_and_stays_frozen():
    teacher = make_teacher(SMALL).train()
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    x = noise(1, 48, 96)
    features = teacher(x, (6, 12))
    assert features.shape == (1, 112, 6, 12)
    # of a mirrored picture the trained network sees nearly the mirrored features; random weights give about 0.65
    rows = np.linspace(-1, 1, 48, dtype=np.float32)
    smooth = torch.from_numpy(np.broadcast_to(rows, (3, 48, 48)).copy())[None]
    same = F.cosine_similarity(teacher(smooth, (6, 6)), teacher(smooth.flip(3), (6, 6)).flip(3), dim=1)
    assert same.mean() > 0.85


def test_pictures_beyond_four_to_one_and_none_at_all_are_refused():
    with pytest.raises(UserError, match="picture 0"):
        TokenizerTask(wanted(), [np.zeros((10, 50, 3), np.uint8)])
    with pytest.raises(UserError, match="no pictures"):
        TokenizerTask(wanted(), [])
