"""Start a training, or see that there is nothing to do: the driver's side, decided without ray or torch.

    <output>/                    the finished model, replaced as a whole
    <output>.run/run.json        the training that is under way; gone when it has finished
    <output>.run/receipt.json    the training that made the model: its identity, the model's digest, its figures
    <output>.run/lease/          the one launch that may write here
    <output>.run/checkpoints/, metrics.jsonl, tensorboard/, pictures/

A finished output is fresh when its receipt has the wanted identity and the output's own digest: a model that was
edited, or swapped in by a run that died before its receipt, is not. One with another identity is trained anew, and
keeps its model until the new one is there. An unfinished one is resumed if the identity is its own, else refused.
Price paid: a plan hashes the finished model, once per change of the file and process.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nextloom.documents import Folder
from nextloom.errors import UserError
from nextloom.gpu import cuda
from nextloom.io import is_uri
from nextloom.store.lease import Lease
from nextloom.tokenize.tokenizer_config import digest as folder_digest
from nextloom.train.engine.folder import RECEIPT, RUN, read, write
from nextloom.train.engine.training import differences
from nextloom.train.inputs import inputs
from nextloom.train.on_ray import PATIENT, check_gpus, train_on_ray
from nextloom.train.recipe import TrainRecipe
from nextloom.train.work import work


@dataclass(frozen=True)
class State:
    """What a launch would do."""

    state: Literal["fresh", "missing", "stale", "resume"]
    cause: str
    """Of stale: what differs from the finished training. Of resume: how far it is."""
    identity: Mapping[str, Any]


def inspect(recipe: TrainRecipe, *, fresh: bool = False) -> State:
    """Judge the output of a recipe; imports neither ray nor torch, writes nothing.

    Args:
        fresh: a finished training is to be done again, an unfinished one to be thrown away.

    Raises:
        UserError: the recipe's inputs are absent or do not fit each other, or the output holds another unfinished
            training.
    """
    if is_uri(recipe.output):
        raise UserError("must be a folder that every worker sees, not a URI", where="output")
    identity = {**recipe.identity(), "inputs": inputs(recipe)}
    folder = recipe.run_folder
    receipt, run = read(folder / RECEIPT), read(folder / RUN)
    if receipt and run and receipt["start"] == run["start"]:
        run = None  # killed after the receipt, before its own end was noted
    under_way = run and run["identity"] == identity
    same = receipt and receipt["identity"] == identity
    if same and not under_way and not fresh and receipt["output"] == _output_digest(recipe):
        return State("fresh", "", identity)
    if under_way and not fresh:
        return State("resume", _how_far(folder, recipe), identity)
    if run and not fresh:
        changes = ", ".join(differences(run["identity"], identity))
        raise UserError(
            f"an unfinished training of another recipe or data lies here: {changes}",
            where=str(folder),
            next="undo the change to go on with it, choose another output, or throw it away with --fresh",
        )
    if same:
        return State("stale", "asked for" if fresh else "the output is gone or was changed", identity)
    if receipt:
        return State("stale", ", ".join(differences(receipt["identity"], identity)), identity)
    return State("missing", "", identity)


def launch(
    recipe: TrainRecipe,
    *,
    fresh: bool = False,
    address: str | None = None,
    on_line: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train, resume, or do nothing.

    Args:
        recipe: what to train.
        fresh: throw away what the output holds of this or another training.
        address: of a Ray cluster; None starts a local one.
        on_line: called with every new line of metrics while it trains.

    Returns:
        The summary: state (fresh or trained), steps, first_loss, last_loss, last (all figures of the last step),
        evaluation, seconds in steps, counted (codes or pictures that were learnt from) and per_second.

    Raises:
        LeaseHeld: another launch trains into this output; names it.
        UserError: as `inspect`, or what stopped the training.
    """
    folder = recipe.run_folder
    if inspect(recipe, fresh=fresh).state == "fresh":
        return {"state": "fresh", **read(folder / RECEIPT)["summary"]}
    with Lease(Folder(str(folder)), f"nextloom train {recipe.output}"):
        state = inspect(recipe, fresh=fresh)  # again: another launch may have ended just now
        if state.state == "fresh":
            return {"state": "fresh", **read(folder / RECEIPT)["summary"]}
        device, execution = "cpu", recipe.execution
        if execution.use_gpu and execution.workers:
            check_gpus(execution.workers, address)
        elif execution.use_gpu:
            device = cuda("execution.use_gpu")
        if state.state != "resume":
            _start_over(folder, state.identity)
        with _following(folder, on_line):
            if recipe.execution.workers == 0:
                for name, value in PATIENT.items():
                    os.environ.setdefault(name, value)
                work(recipe, state.identity, device=device)
            else:
                train_on_ray(recipe, state.identity, address)
        return {"state": "trained", **read(folder / RECEIPT)["summary"]}


def _start_over(folder: Path, identity: Mapping[str, Any]) -> None:
    (folder / RUN).unlink(missing_ok=True)
    for name in ("checkpoints", "tensorboard", "pictures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    write(folder / RUN, {"identity": identity, "start": uuid.uuid4().hex})


@contextmanager
def _following(folder: Path, on_line: Callable[[dict[str, Any]], None] | None) -> Iterator[None]:
    """Hand every line of metrics that is written inside the block to `on_line`."""
    if on_line is None:
        yield
        return
    from nextloom.train.engine.tracker import read as read_metrics

    done = threading.Event()
    told = {json.dumps(line) for line in read_metrics(folder)}

    def follow() -> None:
        while True:
            last = done.wait(0.5)
            for line in read_metrics(folder):
                text = json.dumps(line)
                if text not in told:
                    told.add(text)
                    on_line(line)
            if last:
                return

    thread = threading.Thread(target=follow, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _output_digest(recipe: TrainRecipe) -> str | None:
    try:
        return folder_digest(recipe.output)
    except FileNotFoundError:
        return None


def _how_far(folder: Path, recipe: TrainRecipe) -> str:
    steps = sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    return f"{steps[-1] if steps else 0} of {recipe.steps} steps done"
