"""A training that a signal stops: it ends after a step, with a checkpoint, one line and the signal's exit code."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from nextloom.errors import Stopped
from nextloom.tokenize.tokenizer_config import digest
from nextloom.train.decoder.task import DecoderTask
from nextloom.train.engine import checkpoint
from nextloom.train.engine.tracker import read
from nextloom.train.launch import inspect, launch
from test_training import recipe, world

STEPS = 40
RAYS = "logging.cc:"
"""In a line of Ray's own at its start."""
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return world(tmp_path_factory.mktemp("stopping"))


def job(root: Path, output: str, packs: int = 1, **execution):
    return recipe(
        root, output=output, steps=STEPS, packs_per_step=packs, execution={"checkpoint_every": 7, **execution}
    )


@pytest.fixture(scope="module")
def undisturbed(root) -> str:
    """Digest of the model of a training that nothing stopped."""
    wanted = job(root, "undisturbed")
    launch(wanted)
    return digest(wanted.output)


@pytest.mark.parametrize("number", CODES)
def test_stopped_at_a_random_step_and_resumed_it_ends_with_the_same_digest(root, undisturbed, monkeypatch, number):
    wanted, luck = job(root, f"stopped{number}"), random.Random(int(number))
    before = signal.getsignal(number)
    batch, done = DecoderTask.batch, 0
    for _ in range(3):  # the third stop may come while it is stopping for the last step
        at = luck.randrange(done, STEPS)

        def struck(self, step, *rest, at=at):
            if step == at:
                os.kill(os.getpid(), number)
            return batch(self, step, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(DecoderTask, "batch", struck)
            with pytest.raises(Stopped) as caught:
                launch(wanted)
        assert caught.value.code == CODES[number]
        done = int(re.search(r"\d+", str(caught.value))[0]) if at + 1 < STEPS else STEPS
        assert done == at + 1, "the step in work is finished, and no other is begun"
        assert checkpoint.saved(wanted.run_folder)[-1].name == f"step-{done:09d}"
        assert inspect(wanted).state == "resume"
        assert signal.getsignal(number) == before
        torch.manual_seed(done)
        if done == STEPS:
            break
    assert launch(wanted)["state"] == "trained" and digest(wanted.output) == undisturbed
    assert launch(wanted)["state"] == "fresh"


def test_stopped_before_its_first_step_it_has_written_nothing_and_says_so(root, monkeypatch):
    wanted = job(root, "early")
    build = DecoderTask.build
    monkeypatch.setattr(DecoderTask, "build", lambda self: (os.kill(os.getpid(), signal.SIGTERM), build(self))[1])
    with pytest.raises(Stopped, match="stopped before the first step; run the same command again"):
        launch(wanted)
    assert not checkpoint.saved(wanted.run_folder) and inspect(wanted).state == "resume"


@pytest.mark.usefixtures("ray_local")
def test_on_ray_too(root):
    fields, struck, at = {"steps": 150, "packs_per_step": 1}, [], random.Random(7).randrange(2, 20)
    execution = {"log_every": 1, "threads": 1}
    alone = recipe(root, output="alone", **fields, execution={**execution, "workers": 0})
    wanted = recipe(root, output="on ray", **fields, execution={**execution, "workers": 1})
    launch(alone)

    def strike(line: dict) -> None:
        if line.get("step", 0) >= at and "event" not in line and not struck:
            struck.append(line["step"])
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as caught:
        launch(wanted, on_line=strike)
    assert caught.value.code == 143
    assert at <= int(re.match(r"stopped after step (\d+) of 150, which is in a checkpoint", str(caught.value))[1]) < 150
    assert len([line for line in read(wanted.run_folder) if line.get("event") == "start"]) == 1, "no worker restarted"
    here = recipe(root, output="on ray", **fields, execution={**execution, "workers": 0})
    assert launch(here)["state"] == "trained" and digest(here.output) == digest(alone.output)


def command(root: Path, output: str, **execution) -> list[str]:
    """A training of many steps, as one types it."""
    wanted = job(root, output, packs=execution.get("workers") or 1, log_every=1, **execution)
    fields = {**wanted.model_dump(mode="json"), "steps": 100_000}
    (root / f"{output}.yaml").write_text(yaml.safe_dump(fields))
    return [sys.executable, "-m", "nextloom", "train", str(root / f"{output}.yaml"), "--root", str(root)]


def strike(command: list[str], folder: Path, numbers: list[int], at: int, wait: float) -> tuple[int, list[str]]:
    """Send signals once step `at` is logged; the exit code, and what stderr says beside the steps."""
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not any(line.get("step", 0) >= at for line in read(folder)) and time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.05)
    for number in numbers:
        run.send_signal(number)
        time.sleep(wait)
    _, err = run.communicate(timeout=60)
    return run.returncode, [line for line in err.splitlines() if not line.startswith("  step ") and RAYS not in line]


def test_the_command_says_one_line_and_ends_with_the_code_of_the_signal(root):
    code, lines = strike(command(root, "typed"), root / "typed.run", [signal.SIGTERM], 3, 0)
    assert code == 143 and len(lines) == 1, lines
    step = int(re.match(r"stopped after step ([\d,]+) of 100,000, which is in", lines[0])[1].replace(",", ""))
    assert checkpoint.saved(root / "typed.run")[-1].name == f"step-{step:09d}"


SLOW = """
import os, signal, sys, time
from pathlib import Path
from nextloom.cli import main
from nextloom.train.decoder.task import DecoderTask
def batch(self, step, *rest):
    print("in a step", flush=True)
    while True:
        time.sleep(0.01)
DecoderTask.batch = batch
sys.argv = ["nextloom", *sys.argv[1:]]
main()
"""


def test_a_second_signal_ends_the_process_at_once(root):
    typed = command(root, "twice")[3:]
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW, *typed], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "in a step\n"
    run.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert run.poll() is None, "the first one waits for the step"
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=5)
    assert run.returncode == 143
    assert err.splitlines() == ["stopped at once; run the same command again to go on from the newest checkpoint"]


@pytest.mark.proof
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("workers", [1, 2])
def test_on_ray_the_command_says_one_line_too(root, number, workers):
    """About 40 s each: a Ray of its own, as a terminal has it."""
    output = f"ray{number}{workers}"
    typed = command(root, output, workers=workers)
    code, lines = strike(typed, root / f"{output}.run", [number], random.Random(workers).randrange(2, 9), 0)
    assert code == CODES[number] and len(lines) == 1, lines
    assert re.match(r"stopped after step [\d,]+ of 100,000, which is in a checkpoint; run the same", lines[0])


@pytest.mark.proof
def test_on_ray_a_second_signal_leaves_no_process(root):
    """About 40 s."""
    typed = command(root, "rayed", workers=1)
    code, lines = strike(typed, root / "rayed.run", [signal.SIGTERM, signal.SIGTERM], 2, 0.01)
    assert code == 143 and len(lines) == 1, lines
    deadline = time.monotonic() + 30
    while (left := _workers(root / "rayed.run")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


def _workers(folder: Path) -> list[int]:
    pids = [line["pid"] for line in read(folder) if line.get("event") == "start"]
    return [pid for pid in pids if Path(f"/proc/{pid}/status").exists() and "Z (" not in _status(pid)]


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
