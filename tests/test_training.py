"""Training: what a decoder learns, what a step holds, one process against two, Ray with a killed worker.

Past 400 lines because all of it stands on one small world of packs, which takes a second to make.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

import toy_dataset
from nextloom import pixels
from nextloom.errors import UserError
from nextloom.model.generate import draw
from nextloom.store.dataset import Dataset
from nextloom.store.lease import LeaseHeld
from nextloom.store.release import open_release
from nextloom.tokenize.documents import Picture, Text
from nextloom.tokenize.packing import PackSamples, open_plan, write_plan
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import CnnConfig, TokenizerConfig
from nextloom.train import on_ray
from nextloom.train import recipe as recipes
from nextloom.train.decoder.data import PackedData
from nextloom.train.decoder.recipe import DecoderRecipe
from nextloom.train.decoder.task import DecoderTask, load_decoder
from nextloom.train.engine import checkpoint
from nextloom.train.engine.loop import train
from nextloom.train.engine.tracker import read
from nextloom.train.inputs import inputs
from nextloom.train.launch import inspect, launch
from nextloom.train.tokenizer.recipe import TokenizerRecipe
from nextloom.train.tokenizer.task import TokenizerTask

SMALL = CnnConfig(channels=8, multipliers=(1,), blocks=1, z_channels=8, unshuffle=8, groups=4)
TOKENIZER = TokenizerConfig(
    codes=toy_dataset.CODES,
    semantic_dim=6,
    pixel_dim=4,
    pixel_encoder=SMALL,
    pixel_decoder=SMALL,
    semantic_encoder=SMALL,
    semantic_width=8,
)
MODEL = {"text_vocab": 256, "codes": toy_dataset.CODES, "semantic_dim": 6, "pixel_dim": 4, "width": 64, "layers": 2}
MODEL |= {"heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 96, "pad_vocab": 32}
FILES = ("config.json", "model.safetensors")
GOLDEN_LOSSES = [5.778445, 5.657686, 5.595308]
CAPTIONS = ["red heart", "blue heart", "sad cat", "glad cat", "full moon", "a face", "a circle", "sun"]


def world(root: Path, captions: list[str] = CAPTIONS, *, cap: int = 128, painted: bool = False, **fields) -> Path:
    """A dataset of random codes with its pack plan and an (untrained) tokenizer below `root`.

    Where `painted`, each row names a PNG of its target codes, as that tokenizer draws them.
    """
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZER).requires_grad_(False)
    tokenizer.save(root / "tokenizer")
    if painted:
        fields["paint"] = lambda codes, grids: pixels.from_model(
            tokenizer.decode_codes(torch.from_numpy(codes)[None], grids)[0].numpy()
        )
    release = toy_dataset.build(str(root / "toys"), captions, tokenizer=str(root / "tokenizer"), **fields)
    dataset = Dataset(str(root / "toys"))
    op = PackSamples(release="tokens", images="tokens", text="text", token_cap=cap)
    with dataset.lease("test"):
        write_plan(dataset, "main", op, release)
    return root


def recipe(root: Path, *, model: dict | None = None, **fields) -> DecoderRecipe:
    """A decoder recipe over `world(root)`."""
    execution = {"workers": 0, "threads": 1, "checkpoint_every": 1000, **fields.pop("execution", {})}
    data = {"output": "run", "dataset": "toys", "packs": "main", "tokenizer": "tokenizer", "steps": 6, "warmup": 2}
    data |= {"train": "decoder", "packs_per_step": 2, "precision": "fp32", "null_prompt": 0.0}
    data["model"] = {**MODEL, **(model or {})}
    return recipes.build({**data, **fields, "execution": execution}, root=str(root))


def learnt(root: Path) -> tuple[DecoderRecipe, dict]:
    """Eight pictures, learnt by heart; they have 4 scales and no self-correction."""
    wanted = recipe(
        world(root, painted=True),
        steps=220,
        packs_per_step=3,
        lr=4e-3,
        warmup=20,
        weight_decay=0.0,
        model={"width": 96},
    )
    return wanted, launch(wanted)


@pytest.fixture(scope="module")
def overfit(tmp_path_factory):
    return learnt(tmp_path_factory.mktemp("overfit"))


def test_eight_pictures_are_learnt_in_every_scale(overfit):
    _, summary = overfit
    evaluation = summary["evaluation"]
    assert {k: evaluation[f"scale_{k}"] < 0.05 for k in (1, 2, 3, 4)} == dict.fromkeys((1, 2, 3, 4), True), evaluation
    assert summary["last_loss"] < 0.05 < summary["first_loss"]


def test_greedy_drawing_returns_the_stored_targets(overfit):
    wanted, _ = overfit
    model, config = load_decoder(wanted.output)
    task = DecoderTask.open(wanted)
    documents = [task.data.document(i) for i in range(len(CAPTIONS))]
    drawn = draw(model, [[d[0]] for d in documents], documents[0][1].grids, temperature=0)
    for codes, document in zip(drawn, documents, strict=True):
        assert codes.tolist() == document[1].targets.tolist()
    assert config["release"] == "tokens-0001"


def test_right_captions_tell_more_than_shuffled_ones(overfit):
    evaluation = overfit[1]["evaluation"]
    assert evaluation["loss_shuffled"] > 10 * evaluation["loss"] + 1


def test_a_finished_training_is_fresh_and_says_so_without_ray_or_torch(overfit):
    wanted, summary = overfit
    before = Path(wanted.output, "model.safetensors").stat().st_mtime_ns
    again = launch(wanted)
    assert (again["state"], again["evaluation"]) == ("fresh", summary["evaluation"])
    assert Path(wanted.output, "model.safetensors").stat().st_mtime_ns == before
    assert sorted(p.name for p in Path(wanted.output).iterdir()) == ["config.json", "model.safetensors"]
    code = (
        "import sys; from nextloom.train.decoder.recipe import DecoderRecipe\n"
        "from nextloom.train.launch import launch\n"
        "recipe = DecoderRecipe.model_validate_json(sys.stdin.read())\n"
        "print(launch(recipe)['state'], sorted({'ray', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=wanted.model_dump_json(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "fresh []\n"


def test_a_changed_recipe_trains_anew_when_finished_and_is_refused_when_not(tmp_path):
    first = recipe(world(tmp_path), steps=2)
    assert inspect(first).state == "missing"
    launch(first)
    changed = recipe(tmp_path, steps=2, lr=1e-4)
    assert inspect(changed).state == "stale" and inspect(changed).cause == "lr 0.001 -> 0.0001"
    assert launch(changed)["state"] == "trained"
    receipt = json.loads((changed.run_folder / "receipt.json").read_text())
    begun = {"identity": {**receipt["identity"], "lr": 0.5}, "start": "another"}
    (changed.run_folder / "run.json").write_text(json.dumps(begun))
    with pytest.raises(UserError, match=r"lr 0.5 -> 0.001(.|\n)*--fresh"):
        launch(first)
    assert launch(first, fresh=True)["state"] == "trained"


def test_what_does_not_belong_together_is_refused(tmp_path):
    root = world(tmp_path)
    inputs(recipe(root))
    with pytest.raises(UserError, match=r"model\.codes: the tokenizer has 32, this says 64"):
        inputs(recipe(root, model={"codes": 64}))
    with pytest.raises(UserError, match=r"model\.max_scales: (.|\n)*have 4 scales(.|\n)*--set model\.max_scales=4"):
        inputs(recipe(root, model={"max_scales": 3}))
    with pytest.raises(UserError, match=r"model\.text_vocab: captions are bytes(.|\n)*--set model\.text_vocab=256"):
        inputs(recipe(root, model={"text_vocab": 255}))
    with pytest.raises(UserError, match="warmup is 7, but there are 6 steps"):
        recipe(root, warmup=7)
    with pytest.raises(UserError, match="packs_per_step: 3 is no multiple of 2 workers"):
        recipe(root, packs_per_step=3, execution={"workers": 2})
    with pytest.raises(UserError, match="did you mean 'weight_decay'"):
        recipe(root, weight_decays=0.1)
    with pytest.raises(UserError, match="unknown training 'decodr'; did you mean 'decoder'"):
        recipes.build({"train": "decodr"})
    torch.manual_seed(1)
    Tokenizer(TOKENIZER).save(root / "tokenizer")
    with pytest.raises(UserError, match="were made by a tokenizer with digest"):
        inputs(recipe(root))


def test_a_release_can_be_pinned_while_newer_ones_appear(tmp_path):
    root = world(tmp_path)
    dataset, plan = Dataset(str(root / "toys")), open_plan(str(root / "toys"), "main")
    old = inputs(recipe(root))
    op = PackSamples(**{k: v for k, v in plan.receipt["config"].items() if k != "version"})
    newer = toy_dataset.build(dataset.uri, CAPTIONS, seed=5, tokenizer=str(root / "tokenizer"))
    with dataset.lease("test"):
        write_plan(dataset, "main", op, newer)
    assert inputs(recipe(root)) != old
    assert inputs(recipe(root, release="tokens-0001")) == old
    toy_dataset.build(dataset.uri, CAPTIONS, seed=6, scales=3, tokenizer=str(root / "tokenizer"), name="other")
    with pytest.raises(UserError, match="other lengths than pack plan 'main'"):
        inputs(recipe(root, release="other"))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Captions of very unequal length, pictures of two shapes."""
    captions = ["x" * (1 + 9 * (i % 5)) for i in range(20)]
    rows = [toy_dataset.SQUARE if i % 3 else toy_dataset.WIDE for i in range(20)]
    return world(tmp_path_factory.mktemp("uneven"), captions, rows=rows, cap=200, correction=0.3)


