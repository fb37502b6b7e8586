"""A training on Ray Train: it starts the workers and restarts them when one dies; each start resumes.

The folder of the run must be one that every worker sees. An error that would only come again (`UserError`,
`ValueError`) is written down for the driver, and a restart that finds it ends at once: such an error costs at most
one restart, which the other workers need because they may wait for the one that failed.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nextloom.errors import UserError
from nextloom.gpu import cuda
from nextloom.op import digest
from nextloom.train.engine.folder import FAILURE, STOP, read, write
from nextloom.train.recipe import TrainRecipe
from nextloom.train.stopping import Signals
from nextloom.train.work import work

PATIENT = {"GOMP_SPINCOUNT": "30000"}
"""Threads that wait go to sleep soon. By default they spin ten times as long, and on a machine that other processes
share a step of two threads took 10 s instead of 0.5 s. Read when torch is loaded."""

log = logging.getLogger(__name__)


def train_on_ray(recipe: TrainRecipe, identity: Mapping[str, Any], address: str | None, signals: Signals) -> None:
    """Train on `recipe.execution.workers` workers.

    Args:
        recipe: what to train.
        identity: of the training.
        address: of a Ray cluster; None starts a local one.
        signals: once one came, the workers stop after their step and a checkpoint.

    Raises:
        UserError: what stopped a worker, or workers died more than `max_failures` times.
    """
    _connect(address)
    signals.install()  # Ray has put its own in place
    if signals.asked():
        return
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    use_gpu = recipe.execution.use_gpu
    storage, failure = recipe.run_folder / "ray", recipe.run_folder / FAILURE
    failure.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": recipe, "identity": identity},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=recipe.execution.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=digest(identity),
            storage_path=str(storage),
            worker_runtime_env={"env_vars": PATIENT},
            failure_config=FailureConfig(max_failures=recipe.execution.max_failures),
        ),
    )
    try:
        _fit(trainer, lambda: signals.asked() and not _wish(recipe).exists() and _wish(recipe).touch())
    except TrainingFailedError as error:
        if signals.asked():
            return  # the signal reached the workers too: the newest checkpoint is what there is
        if not failure.exists():
            raise UserError(
                f"the training stopped after {recipe.execution.max_failures} restarts: {error}",
                where=recipe.output,
                next="start it again: it resumes from the newest checkpoint",
            ) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    told = read(failure)
    if told:
        failure.unlink()
        raise UserError(told["what"], where=told["where"], next=told["next"])


def _fit(trainer: Any, meanwhile: Callable[[], object]) -> None:
    """Run `trainer.fit()` beside the main thread, which stays free for signals and calls `meanwhile` again and again.

    On the main thread Ray Train would put its own handler of Ctrl-C in place, which aborts the workers.
    """
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        meanwhile()
    if errors:
        raise errors[0]


def _wish(recipe: TrainRecipe) -> Path:
    """The file by which the driver asks workers to stop."""
    return recipe.run_folder / STOP


def check_gpus(workers: int, address: str | None) -> None:
    """Refuse what the cluster can never give, instead of waiting for it; and a torch that cannot use it.

    Raises:
        UserError: fewer GPUs than workers, or torch sees none.
    """
    _connect(address)
    import ray
    from ray.exceptions import RayTaskError

    have = ray.cluster_resources().get("GPU", 0)
    if have < workers:
        raise UserError(
            f"{workers} workers want a GPU each, the cluster has {have:g}",
            where="execution.use_gpu",
            next="--address of a larger cluster, --set execution.workers=..., or --set execution.use_gpu=false",
        )
    try:
        ray.get(ray.remote(num_gpus=1)(cuda).remote("execution.use_gpu"))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, UserError) else error from None


def _connect(address: str | None) -> None:
    from nextloom.cluster.connect import connect

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    connect(address)


def _worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    recipe, context = config["recipe"], ray.train.get_context()
    failure, world = recipe.run_folder / FAILURE, context.get_world_size()
    if failure.exists():
        return
    try:
        device = ray.train.torch.get_device() if recipe.execution.use_gpu else "cpu"
        rank = context.get_world_rank()
        work(recipe, config["identity"], rank=rank, world=world, device=device, stop=_wish(recipe).exists)
    except UserError as error:
        write(failure, {"what": error.what, "where": error.where, "next": error.next})
        if world > 1:
            raise
    except ValueError as error:
        log.exception("a worker stopped")
        told = {"what": f"a worker stopped: {error}", "where": recipe.output}
        write(failure, {**told, "next": "the traceback is in the worker's log; mend the cause and start it again"})
        if world > 1:
            raise
