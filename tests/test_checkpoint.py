"""Checkpoints: complete or refused, and a stopped run ends with the bits of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nextloom.errors import UserError
from nextloom.train.decoder.recipe import DecoderRecipe
from nextloom.train.decoder.task import DecoderTask
from nextloom.train.engine import checkpoint, loop
from nextloom.train.engine.checksums import CHECKSUMS, seal
from nextloom.train.engine.folder import CHECKPOINTS
from nextloom.train.engine.loop import make_optimizer, train
from nextloom.train.engine.tracker import read
from test_training import recipe, world

STEPS = 8
IDENTITY = {"name": "test", "inputs": {"tokenizer": "aaa"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return world(tmp_path_factory.mktemp("checkpoint"))


def small(root: Path, output: str, **execution) -> DecoderRecipe:
    return recipe(root, output=output, steps=STEPS, packs_per_step=1, execution={"checkpoint_every": 3, **execution})


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> tuple[dict[str, torch.Tensor], Path]:
    """Parameters of a run that nothing stopped, and its last checkpoint."""
    wanted = small(root, "undisturbed")
    model, _ = train(DecoderTask.open(wanted), wanted, IDENTITY)
    return model.state_dict(), checkpoint.saved(wanted.run_folder)[-1]


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 7])
def test_stopped_at_any_step_and_resumed_gives_the_same_bits(root, undisturbed, stop):
    wanted = small(root, f"stop{stop}")
    train(DecoderTask.open(wanted), wanted, IDENTITY, until=stop)
    torch.manual_seed(99)  # a resumed process has another state of its own
    model, progress = train(DecoderTask.open(wanted), wanted, IDENTITY)
    assert progress.cursor == STEPS
    assert all(torch.equal(value, undisturbed[0][name]) for name, value in model.state_dict().items())
    mine, theirs = (
        load_file(p / checkpoint.OPTIMIZER) for p in (checkpoint.saved(wanted.run_folder)[-1], undisturbed[1])
    )
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_after_sigkill_the_run_goes_on_with_the_same_bits(root, undisturbed):
    wanted = small(root, "killed", checkpoint_every=1, log_every=1)
    code = (
        "import sys, time; from nextloom.train.decoder.recipe import DecoderRecipe\n"
        "from nextloom.train.engine.loop import train\n"
        "from nextloom.train.decoder.task import DecoderTask\n"
        "class Slow(DecoderTask):\n"
        "    def batch(self, step, rank=0, world=1):\n"
        "        time.sleep(0.25 if step > 2 else 0); return super().batch(step, rank, world)\n"
        "recipe = DecoderRecipe.model_validate_json(sys.argv[1])\n"
        f"train(Slow.open(recipe), recipe, {IDENTITY!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, wanted.model_dump_json()])
    deadline = time.monotonic() + 60
    while len([x for x in read(wanted.run_folder) if "loss" in x]) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    part = wanted.run_folder / CHECKPOINTS / f".{uuid.uuid4().hex}"  # as if it had died while writing one
    part.mkdir()
    checkpoint.clean(wanted.run_folder)
    assert not part.exists()
    model, _ = train(DecoderTask.open(wanted), wanted, IDENTITY)
    starts = [line["step"] for line in read(wanted.run_folder) if line.get("event") == "start"]
    assert starts[0] == 0 and 3 <= starts[1] < STEPS
    assert all(torch.equal(value, undisturbed[0][name]) for name, value in model.state_dict().items())


def without_tensor(path: Path, file: str, name: str) -> None:
    tensors = load_file(path / file)
    del tensors[name]
    save_file(tensors, path / file)


def without_state(path: Path, name: str, inner: str | None = None) -> None:
    state = json.loads((path / checkpoint.STATE).read_text())
    del (state[name][0] if inner else state)[inner or name]
    (path / checkpoint.STATE).write_text(json.dumps(state))


DAMAGE = {
    "its parameters": lambda p: (p / checkpoint.MODEL).unlink(),
    "1 of its parameters, the first is norm.weight": lambda p: without_tensor(p, checkpoint.MODEL, "norm.weight"),
    "its optimiser moments": lambda p: (p / checkpoint.OPTIMIZER).unlink(),
    "1 of its optimiser moments, the first is exp_avg_sq.norm.weight": lambda p: without_tensor(
        p, checkpoint.OPTIMIZER, "exp_avg_sq.norm.weight"
    ),
    "its state": lambda p: (p / checkpoint.STATE).write_text('{"lr_st'),
    "lr_step": lambda p: without_state(p, "lr_step"),
    "cursor": lambda p: without_state(p, "cursor"),
    "rng ": lambda p: without_state(p, "rng"),
    "rng.torch of worker 0": lambda p: without_state(p, "rng", "torch"),
    "identity": lambda p: without_state(p, "identity"),
}


@pytest.mark.parametrize("part", DAMAGE)
def test_a_checkpoint_that_lacks_a_part_is_refused_by_name(root, undisturbed, tmp_path, part):
    path = tmp_path / "step-000000008"
    shutil.copytree(undisturbed[1], path)
    DAMAGE[part](path)
    seal(path)  # as a version that knows no such part would have written it
    wanted = small(root, "refused")
    model = DecoderTask.open(wanted).build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model.parameters(), wanted)
    with pytest.raises(UserError, match=f"lacks {part}") as caught:
        checkpoint.load(path, model, optimizer, IDENTITY)
    assert "--fresh" in str(caught.value) and str(path) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and not optimizer.state


def flip(path: Path, byte: int) -> None:
    """Turn one bit over."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