def test_documents_of_a_plan(uneven):
    plan, release = open_plan(str(uneven / "toys"), "main"), open_release(str(uneven / "toys"), "tokens")
    data = PackedData(plan, release, seed=0, null_prompt=0.3)
    seen, dropped = [], []
    for pack in range(len(data)):
        for sample, document in zip(data.samples(pack).tolist(), data.documents(pack), strict=True):
            seen.append(sample)
            picture = document[-1]
            assert isinstance(picture, Picture) and picture.loss
            row = release.column("tokens", ids=np.array([sample])).to_pylist()[0]
            assert picture.targets.tolist() == np.frombuffer(row["target"], "<u2").tolist()
            assert picture.inputs.tolist() == np.frombuffer(row["input"], "<u2").tolist()
            assert picture.inputs.tolist() != picture.targets.tolist()
            if len(document) == 1:
                dropped.append(sample)
            else:
                text = document[0]
                assert isinstance(text, Text) and not text.loss and text.ids.tolist() == [ord("x")] * len(text.ids)
    assert sorted(seen) == list(range(20))
    assert 0 < len(dropped) < 15
    later = {
        sample
        for pack in range(len(data))
        for sample, document in zip(data.samples(pack).tolist(), data.documents(pack, epoch=1), strict=True)
        if len(document) == 1
    }
    assert later and later != set(dropped), "another epoch drops other captions"


