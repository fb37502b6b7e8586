"""Start a training, or see that there is nothing to do: the driver's side, decided without ray or torch.

    <output>/                    the finished model, replaced as a whole
    <output>.run/run.json        the training that is under way: its identity; gone when it has finished
    <output>.run/receipt.json    the training that made the model: its identity and its figures
    <output>.run/checkpoints/, metrics.jsonl, tensorboard/

A finished output whose receipt has the wanted identity is fresh. One with another identity is trained anew, and keeps
its model until the new one is there. An unfinished one is resumed if the identity is its own, else refused. Ray Train
starts the workers and restarts them when one dies; each start resumes from the newest checkpoint. The folder must be
one that every worker sees.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nextloom.errors import UserError
from nextloom.io import is_uri
from nextloom.op import digest
from nextloom.train.data import inputs
from nextloom.train.recipe import DecoderRecipe, TrainRecipe, differences

PATIENT = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait sleep. By default they spin, and on a machine that other processes share a step of two threads
took 10 s instead of 0.5 s. Read when torch is loaded."""

RUN, RECEIPT, FAILURE = "run.json", "receipt.json", "failure.json"


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
        fresh: an unfinished training of another identity is to be thrown away.

    Raises:
        UserError: the recipe's inputs are absent or do not fit each other, or the output holds another unfinished
            training.
    """
    if is_uri(recipe.output):
        raise UserError("must be a folder that every worker sees, not a URI", where="output")
    identity = {**recipe.identity(), "inputs": inputs(recipe)}
    folder = recipe.run_folder
    receipt, run = _read(folder / RECEIPT), _read(folder / RUN)
    if receipt and receipt["identity"] == identity and Path(recipe.output).is_dir() and not fresh:
        return State("fresh", "", identity)
    if receipt and run and receipt["identity"] == run["identity"]:
        run = None  # killed after the receipt, before its own end was noted
    if run and not fresh:
        if run["identity"] != identity:
            changes = ", ".join(differences(run["identity"], identity))
            raise UserError(
                f"an unfinished training of another recipe or data lies here: {changes}",
                where=str(folder),
                next="undo the change to go on with it, choose another output, or throw it away with --fresh",
            )
        return State("resume", _how_far(folder, recipe), identity)
    if receipt:
        return State("stale", ", ".join(differences(receipt["identity"], identity)) or "asked for", identity)
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
        UserError: as `inspect`, or what stopped the training.
    """
    state, folder = inspect(recipe, fresh=fresh), recipe.run_folder
    if state.state == "fresh":
        return {"state": "fresh", **_read(folder / RECEIPT)["summary"]}
    folder.mkdir(parents=True, exist_ok=True)
    if state.state != "resume":
        (folder / RUN).unlink(missing_ok=True)
        for name in ("checkpoints", "tensorboard"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        _write(folder / RUN, {"identity": state.identity})
    (folder / FAILURE).unlink(missing_ok=True)
    with _following(folder, on_line):
        if recipe.execution.workers == 0:
            for name, value in PATIENT.items():
                os.environ.setdefault(name, value)
            work(recipe, state.identity)
        else:
            _on_ray(recipe, state.identity, address)
    return {"state": "trained", **_read(folder / RECEIPT)["summary"]}


def make_task(recipe: TrainRecipe) -> Any:
    """The task of a recipe, its data opened."""
    if isinstance(recipe, DecoderRecipe):
        from nextloom.train.decoder import DecoderTask

        return DecoderTask.open(recipe)
    from nextloom import pixels
    from nextloom.io import fetch
    from nextloom.store.release import open_release
    from nextloom.train.tokenizer import TokenizerConfigRecipe, TokenizerTask

    release = open_release(recipe.dataset, recipe.release)
    pictures = [pixels.decode(fetch(uri)) for uri in release.rows()["uri"].to_pylist()]
    common = {name: getattr(recipe, name) for name in TokenizerConfigRecipe.model_fields if name != "bf16"}
    return TokenizerTask(TokenizerConfigRecipe(**common, bf16=recipe.precision == "bf16"), pictures)


def work(recipe: TrainRecipe, identity: Mapping[str, Any], *, rank: int = 0, world: int = 1) -> None:
    """One worker's part, from opening the data to (on the first worker) the saved model and the receipt."""
    from nextloom.train.checkpoint import clean
    from nextloom.train.loop import train

    if rank == 0:
        clean(recipe.run_folder)
    task = make_task(recipe)
    model, progress = train(task, recipe, identity, rank=rank, world=world)
    if rank == 0:
        _finish(recipe, task, model, identity, progress)


def _finish(recipe: TrainRecipe, task: Any, model: Any, identity: Mapping[str, Any], progress: Any) -> None:
    from nextloom.train.tracker import read

    folder, output = recipe.run_folder, Path(recipe.output)
    part, old = folder / "model.part", folder / "model.old"
    for path in (part, old):
        shutil.rmtree(path, ignore_errors=True)
    task.save(model, part)
    evaluation = dict(task.evaluate(model))
    if output.exists():
        output.rename(old)
    part.rename(output)
    shutil.rmtree(old, ignore_errors=True)
    steps = [line for line in read(folder) if "event" not in line]
    summary = {
        "steps": steps[-1]["step"],
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "last": steps[-1],
        "evaluation": evaluation,
        "seconds": progress.seconds,
        "counted": progress.counted,
        "per_second": progress.counted / progress.seconds,
    }
    _write(folder / RECEIPT, {"digest": digest(identity), "identity": identity, "summary": summary})
    (folder / RUN).unlink(missing_ok=True)


def _on_ray(recipe: TrainRecipe, identity: Mapping[str, Any], address: str | None) -> None:
    from nextloom.cluster.connect import connect

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    connect(address)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    storage, failure = recipe.run_folder / "ray", recipe.run_folder / FAILURE
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"recipe": recipe, "identity": identity},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=recipe.execution.workers),
        run_config=RunConfig(
            name=digest(identity),
            storage_path=str(storage),
            worker_runtime_env={"env_vars": PATIENT},
            failure_config=FailureConfig(max_failures=recipe.execution.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        if not failure.exists():
            raise UserError(
                f"the training stopped after {recipe.execution.max_failures} restarts: {error}",
                where=recipe.output,
                next="start it again: it resumes from the newest checkpoint",
            ) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    told = _read(failure)
    if told:
        failure.unlink()
        raise UserError(told["what"], where=told["where"], next=told["next"])


def _ray_worker(config: dict[str, Any]) -> None:
    """A `UserError` would only come again, so it is kept for the driver and ends the restarts."""
    import ray.train

    recipe, context = config["recipe"], ray.train.get_context()
    failure = recipe.run_folder / FAILURE
    if failure.exists():
        return
    try:
        work(recipe, config["identity"], rank=context.get_world_rank(), world=context.get_world_size())
    except UserError as error:
        _write(failure, {"what": error.what, "where": error.where, "next": error.next})
        if context.get_world_size() > 1:  # others may be waiting for this worker
            raise


@contextmanager
def _following(folder: Path, on_line: Callable[[dict[str, Any]], None] | None) -> Iterator[None]:
    """Hand every line of metrics that is written inside the block to `on_line`."""
    if on_line is None:
        yield
        return
    from nextloom.train.tracker import read

    done = threading.Event()
    told = {json.dumps(line) for line in read(folder)}

    def follow() -> None:
        while True:
            last = done.wait(0.5)
            for line in read(folder):
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


def _how_far(folder: Path, recipe: TrainRecipe) -> str:
    steps = sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    return f"{steps[-1] if steps else 0} of {recipe.steps} steps done"


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _write(path: Path, document: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1))
    part.replace(path)