HARM = {
    f"{checkpoint.MODEL} is damaged": lambda p: flip(p / checkpoint.MODEL, -5),
    f"{checkpoint.OPTIMIZER} is damaged": lambda p: flip(p / checkpoint.OPTIMIZER, 5000),
    f"{checkpoint.STATE} is damaged": lambda p: flip(p / checkpoint.STATE, 12),
    f"{checkpoint.MODEL} has 40 bytes instead of ": lambda p: os.truncate(p / checkpoint.MODEL, 40),
    f"{checkpoint.OPTIMIZER} has 0 bytes instead of ": lambda p: os.truncate(p / checkpoint.OPTIMIZER, 0),
    f"{checkpoint.OPTIMIZER} is missing": lambda p: (p / checkpoint.OPTIMIZER).unlink(),
    "notes.txt is no file of this checkpoint": lambda p: (p / "notes.txt").write_text("x"),
    f"{CHECKSUMS} is damaged: it does not fit": lambda p: flip(p / CHECKSUMS, 70),
    f"{CHECKSUMS} is damaged: it cannot be read": lambda p: os.truncate(p / CHECKSUMS, 30),
    f"lacks its receipt ({CHECKSUMS})": lambda p: (p / CHECKSUMS).unlink(),
}


@pytest.mark.parametrize("what", HARM)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_offered(root, undisturbed, tmp_path, what):
    wanted = small(root, str(tmp_path / "run"))
    shutil.copytree(undisturbed[1].parent.parent, wanted.run_folder)
    before, newest = checkpoint.saved(wanted.run_folder)
    HARM[what](newest)
    with pytest.raises(UserError) as caught:
        train(DecoderTask.open(wanted), wanted, IDENTITY)
    text = str(caught.value)
    assert text.startswith(f"{newest}: ") and what in text
    command, _, offer = text.partition("next: ")[2].partition(", and ")
    assert offer.startswith(f"the same command goes on from {before.name} (6 steps done)")
    subprocess.run(command, shell=True, check=True)
    model, _ = train(DecoderTask.open(wanted), wanted, IDENTITY)
    assert all(torch.equal(value, undisturbed[0][name]) for name, value in model.state_dict().items())


def test_of_two_damaged_checkpoints_none_is_offered_and_of_three_the_whole_one(root, undisturbed, tmp_path):
    wanted = small(root, str(tmp_path / "run"))
    shutil.copytree(undisturbed[1].parent.parent, wanted.run_folder)
    first, second = checkpoint.saved(wanted.run_folder)
    for path in (first, second):
        flip(path / checkpoint.MODEL, -5)
    with pytest.raises(UserError, match="no whole checkpoint is before it: start over with --fresh"):
        train(DecoderTask.open(wanted), wanted, IDENTITY)
    earlier = first.with_name("step-000000003")
    shutil.copytree(first, earlier)
    seal(earlier)
    with pytest.raises(UserError, match=rf"rm -r {first} {second}, and the same command goes on from {earlier.name}"):
        train(DecoderTask.open(wanted), wanted, IDENTITY)


def test_a_checkpoint_counts_when_its_files_are_on_disk(root, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda n: (events.append(os.readlink(f"/proc/self/fd/{n}")), fsync(n))[1])
    monkeypatch.setattr(Path, "rename", lambda p, to: (events.append(f"rename to {Path(to).name}"), rename(p, to))[1])
    wanted = small(root, "synced")
    train(DecoderTask.open(wanted), wanted, IDENTITY, until=1)
    done = events[: events.index("rename to step-000000001")]
    names = {Path(path).name for path in done}
    assert {checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE, CHECKSUMS} <= names
    assert events[-1] == str(wanted.run_folder / CHECKPOINTS), "the name itself"


def test_a_checkpoint_by_the_clock(root, monkeypatch):
    wanted = small(root, "minutes", checkpoint_every=1000, checkpoint_minutes=10, keep=99)
    now = iter(range(0, 10**6, 100))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(now)))
    train(DecoderTask.open(wanted), wanted, IDENTITY)
    assert len(checkpoint.saved(wanted.run_folder)) > 1