def test_each_epoch_trains_on_its_own_draw(uneven, monkeypatch):
    plan, release = open_plan(str(uneven / "toys"), "main"), open_release(str(uneven / "toys"), "tokens")
    data = PackedData(plan, release, seed=0)
    stored = data._pictures.row
    codes = {draw: np.full(stored(0)["n_tokens"], draw, "<u2").tobytes() for draw in range(3)}

    def three_draws(sample):
        joined = b"".join(codes.values())
        return {**stored(sample), "draws": 3, "input": joined, "target": joined}

    monkeypatch.setattr(data._pictures, "row", three_draws)
    drawn = [set(data.document(0, epoch=epoch)[-1].targets.tolist()) for epoch in range(5)]
    assert drawn == [{0}, {1}, {2}, {0}, {1}]


@pytest.mark.parametrize("count", [2, 6])
def test_a_step_holds_the_same_packs_for_any_number_of_workers(uneven, count):
    data = PackedData(open_plan(str(uneven / "toys"), "main"), open_release(str(uneven / "toys"), "tokens"), seed=3)
    order = [p for step in range(10 * len(data)) for p in data.packs_of(step, 1)]
    for epoch in range(4):  # every pack once per epoch, in another order each time
        assert sorted(order[epoch * len(data) : (epoch + 1) * len(data)]) == [(epoch, p) for p in range(len(data))]
    assert [p for _, p in order[: len(data)]] != [p for _, p in order[len(data) : 2 * len(data)]]
    for step in range(5):
        whole = data.packs_of(step, count)
        assert whole == order[step * count : (step + 1) * count]
        for workers in (1, 2):
            parts = [data.packs_of(step, count, rank, workers) for rank in range(workers)]
            assert [p for part in parts for p in part] == whole


