"""Three stages of a tokenizer's training over the one loop: first weights, freezing, identity, resume, averages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import toy_dataset
from nextloom.errors import UserError
from nextloom.store.release import open_release
from nextloom.tokenize.quantizer import Quantizer
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.siglip_config import SiglipConfig
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import VitConfig
from nextloom.train import recipe as recipes
from nextloom.train.engine import checkpoint
from nextloom.train.engine.ema import Average
from nextloom.train.engine.loop import _clip, make_optimizer
from nextloom.train.engine.tracker import read
from nextloom.train.launch import inspect, launch
from nextloom.train.tokenizer.inputs import doubled, tokenizer_inputs, weights_of
from nextloom.train.tokenizer.recipe import TokenizerRecipe
from nextloom.train.tokenizer.task import TokenizerTask
from test_training import FILES, SMALL, TOKENIZER, world
from toy_stages import (
    SINGLE,
    as_input,
    noise,
    published_lpips,
    stages,
    task_of,
    tokenizer_recipe,
    weights,
    write_lpips,
    write_siglip,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return world(tmp_path_factory.mktemp("stages"), painted=True)


@pytest.fixture(scope="module")
def staged(root) -> dict[str, TokenizerRecipe]:
    """The three stages, trained."""
    made = stages(root)
    for wanted in made.values():
        assert launch(wanted)["state"] == "trained"
    return made


def test_stage_pixel_trains_a_single_branch(staged):
    found = weights(staged["pixel"])
    assert not any(name.startswith(("semantic_", "to_semantic")) for name in found)
    lines = [line for line in read(staged["pixel"].run_folder) if "loss" in line]
    assert "semantic" not in lines[-1] and lines[-1]["loss"] == pytest.approx(lines[-1]["mse"] + lines[-1]["vq"])
    assert (
        "semantic_cosine"
        not in json.loads((staged["pixel"].run_folder / "receipt.json").read_text())["summary"]["evaluation"]
    )
    tokenizer = Tokenizer.load(staged["pixel"].output)
    assert tokenizer.codebook().shape == (TOKENIZER.codes, TOKENIZER.pixel_dim)


def test_a_single_branch_picks_the_code_nearest_in_its_one_part():
    torch.manual_seed(3)
    quantizer, grids = Quantizer(50, 0, 5), schedule(FINAL_GRIDS[10], 5)
    z = torch.randn(2, 5, *grids[-1])
    table = F.normalize(quantizer.pixel.detach().double(), dim=1)
    for picture, codes in zip(z, quantizer.encode(z, grids)[1], strict=True):
        rest, at = picture.double()[None], 0
        for h, w in grids:
            cells = F.normalize(F.adaptive_avg_pool2d(rest, (h, w)), dim=1)[0].flatten(1).T
            index = torch.cdist(cells, table).argmin(dim=1)
            assert codes[at : at + h * w].tolist() == index.tolist()
            spread = table[index].T.reshape(1, 5, h, w)
            rest = rest - F.interpolate(spread, size=grids[-1], mode="bicubic")
            at += h * w


def test_stage_joint_starts_from_stage_one_and_trains_everything(root, staged):
    task = task_of(staged["joint"])
    start, first = task.build().state_dict(), weights(staged["pixel"])
    scratch = task_of(tokenizer_recipe(root, "scratch")).build().state_dict()
    taken = {name for name in start if name in first and torch.equal(start[name], first[name])}
    parts = ("pixel_encoder.", "to_pixel.", "quantizer.pixel", "from_pixel.", "pixel_decoder.")
    assert taken == {name for name in start if name.startswith(parts)}
    assert all(torch.equal(start[n], scratch[n]) for n in start if n not in taken), "the rest follows from the seed"
    assert any(not torch.equal(start[n], scratch[n]) for n in taken)
    end = weights(staged["joint"])
    for part in (*parts, "semantic_encoder.", "to_semantic.", "quantizer.semantic", "semantic_decoder."):
        mine = [n for n in start if n.startswith(part)]
        assert mine and any(not torch.equal(start[n], end[n]) for n in mine), part


def test_stage_joint_starts_from_stage_one_and_from_a_siglip(root, staged, tmp_path):
    published = write_siglip(tmp_path)
    fields = {"kind": "siglip2", "width": 16, "layers": 3, "heads": 2, "mlp": 24, "patch": 8, "positions": 16}
    update = {"semantic_encoder": SiglipConfig(**fields), "teacher": "siglip2", "teacher_dim": 16}
    update |= {"semantic_decoder": VitConfig(width=16, depth=1, heads=2, side=4)}
    start = {"pixel": staged["pixel"].output, "semantic": str(tmp_path)}
    wanted = tokenizer_recipe(root, "siglip", network_=TOKENIZER.model_copy(update=update), init_from=start)
    task = task_of(wanted)
    model = task.build()
    x, grids = as_input(noise(32, 32)), schedule(FINAL_GRIDS[20], 4)
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(1, 16, 8 * 8 * 3)
    with torch.no_grad():
        theirs = published(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(1, 16, dtype=torch.int32),
            spatial_shapes=torch.tensor([[4, 4]]),
            output_hidden_states=True,
        ).hidden_states[-2]
        expected = theirs[0].T.reshape(1, 16, 4, 4)
        torch.testing.assert_close(task.teacher(x, (4, 4)), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.semantic_encoder(x), expected, atol=1e-5, rtol=1e-4)
        assert model.decode(model.quantizer(model.encode(x), grids).features)[1].shape == (1, 16, 4, 4)
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    first = {name: value.clone() for name, value in model.state_dict().items()}
    total, count, metrics = task.loss(model, task.batch(0), 0)
    (total / count).backward()
    assert metrics["semantic"] > 0
    for name, parameter in model.semantic_encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())
    launch(wanted)
    end = weights(wanted)
    assert end.keys() == first.keys(), "the finished tokenizer holds its own tower, and no teacher"
    moved = [n for n in first if n.startswith("semantic_encoder.") and not torch.equal(first[n], end[n])]
    assert len(moved) > 20
    Tokenizer.load(wanted.output).tokenize(x, grids)


def test_stage_decoder_leaves_every_other_weight_as_it_was_to_the_bit(staged):
    before, after = weights(staged["joint"]), weights(staged["decoder"])
    kept = [name for name in before if not name.startswith("pixel_decoder.")]
    assert len(kept) > 20 and all(torch.equal(before[name], after[name]) for name in kept)
    config = Tokenizer.load(staged["decoder"].output).config
    assert config.pixel_decoder == doubled(TOKENIZER.pixel_decoder)
    assert (config.pixel_decoder.channels, config.pixel_decoder.blocks) == (16, 2)
    assert config.model_copy(update={"pixel_decoder": TOKENIZER.pixel_decoder}) == TOKENIZER
    start = task_of(staged["decoder"]).build().state_dict()
    assert any(not torch.equal(start[n], after[n]) for n in after if n.startswith("pixel_decoder."))
    moments = load_file(checkpoint.saved(staged["decoder"].run_folder)[-1] / checkpoint.OPTIMIZER)
    assert all(".pixel_decoder." in name for name in moments)
    x, grids = as_input(noise(32, 32)), schedule(FINAL_GRIDS[20], 4)
    pair = [Tokenizer.load(staged[stage].output).tokenize(x, grids)[0] for stage in ("joint", "decoder")]
    assert torch.equal(*pair), "a new decoder makes no stored code stale"


def test_where_a_stage_starts_is_part_of_its_identity(staged, tmp_path):
    assert {s: inspect(r).state for s, r in staged.items()} == dict.fromkeys(staged, "fresh")
    moved = staged["joint"].model_copy(
        update={"init_from": staged["joint"].init_from.model_copy(update={"pixel": str(tmp_path / "elsewhere")})}
    )
    with pytest.raises(UserError, match=r"init_from\.pixel: no tokenizer(.|\n)*recipes/tokenizer_pixel\.yaml"):
        inspect(moved)
    for name in FILES:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / "elsewhere" / name).write_bytes((Path(staged["pixel"].output) / name).read_bytes())
    assert inspect(moved).state == "fresh", "another place of the same weights"
    model = Tokenizer.load(staged["pixel"].output)
    with torch.no_grad():
        model.quantizer.pixel[0, 0] += 1
    model.save(tmp_path / "elsewhere")
    assert inspect(moved).state == "stale" and "inputs.init_from.pixel" in inspect(moved).cause


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": "pixel"}, "semantic_dim must be 0"),
        ({"network_": SINGLE}, "which is stage pixel"),
        ({"stage": "decoder"}, "needs init_from.tokenizer"),
        ({"stage": "decoder", "init_from": {"tokenizer": "x"}}, "leave tokenizer out"),
        ({"init_from": {"tokenizer": "x"}}, "takes init_from.pixel and init_from.semantic, not init_from.tokenizer"),
        ({"decoder": {}}, "belongs to stage decoder"),
        ({"network_": None, "tokenizer": "vqgam"}, "unknown profile 'vqgam'; did you mean 'vqgan'"),
        ({"sampling": {"column": "faces"}}, "sampling.column"),
        ({"ema": 1.0}, "ema"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(root, fields, message):
    with pytest.raises(UserError, match=message):
        tokenizer_recipe(root, "refused", **fields)


def test_first_weights_and_losses_that_are_absent_are_refused_before_a_step(root, staged, tmp_path):
    def told(**fields) -> str:
        with pytest.raises(UserError) as caught:
            inspect(tokenizer_recipe(root, "absent", **fields))
        return str(caught.value)

    assert "hf download google/siglip2-so400m-patch16-naflex" in told(init_from={"semantic": "models/siglip2"})
    assert "there is neither" in told(lpips="models/lpips") and "lpips==0.1.4" in told(lpips="models/lpips")
    write_siglip(tmp_path)
    assert "neither the semantic encoder nor the teacher is a SigLIP2" in told(init_from={"semantic": str(tmp_path)})
    full = {"network_": None, "tokenizer": "full"}
    assert "the teacher siglip2 needs the folder" in told(**full)
    assert "tokenizer.semantic_encoder is" in told(**full, init_from={"semantic": str(tmp_path)})
    other = TOKENIZER.model_copy(update={"codes": 16})
    assert "tokenizer.codes is 16" in told(network_=other, init_from={"pixel": staged["pixel"].output})
    assert "has no column 'faces'" in told(sampling={"column": "faces.count"})
    wide = SMALL.model_copy(update={"unshuffle": 4}).model_dump(mode="json")
    start = {"tokenizer": staged["joint"].output}
    assert "draws 4 pixels per code" in told(network_=None, stage="decoder", decoder=wide, init_from=start)


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("pixel", [], r"lpips: LPIPS needs(.|\n)*curl -LO https://download.pytorch.org/models/vgg16-397923af.pth"),
        ("joint", [], r"init_from.semantic: no SigLIP2(.|\n)*hf download google/siglip2-so400m-patch16"),
        ("decoder", [], r"init_from.tokenizer: no tokenizer(.|\n)*nextloom train recipes/tokenizer_joint.yaml"),
    ],
)
def test_the_full_recipes_say_how_absent_weights_get_there(root, name, sets, message):
    path = Path(__file__).parents[1] / "recipes" / f"tokenizer_{name}.yaml"
    wanted = recipes.load(str(path), root=str(root), sets=["dataset=toys", "release=tokens", *sets])
    assert (wanted.lr, wanted.betas, wanted.clip, wanted.weight_decay) == (1e-4, (0.9, 0.95), 1.0, 0.0)
    assert (wanted.gan_weight, wanted.lpips_weight, wanted.gan_channels, wanted.gan_layers) == (0.5, 1.0, 64, 3)
    with pytest.raises(UserError, match=message):
        inspect(wanted)


def test_the_toy_recipes_chain(root):
    pixel, joint, decoder = (recipes.load(f"toy_{stage}", root=str(root)) for stage in ("pixel", "joint", "decoder"))
    assert joint.init_from.pixel == pixel.output and decoder.init_from.tokenizer == joint.output
    assert joint.tokenizer == recipes.load("tokenizer", root=str(root)).tokenizer
    assert pixel.steps + joint.steps + decoder.steps == recipes.load("tokenizer", root=str(root)).steps


def test_weights_of_rows_come_from_a_column_of_the_release(root):
    release = open_release(str(root / "toys"), "tokens")
    lengths = release.column("text", ["n_tokens"])["n_tokens"].to_pylist()

    def found(**fields) -> list[float]:
        wanted = tokenizer_recipe(root, "weights", sampling={"column": "text.n_tokens", **fields})
        assert tokenizer_inputs(wanted, release)["sampling"] == ["t", "()"]
        return weights_of(wanted.sampling, release).tolist()

    assert found() == lengths
    assert found(above=8, factor=3) == [3.0 if n > 8 else 1.0 for n in lengths] and max(lengths) > 8 > min(lengths)
    for column, message in (
        ("text.words", "no value 'words'"),
        ("text.ids", "not a number"),
        ("text.error", "no value"),
    ):
        with pytest.raises(UserError, match=message):
            weights_of(tokenizer_recipe(root, "w", sampling={"column": column}).sampling, release)
    failed = world(root / "failed", captions=["a", "b", "c"])
    broken = toy_dataset.build(str(failed / "toys2"), ["a", "b", "c"], failed=[1])
    with pytest.raises(UserError, match=r"1 rows of release tokens-0001 have no tokens.n_tokens(.|\n)*is not null"):
        weights_of(tokenizer_recipe(root, "w", sampling={"column": "tokens.n_tokens"}).sampling, broken)


EVERYTHING = {"ema": 0.9, "gan_weight": 0.5, "gan_from": 3, "gan_channels": 8, "gan_layers": 2, "held": 2, "steps": 8}
EVERYTHING |= {"sampling": {"column": "text.n_tokens", "above": 6, "factor": 3.0}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_with_discriminator_average_and_weights_it_ends_with_the_same_bits(root, monkeypatch, precision):
    execution = {"checkpoint_every": 2, "log_every": 1, "eval_every": 4}
    alone, stopped = (
        tokenizer_recipe(root, f"{name}-{precision}", precision=precision, execution=execution, **EVERYTHING)
        for name in ("alone", "stopped")
    )
    launch(alone)
    batch = TokenizerTask.batch
    with monkeypatch.context() as patch:
        patch.setattr(
            TokenizerTask, "batch", lambda self, step, *rest: 1 / 0 if step == 7 else batch(self, step, *rest)
        )
        with pytest.raises(ZeroDivisionError):
            launch(stopped)
    torch.manual_seed(99)
    assert inspect(stopped).cause == "6 of 8 steps done"
    launch(stopped)
    assert all((Path(alone.output) / n).read_bytes() == (Path(stopped.output) / n).read_bytes() for n in FILES)
    one, two = (checkpoint.saved(r.run_folder)[-1] for r in (alone, stopped))
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.AVERAGE):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    lines = {r.output: [x for x in read(r.run_folder) if "event" not in x] for r in (alone, stopped)}
    ours, theirs = lines.values()
    assert [x["loss"] for x in ours] == [x["loss"] for x in theirs]
    assert ["gan" in x for x in ours] == [False] * 3 + [True] * 5
    assert ["eval/psnr_db" in x for x in ours] == [n % 4 == 0 for n in range(1, 9)]
    assert all(x["norm_2"] == 0 for x in ours[:3]) and all(x["norm_2"] > 0 for x in ours[3:])
    average, last = load_file(one / checkpoint.AVERAGE), load_file(one / checkpoint.MODEL)
    for name, value in weights(alone).items():
        assert torch.equal(value, average[f"tokenizer.{name}"]), "the averaged weights are what is saved"
    assert any(not torch.equal(average[name], last[name]) for name in average)
    assert {path.name for path in (alone.run_folder / "pictures").iterdir()} == {f"step-{n:09d}.png" for n in (4, 8)}


def test_a_checkpoint_without_its_average_is_refused(root, staged):
    wanted = staged["decoder"]
    task, path = task_of(wanted), checkpoint.saved(wanted.run_folder)[-1]
    model = task.build()
    identity = json.loads((path / checkpoint.STATE).read_text())["identity"]
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad], wanted)
    (path / checkpoint.AVERAGE).rename(path / "away")
    try:
        with pytest.raises(UserError, match=r"average\.safetensors is missing"):
            checkpoint.load(path, model, optimizer, identity, Average(model, 0.9))
    finally:
        (path / "away").rename(path / checkpoint.AVERAGE)


def test_the_average_is_what_the_formula_says():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average, expected = Average(model, 0.8), model.weight.detach().double().clone()
    for step in range(1, 40):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model, step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average.values["weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert set(average.values) == {"weight"}, "a frozen parameter is its own average"
    own = model.weight.detach().clone()
    with average.applied(model):
        assert torch.equal(model.weight, average.values["weight"]) and not torch.equal(model.weight, own)
    assert torch.equal(model.weight, own)


def test_gradients_do_not_depend_on_how_a_step_is_shared(root):
    fields = {k: v for k, v in EVERYTHING.items() if k != "sampling"} | {"gan_from": 0}
    task = task_of(tokenizer_recipe(root, "shared", **fields))

    def gradients(worlds: int) -> dict[str, torch.Tensor]:
        model = task.build()
        for rank in range(worlds):
            total, _, metrics = task.loss(model, task.batch(0, rank, worlds), 0)
            assert {"gan", "judged", "logits_real", "logits_fake"} < set(metrics)
            (total / task.recipe.batch).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    one, two = gradients(1), gradients(2)
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-4 * one[name].norm() + 1e-7, name


def test_rivals_are_clipped_each_on_its_own(root):
    model = task_of(tokenizer_recipe(root, "clipped", **(EVERYTHING | {"sampling": None}))).build()
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, 100.0 if name.startswith("discriminator") else 1e-5)
    before = model.tokenizer.to_pixel.weight.grad.clone()
    norms = _clip(model, list(model.parameters()), 1.0)
    rival = torch.cat([p.grad.flatten() for p in model.discriminator.parameters()])
    assert norms["norm_2"] > 1000 and float(rival.norm()) == pytest.approx(1.0, rel=1e-4)
    assert norms["norm"] < 1 and torch.equal(model.tokenizer.to_pixel.weight.grad, before)


def test_lpips_is_part_of_the_loss_where_its_weights_are_named(root, tmp_path):
    folder = write_lpips(tmp_path)
    task = task_of(tokenizer_recipe(root, "perceived", lpips=str(folder), lpips_weight=0.7, drop=0.0))
    model, batch = task.build(), task.batch(0)
    total, count, metrics = task.loss(model, batch, 0)
    theirs = published_lpips(folder)
    with torch.no_grad():
        drawn = model(batch["pictures"], task.grids(20)).picture
        wanted = theirs(drawn, batch["pictures"]).mean()
    torch.testing.assert_close(metrics["lpips"], wanted, rtol=1e-4, atol=0)
    parts = metrics["mse"] + metrics["vq"] + metrics["semantic"] + 0.7 * metrics["lpips"]
    torch.testing.assert_close(total.detach() / count, parts)