def test_a_checkpoint_of_another_training_is_refused(root, undisturbed):
    wanted = small(root, "refused")
    model = DecoderTask.open(wanted).build()
    other = {**IDENTITY, "inputs": {"tokenizer": "bbb"}}
    with pytest.raises(UserError, match=r"another training: inputs.tokenizer aaa -> bbb(.|\n)*--fresh"):
        checkpoint.load(undisturbed[1], model, make_optimizer(model.parameters(), wanted), other)


def test_only_the_newest_are_kept(root):
    wanted = small(root, "kept", checkpoint_every=1, keep=3)
    train(DecoderTask.open(wanted), wanted, IDENTITY)
    assert [p.name for p in checkpoint.saved(wanted.run_folder)] == [f"step-{n:09d}" for n in (6, 7, 8)]


class Toy:
    """A task of two layers, whose loss is a function of the parameters."""

    def __init__(self, loss: Callable[[nn.Module], tuple[torch.Tensor, int]]) -> None:
        self._loss = loss

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))

    def batch(self, step, rank=0, world=1):
        return None

    def loss(self, model, batch, step):
        return *self._loss(model), {}


def everything(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.flatten() for p in model.parameters()])


def test_the_random_state_is_restored(root):
    def drawn(model):
        values = everything(model)
        luck = torch.rand(len(values)) + torch.linspace(0, float(np.random.random()), len(values))
        luck[::2] += random.random()
        return (values - luck).square().sum(), 1

    def resumed(output: str, edit: Callable[[dict], None]) -> torch.Tensor:
        wanted = small(root, output)
        train(Toy(drawn), wanted, IDENTITY, until=4)
        path = checkpoint.saved(wanted.run_folder)[-1] / checkpoint.STATE
        state = json.loads(path.read_text())
        edit(state["rng"][0])
        path.write_text(json.dumps(state))
        seal(path.parent)
        torch.manual_seed(7), np.random.seed(7), random.seed(7)  # as another process would have it
        return everything(train(Toy(drawn), wanted, IDENTITY)[0])

    whole = everything(train(Toy(drawn), small(root, "luck"), IDENTITY)[0])
    assert torch.equal(resumed("resumed luck", lambda rng: None), whole)
    torch.manual_seed(8), np.random.seed(8), random.seed(8)
    other = checkpoint.rng_state()
    for name in other:
        changed = resumed(f"other {name}", lambda rng, name=name: rng.update({name: other[name]}))
        assert not torch.equal(changed, whole), f"the state of {name} decides"


def test_a_gradient_that_is_not_finite_changes_no_parameter(root):
    def steep(model):  # sqrt has a finite value and an infinite slope at 0
        return (everything(model)[0] - everything(model)[0].detach()).sqrt(), 1

    wanted = small(root, "steep")
    with pytest.raises(UserError, match=r"the gradient's norm of step 1 is (inf|nan)(.|\n)*lower lr(.|\n)*--fresh"):
        train(Toy(steep), wanted, IDENTITY)
    assert not checkpoint.saved(wanted.run_folder)


def test_a_step_without_anything_to_learn_is_refused(root):
    with pytest.raises(UserError, match="step 1 holds nothing to learn from"):
        train(Toy(lambda model: (everything(model).sum() * 0, 0)), small(root, "empty"), IDENTITY)


def test_gradients_are_clipped(root):
    wanted = small(root, "clipped")
    train(Toy(lambda model: (1e3 * everything(model).sum(), 1)), wanted, IDENTITY, until=1)
    moments = load_file(checkpoint.saved(wanted.run_folder)[-1] / checkpoint.OPTIMIZER)
    means = torch.cat([value.flatten() for name, value in moments.items() if name.startswith("exp_avg.")])
    assert float(means.norm()) == pytest.approx(0.1 * wanted.clip, rel=1e-4)  # (1 - beta1) * gradient
    assert [line["norm"] for line in read(wanted.run_folder) if "loss" in line] == [pytest.approx(1e3 * 24**0.5)]


def test_weight_decay_is_on_matrices_alone(root):
    wanted = recipe(root, output="decay", steps=1, warmup=0, weight_decay=0.5, lr=0.1)
    task = Toy(lambda model: (everything(model).sum() * 0, 1))
    before = {name: value.clone() for name, value in task.build().state_dict().items()}
    after = train(task, wanted, IDENTITY)[0].state_dict()
    assert torch.allclose(after.pop("0.weight"), before["0.weight"] * 0.95)
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_workers_that_see_different_checkpoints_are_refused(root, undisturbed, monkeypatch):
    def gather(every: list, mine: list[str]) -> None:
        every[:] = [mine, []]

    monkeypatch.setattr(loop.dist, "all_gather_object", gather)
    folder = undisturbed[1].parent.parent
    with pytest.raises(UserError, match=rf"different newest checkpoints: step-{STEPS:09d}, none(.|\n)*share"):
        loop._same_checkpoint(folder, 2)