def _one_step(rank: int, count: int, root: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if count > 1:
        dist.init_process_group("gloo", rank=rank, world_size=count)
    wanted = recipe(Path(root), output=f"workers{count}", steps=3, lr=1e-4, warmup=0, null_prompt=0.3)
    task = DecoderTask.open(wanted)
    shares = [(int((b.target_scale > 0).sum()), len(b.token_ids)) for r in (0, 1) for b in [task.batch(0, r, 2)]]
    assert shares[0] != shares[1], "the workers' shares of codes and text must differ for this test to say anything"
    train(task, wanted, {}, rank=rank, world=count, until=1)
    if count > 1:
        dist.destroy_process_group()


def _second_worker(root: str, port: int) -> None:
    _one_step(1, 2, root, port)
    os._exit(0)  # without the interpreter's farewell, in which a thread of gloo that still lets go of a tensor aborts


def test_one_process_and_two_workers_agree_after_a_step(uneven):
    _one_step(0, 1, str(uneven), 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = mp.get_context("spawn").Process(target=_second_worker, args=(str(uneven), port))
    other.start()
    _one_step(0, 2, str(uneven), port)
    other.join()
    assert other.exitcode == 0
    folders = [uneven / f"workers{n}.run/checkpoints/step-000000001" for n in (1, 2)]
    one, two = (load_file(folder / checkpoint.OPTIMIZER) for folder in folders)
    means = [name for name in one if name.startswith("exp_avg.")]  # after one step: the gradient times 1 - beta
    assert len(means) == len(list(DecoderTask.open(recipe(uneven)).build().parameters()))
    assert {n for n in means if (one[n] - two[n]).norm() > 1e-5 * one[n].norm()} == set()
    assert all(one[name].norm() > 0 for name in means if "length_proj" not in name)
    one, two = (load_file(folder / checkpoint.MODEL) for folder in folders)
    fresh = DecoderTask.open(recipe(uneven)).build().state_dict()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    assert max(float((one[name] - fresh[name]).abs().max()) for name in one) > 5e-5, "the step moved the parameters"
    lines = [[x for x in read(uneven / f"workers{n}.run") if "loss" in x] for n in (1, 2)]
    assert lines[0][0]["loss"] == pytest.approx(lines[1][0]["loss"], rel=1e-6)
    assert lines[0][0]["scale_2"] == pytest.approx(lines[1][0]["scale_2"], rel=1e-6)


def test_captions_of_another_vocabulary_are_refused_at_the_first_batch(tmp_path):
    world(tmp_path, vocabulary="digest of a tokenizer.json")
    task = DecoderTask.open(recipe(tmp_path, model={"text_vocab": 64}))
    with pytest.raises(UserError, match=r"text ids span(.|\n)*model\.text_vocab"):
        task.batch(0)


def test_code_vectors_start_as_the_tokenizers_codebook(uneven):
    model = DecoderTask.open(recipe(uneven)).build()
    assert torch.equal(model.code_embed.weight, Tokenizer.load(uneven / "tokenizer").codebook())


def test_golden_losses_and_the_first_one_restated(uneven):
    wanted = recipe(uneven, output="golden", steps=3, warmup=0, lr=1e-3, execution={"log_every": 1})
    task = DecoderTask.open(wanted)
    model = task.build()
    documents = [d for epoch, pack in task.data.packs_of(0, 2) for d in task.data.documents(pack, epoch)]
    with torch.no_grad():
        logs = model.logits(task.batch(0)).double().log_softmax(-1)
    start, total, count = 0, 0.0, 0
    for text, picture in documents:
        sizes = [h * w for h, w in picture.grids]
        weights = np.repeat([size**-wanted.alpha for size in sizes], sizes)
        first = start + len(text.ids)  # <boi> predicts the code of scale 1, each input cell its own code
        rows = torch.arange(first, first + len(weights))
        losses = -logs[rows, torch.from_numpy(picture.targets) + wanted.model.text_vocab + 2]
        total += float(losses @ torch.from_numpy(weights)) * len(weights) / weights.sum()
        count += len(weights)
        start = first + len(weights) + 1
    assert start == len(logs)
    train(task, wanted, {})
    losses = [line["loss"] for line in read(wanted.run_folder) if "loss" in line]
    assert losses[0] == pytest.approx(total / count, rel=1e-5)
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-4), "the same recipe trains otherwise: bump CODE_VERSION"


def test_of_two_launches_at_once_the_second_is_refused_and_names_the_holder(tmp_path):
    wanted = recipe(world(tmp_path), steps=150, execution={"log_every": 1})
    refusals = []

    def again(line: dict) -> None:
        if not refusals:
            with pytest.raises(LeaseHeld) as caught:
                launch(wanted)
            refusals.append(str(caught.value))

    assert launch(wanted, on_line=again)["state"] == "trained"
    assert f"process {os.getpid()}" in refusals[0] and f"nextloom train {wanted.output}" in refusals[0]
    assert launch(wanted)["state"] == "fresh"


def test_a_receipt_says_fresh_for_the_model_it_was_written_for_and_no_other(tmp_path, monkeypatch):
    first = recipe(world(tmp_path), steps=2)
    launch(first)
    second = recipe(tmp_path, steps=2, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("nextloom.train.work.read_metrics", lambda folder: 1 / 0)  # killed after the swap
        with pytest.raises(ZeroDivisionError):
            launch(second)
    with pytest.raises(UserError, match="seed 1 -> 0"):
        inspect(first)
    (first.run_folder / "run.json").rename(tmp_path / "run.json")
    with pytest.raises(UserError, match="seed 1 -> 0"):  # the receipt is the first one's, the model the second's
        inspect(first)
    (tmp_path / "run.json").rename(first.run_folder / "run.json")
    assert inspect(second).state == "resume"
    assert launch(second)["state"] == "trained" and inspect(second).state == "fresh"
    weights = Path(second.output, "model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert inspect(second).cause == "the output is gone or was changed"
    for fresh in (False, True):
        with pytest.raises(UserError, match=r"model\.safetensors; it would be replaced(.|\n)*name another output"):
            launch(second, fresh=fresh)
    assert weights.read_bytes() == content[:-1] + bytes([content[-1] ^ 1]), "somebody's work is not thrown away"


def test_an_unfinished_repetition_is_resumed_and_not_taken_for_the_finished_one(tmp_path, monkeypatch):
    wanted = recipe(world(tmp_path), steps=2)
    launch(wanted)
    with monkeypatch.context() as patch:
        patch.setattr(DecoderTask, "batch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            launch(wanted, fresh=True)
    assert inspect(wanted).state == "resume"


def tokenizer_recipe(root: Path, **fields) -> TokenizerRecipe:
    data = {"train": "tokenizer", "output": "trained", "dataset": "toys", "release": "tokens", "scales": 4, "batch": 4}
    data |= {"steps": 6, "warmup": 1, "tokenizer": TOKENIZER.model_dump(mode="json"), **fields}
    data["execution"] = {"workers": 0, "threads": 1, "checkpoint_every": 2}
    return recipes.build(data, root=str(root))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_tokenizer_training_ends_with_the_same_bits(tmp_path, monkeypatch, precision):
    world(tmp_path, painted=True)
    alone, stopped = (tokenizer_recipe(tmp_path, output=name, precision=precision) for name in ("alone", "stopped"))
    assert launch(alone)["steps"] == 6
    batch = TokenizerTask.batch
    with monkeypatch.context() as patch:
        patch.setattr(
            TokenizerTask, "batch", lambda self, step, *rest: 1 / 0 if step == 5 else batch(self, step, *rest)
        )
        with pytest.raises(ZeroDivisionError):
            launch(stopped)
    torch.manual_seed(99)
    assert inspect(stopped).cause == "4 of 6 steps done"
    assert launch(stopped)["state"] == "trained"
    assert all((Path(alone.output) / n).read_bytes() == (Path(stopped.output) / n).read_bytes() for n in FILES)
    assert launch(stopped)["state"] == "fresh"
    for name in ("DECODE_VERSION", "RESIZE_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(pixels, name, "another")
            assert inspect(stopped).state == "stale" and "another" in inspect(stopped).cause
    with monkeypatch.context() as patch:
        patch.setattr("nextloom.train.tokenizer.inputs.teacher_identity", lambda: {"weights": "another"})
        assert "inputs.teacher.weights" in inspect(stopped).cause


def test_a_picture_that_changed_or_vanished_since_the_release_is_named(tmp_path):
    world(tmp_path, painted=True)
    path = tmp_path / "toys-pictures" / "3.png"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"3\.png: key3 of release tokens-0001 gives no picture(.|\n)*nextloom release"):
        launch(tokenizer_recipe(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=r"key3 of release tokens-0001(.|\n)*No such file"):
        launch(tokenizer_recipe(tmp_path))


def test_scales_are_dropped_until_the_share_of_steps_that_the_recipe_says(tmp_path):
    wanted = tokenizer_recipe(world(tmp_path), drop=0.5, drop_until=0.5)
    task = TokenizerTask(wanted, [np.zeros((32, 32, 3), np.uint8)])
    model, seen = task.build(), []
    model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[1])))
    for step in range(6):
        task.loss(model, task.batch(step), step)
    whole = task.grids(20)
    assert [len(grids) for grids in seen] == [3, 3, 3, 4, 4, 4]  # floor(0.5 * 3) of the scales after the first go
    assert all(grids[0] == (1, 1) and set(grids) < set(whole) for grids in seen[:3]) and len(set(seen[:3])) > 1
    assert set(seen[3:]) == {whole}
    assert TokenizerRecipe.model_fields["drop_until"].default == 1.0, "published: every step drops"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_value_error_of_a_worker_is_kept_for_the_driver_and_not_tried_again(tmp_path, monkeypatch, workers):
    wanted = recipe(world(tmp_path), execution={"workers": workers})
    wanted.run_folder.mkdir()
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: workers)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    calls = []

    def work(*_, **__) -> None:
        calls.append(1)
        raise ValueError("no such thing")

    monkeypatch.setattr(on_ray, "work", work)
    with pytest.raises(ValueError) if workers > 1 else nullcontext():  # others may wait for this one
        on_ray._worker({"recipe": wanted, "identity": {}})
    on_ray._worker({"recipe": wanted, "identity": {}})
    assert len(calls) == 1
    assert "no such thing" in json.loads((wanted.run_folder / "failure.json").read_text())["what"]


@pytest.mark.proof
@pytest.mark.usefixtures("ray_local")
def test_on_ray_a_killed_worker_resumes_and_ends_with_the_same_weights(tmp_path):
    root = world(tmp_path)
    execution = {"checkpoint_every": 20, "keep": 2, "log_every": 1}
    alone = recipe(root, output="alone", steps=300, execution={**execution, "workers": 0})
    killed = recipe(root, output="killed", steps=300, execution={**execution, "workers": 1})
    assert launch(alone)["steps"] == 300
    struck = threading.Event()

    def strike(line: dict) -> None:
        if line.get("step", 0) >= 22 and not struck.is_set() and "event" not in line:
            struck.set()
            os.kill(next(x["pid"] for x in read(killed.run_folder) if x.get("event") == "start"), signal.SIGKILL)

    summary = launch(killed, on_line=strike)
    starts = [line["step"] for line in read(killed.run_folder) if line.get("event") == "start"]
    assert struck.is_set() and len(starts) == 2 and starts[0] == 0 and starts[1] >= 20, starts
    assert [line["step"] for line in read(killed.run_folder) if "event" not in line] == list(range(1, 301))
    one, two = (load_file(Path(r.output) / "model.safetensors") for r in (alone, killed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert summary["steps"] == 300


@pytest.mark.usefixtures("ray_local")
@pytest.mark.proof
def test_a_loss_that_is_not_finite_stops_at_once_and_says_what_to_do(tmp_path):
    wanted = recipe(world(tmp_path), steps=50, lr=1e30, warmup=0, execution={"workers": 1})
    with pytest.raises(UserError, match=r"the (loss|gradient's norm) of step \d+ is (nan|inf)(.|\n)*lower lr"):
        launch(wanted)
    assert len([line for line in read(wanted.run_folder) if line.get("event") == "start"]) == 1, "no restarts"
