"""The one training loop: tokenizer, decoder and every later stage are tasks that it drives.

A step is an integer from which everything follows: the task's batch, the learning rate. The loss of a step is the sum
of the workers' weighted losses over the sum of their counts, so neither packing nor the number of workers changes
it: each worker differentiates its own sum over the global count, and gradients are added up.

Weights are replicated; gradients are summed over workers in one flat tensor. Nothing draws from a random number
generator here, but its state is part of a checkpoint, for tasks that do. Where a recipe asks for averaged weights
(`ema`), those are what is judged and what a finished training returns.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nextloom.errors import UserError
from nextloom.train.engine import checkpoint
from nextloom.train.engine.checkpoint import Progress
from nextloom.train.engine.ema import Average
from nextloom.train.engine.tracker import Tracker
from nextloom.train.engine.training import Training

Metrics = Mapping[str, Tensor | tuple[Tensor, Tensor]]
"""A mean over this worker's share of the step, or (sum, count); counts of 0 are left out."""


class Task(Protocol):
    """What is particular to one kind of training."""

    def build(self) -> nn.Module:
        """A fresh model, the same on every worker."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        """This worker's share of step `step`: a pure function of its arguments."""

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Tensor, int, Metrics]:
        """Weighted sum of losses, the sum of weights (count), and figures worth a curve."""

    def save(self, model: nn.Module, folder: str | Path) -> None:
        """Write the finished model."""

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Figures of the finished model, and every `eval_every` steps of the unfinished one."""


@runtime_checkable
class Shows(Protocol):
    """A task with something to look at."""

    def show(self, model: nn.Module) -> np.ndarray:
        """(height, width, 3) uint8 of what the model makes."""


def train(
    task: Task,
    recipe: Training,
    identity: Mapping[str, Any],
    *,
    rank: int = 0,
    world: int = 1,
    until: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[nn.Module, Progress]:
    """Train from the newest checkpoint of the run to the last step; called by every worker.

    Args:
        task: what to train.
        recipe: for how long and how.
        identity: of the training; a checkpoint of another one is refused.
        rank, world: this worker; with world > 1 a process group is up.
        until: stop early, after this many steps and with a checkpoint, as a time limit would; the learning rate is
            that of the whole training, so that it can go on from there.
        stop: asked on the first worker once a step; True ends the training after it, with a checkpoint.

    Returns:
        The model, with averaged weights once the last step is done where the recipe asks for them, and where the
        training stands.

    Raises:
        UserError: a checkpoint that cannot be resumed or that not every worker sees, a step without anything to
            learn, or a loss or gradient that is not finite.
    """
    execution, folder = recipe.execution, recipe.run_folder
    torch.set_num_threads(execution.threads or max(1, _cores() // max(world, 1)))
    model = task.build().train()
    if world > 1:
        for tensor in model.state_dict().values():
            same = tensor.contiguous()  # NCCL takes nothing else, and kernels are channels-last
            dist.broadcast(same, 0)
            tensor.copy_(same)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, recipe)
    _same_checkpoint(folder, world)
    average = Average(model, recipe.ema) if recipe.ema else None
    progress = checkpoint.resume(folder, model, optimizer, identity, average)
    _set_rng(progress, recipe.seed, rank, world)
    tracker = Tracker(folder, progress.cursor, workers=world, threads=torch.get_num_threads()) if rank == 0 else None
    end = min(recipe.steps, until or recipe.steps)
    start = last_save = time.perf_counter()
    last_log = (progress.cursor, progress.counted, start)
    minutes = execution.checkpoint_minutes or math.inf

    def wishes() -> tuple[bool, bool]:
        """Of the first worker: to stop, and to have a checkpoint."""
        return (stop(), time.perf_counter() - last_save >= 60 * minutes) if rank == 0 else (False, False)

    leave = _first_says(wishes()[0], world)
    while progress.cursor < end and not leave:
        step = progress.cursor
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(progress.lr_step)
        total, count, metrics = task.loss(model, task.batch(step, rank, world), step)
        judge_now = bool(execution.eval_every) and (step + 1) % (execution.eval_every or 1) == 0
        log_now = judge_now or step + 1 in (1, recipe.steps) or (step + 1) % execution.log_every == 0
        sums = _sum_over_workers(total, count, metrics if log_now else {}, world)
        loss, whole = sums.pop("loss")
        if not whole:
            raise UserError(
                f"step {step + 1} holds nothing to learn from", where=str(folder), next="look at the release's rows"
            )
        _finite(loss, "loss", step, recipe)
        (total / whole).backward()
        leave, due = _sum_gradients(parameters, world, wishes)
        norms = _clip(model, parameters, recipe.clip)
        for norm in norms.values():
            _finite(norm, "gradient's norm", step, recipe)  # clipping made NaN of it: no step with that
        optimizer.step()
        optimizer.zero_grad()
        if average:
            average.update(model, step + 1)
        progress.cursor, progress.lr_step = step + 1, progress.lr_step + 1
        progress.counted += whole
        if tracker:
            tracker.beat(step + 1)
        if log_now and tracker:
            now, (logged, counted, before) = time.perf_counter(), last_log
            means = {name: value / weight for name, (value, weight) in sums.items() if weight}
            speed = (progress.counted - counted) / (now - before)
            lr = optimizer.param_groups[0]["lr"]
            figures = {
                "lr": lr,
                **norms,
                "per_second": speed,
                "step_seconds": (now - before) / (step + 1 - logged),
            }
            if judge_now:
                figures |= _judge(task, model, average, tracker, step + 1)
            tracker.log(step + 1, {"loss": loss / whole, **means, **figures})
            start += time.perf_counter() - now  # judging is no training
            last_log = (step + 1, progress.counted, time.perf_counter())
        if (step + 1) % execution.checkpoint_every == 0 or step + 1 == end or leave or due:
            progress.seconds += time.perf_counter() - start
            start = last_save = time.perf_counter()
            progress.rng = _gather_rng(world)
            if rank == 0:
                checkpoint.save(folder, model, optimizer, progress, identity, execution.keep, average)
    if tracker:
        tracker.close()
    if average and progress.cursor == recipe.steps:
        average.copy_to(model)
    return model, progress


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Training) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices and kernels, not on biases and norms."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=recipe.betas, fused=True)


def _judge(task: Task, model: nn.Module, average: Average | None, tracker: Tracker, step: int) -> dict[str, float]:
    """Figures of the model as it would be saved now, and its picture."""
    with average.applied(model) if average else nullcontext():
        if isinstance(task, Shows):
            tracker.picture(step, task.show(model))
        return {f"eval/{name}": value for name, value in task.evaluate(model).items()}


def _clip(model: nn.Module, parameters: list[nn.Parameter], limit: float) -> dict[str, float]:
    """Clip gradients to the norm `limit`; parts that train against each other (`model.rivals`) each on their own."""
    rivals: Any = getattr(model, "rivals", None)
    if rivals is None:
        return {"norm": float(nn.utils.clip_grad_norm_(parameters, limit))}
    parts = [[p for p in rival.parameters() if p.requires_grad] for rival in rivals]
    norms = [float(nn.utils.clip_grad_norm_(part, limit)) for part in parts]
    return {"norm" if not number else f"norm_{number + 1}": norm for number, norm in enumerate(norms)}


def _finite(value: float, name: str, step: int, recipe: Training) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"the {name} of step {step + 1} is {value}",
            where=str(recipe.run_folder),
            next=f"lower lr (now {recipe.lr:g}) or clip, and start over with --fresh",
        )


def _same_checkpoint(folder: Path, world: int) -> None:
    """Every worker must resume from the checkpoint that the first one sees."""
    if world == 1:
        return
    mine = [path.name for path in checkpoint.saved(folder)[-1:]]
    every: list[Any] = [None] * world
    dist.all_gather_object(every, mine)
    if any(other != every[0] for other in every):
        raise UserError(
            f"workers see different newest checkpoints: {', '.join(names[0] if names else 'none' for names in every)}",
            where=str(folder),
            next="put output on a file system that all of them share",
        )


def _sum_over_workers(total: Tensor, count: int, metrics: Metrics, world: int) -> dict[str, tuple[float, float]]:
    """(sum, count) over all workers of the loss and of each metric."""
    names, values = ["loss"], [total.detach(), count]
    for name, value in metrics.items():
        names.append(name)
        values += value if isinstance(value, tuple) else (value.detach() * count, count)
    flat = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=total.device) for v in values])
    if world > 1:
        dist.all_reduce(flat)
    numbers = flat.tolist()
    return {name: (numbers[2 * i], numbers[2 * i + 1]) for i, name in enumerate(names)}


def _first_says(wish: bool, world: int) -> bool:
    """What the first worker wishes, on every worker."""
    every = [wish]
    if world > 1:
        dist.broadcast_object_list(every, 0)
    return every[0]


def _sum_gradients(
    parameters: list[nn.Parameter], world: int, wishes: Callable[[], tuple[bool, bool]]
) -> tuple[bool, bool]:
    """Add up the workers' gradients; a parameter without one has zeros, whatever the number of workers.

    What the first worker wishes by now travels with them, so that all workers end after the same step.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if world == 1:
        return wishes()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    told = torch.tensor(wishes(), dtype=gradients[0].dtype, device=gradients[0].device)
    flat = torch.cat([told, *(gradient.reshape(-1) for gradient in gradients)])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat[len(told) :].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))
    leave, due = (bool(wish) for wish in flat[: len(told)].tolist())
    return leave, due


def _gather_rng(world: int) -> list[checkpoint.Rng]:
    mine = checkpoint.rng_state()
    if world == 1:
        return [mine]
    every: list[Any] = [None] * world
    dist.all_gather_object(every, mine)
    return every


def _set_rng(progress: Progress, seed: int, rank: int, world: int) -> None:
    """The saved state of this worker; where it is new, or the number of workers changed, one of its own."""
    if len(progress.rng) == world:
        checkpoint.set_rng_state(progress.rng[rank])
        return
    base = hash((seed, progress.cursor, rank)) % 2**32
    torch.manual_seed(base)
    np.random.seed(base)
    random.seed(base)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
