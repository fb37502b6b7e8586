"""Start a training, or see that there is nothing to do: the driver's side, decided without ray or torch.

    <output>/                    the finished model, replaced as a whole
    <output>.run/run.json        the training that is under way; gone when it has finished
    <output>.run/receipt.json    the training that made the model: its identity, the model's digest, its figures
    <output>.run/lease/          the one launch that may write here
    <output>.run/checkpoints/, metrics.jsonl, tensorboard/, pictures/

A finished output is fresh when its receipt has the wanted identity and the output's own digest: a model that was
edited, or swapped in by a run that died before its receipt, is not. One with another identity is trained anew, and
keeps its model until the new one is there. An unfinished one is resumed if the identity is its own, else refused.
An output with a file that no receipt names is somebody's work, and refused whatever is asked (`nextloom.outputs`).
Trade-off: a plan hashes the finished model, once per change of the file and process.

The first SIGTERM or Ctrl-C lets the step end, writes a checkpoint and raises `Stopped`; see `train/stopping.py`.
"""

from __future__ import annotations

import json
import os
import signal
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
from nextloom.outputs import check_ours, check_place
from nextloom.store.lease import Lease
from nextloom.tokenize.tokenizer_config import digest as folder_digest
from nextloom.train.engine.folder import (
    CHECKPOINTS,
    CLEARING,
    RECEIPT,
    RUN,
    STOP,
    check_run_folder,
    is_ours,
    read,
    start_over,
    write,
)
from nextloom.train.engine.training import differences
from nextloom.train.inputs import inputs
from nextloom.train.on_ray import PATIENT, check_gpus, train_on_ray
from nextloom.train.recipe import TrainRecipe
from nextloom.train.stopping import Signals
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
    receipt, run = _own(folder / RECEIPT), _own(folder / RUN)
    if run is None:
        run = _lost_run(folder, receipt)
    elif run.get(CLEARING) or (receipt and receipt["start"] == run["start"]):
        run = None  # killed while it cleared away an older one; or after the receipt, before its own end was noted
    under_way = run and run["identity"] == identity
    same = receipt is not None and receipt["identity"] == identity
    if receipt and same and not under_way and not fresh and receipt.get("output") == _output_digest(recipe):
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
        on_line: called with every new line of metrics while it trains, and every few seconds with one of `event`
            progress: step, and time in seconds.

    Returns:
        The summary: state (fresh or trained), steps, first_loss, last_loss, last (all figures of the last step),
        evaluation, seconds in steps, counted (codes or pictures that were learnt from) and per_second.

    Raises:
        LeaseHeld: another launch trains into this output; names it.
        UserError: as `inspect` and `check_output`, or what stopped the training.
        Stopped: SIGTERM or Ctrl-C, after a checkpoint.
    """
    folder = recipe.run_folder
    if inspect(recipe, fresh=fresh).state == "fresh":
        return {"state": "fresh", **read(folder / RECEIPT)["summary"]}
    check_output(recipe)
    with Lease(Folder(str(folder)), f"nextloom train {recipe.output}", f"rm -r {folder}/lease"), Signals() as signals:
        state = inspect(recipe, fresh=fresh)  # again: another launch may have ended just now
        if state.state == "fresh":
            return {"state": "fresh", **read(folder / RECEIPT)["summary"]}
        check_output(recipe)
        try:
            with _following(folder, on_line):
                _train(recipe, state, address, signals)
        except SystemExit:  # a signal in the moment in which Ray's own handler was in place
            signals.number = signals.number or signal.SIGTERM
        if (folder / RUN).exists():
            raise signals.stopped(_steps_done(folder), recipe.steps)
        return {"state": "trained", **read(folder / RECEIPT)["summary"]}


def _train(recipe: TrainRecipe, state: State, address: str | None, signals: Signals) -> None:
    """Start over or resume, in this process or on Ray Train."""
    folder, device, execution = recipe.run_folder, "cpu", recipe.execution
    if execution.use_gpu and execution.workers:
        check_gpus(execution.workers, address)
    elif execution.use_gpu:
        device = cuda("execution.use_gpu")
    (folder / STOP).unlink(missing_ok=True)
    if state.state != "resume":
        start_over(folder, state.identity)
    elif read(folder / RUN) is None:
        write(folder / RUN, {"identity": state.identity, "start": uuid.uuid4().hex})
    if execution.workers:
        train_on_ray(recipe, state.identity, address, signals)
        return
    for name, value in PATIENT.items():
        os.environ.setdefault(name, value)
    work(recipe, state.identity, device=device, stop=signals.asked)


def check_output(recipe: TrainRecipe) -> None:
    """Refuse an output that is no place for one, or where something lies that no training of ours left.

    Raises:
        UserError: says what is in the way; nothing was written.
    """
    check_place(recipe.output, recipe.reads())
    check_run_folder(recipe.run_folder)
    documents = [read(recipe.run_folder / name) or {} for name in (RECEIPT, RUN)]
    check_ours(recipe.output, *(document.get("files", {}) for document in documents), maker="nextloom train")


def _own(path: Path) -> dict[str, Any] | None:
    """A document of ours; another one is passed over here, and refused by `check_output`."""
    document = read(path)
    return document if is_ours(document) and "start" in document else None


def _lost_run(folder: Path, receipt: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What `RUN` said, out of the newest checkpoint, where that is of a training that has not finished."""
    for path in sorted((folder / CHECKPOINTS).glob("step-*/state.json"))[-1:]:
        identity = (read(path) or {}).get("identity")
        if receipt is None or receipt["identity"] != identity:
            return {"identity": identity, "start": ""}
    return None


@contextmanager
def _following(folder: Path, on_line: Callable[[dict[str, Any]], None] | None) -> Iterator[None]:
    """Hand every line of metrics that is written inside the block to `on_line`."""
    if on_line is None:
        yield
        return
    from nextloom.train.engine.tracker import read as read_metrics
    from nextloom.train.engine.tracker import read_beat

    done = threading.Event()
    told = {json.dumps(line) for line in read_metrics(folder)}
    beat = read_beat(folder)

    def follow() -> None:
        nonlocal beat
        while True:
            last = done.wait(0.5)
            for line in read_metrics(folder):
                text = json.dumps(line)
                if text not in told:
                    told.add(text)
                    on_line(line)
            if (now := read_beat(folder)) != beat and now:
                beat = now
                on_line({"event": "progress", **now})
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
    return f"{_steps_done(folder)} of {recipe.steps} steps done"


def _steps_done(folder: Path) -> int:
    """Steps that the newest checkpoint holds."""
    names = [path.name.removeprefix("step-") for path in (folder / CHECKPOINTS).glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)
