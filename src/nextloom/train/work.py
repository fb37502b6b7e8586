"""One worker's part of a training, from opening the data to the saved model and its receipt."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextloom.arithmetic import float32_as_written
from nextloom.errors import UserError
from nextloom.outputs import check_ours, digest_files
from nextloom.store.release import open_release
from nextloom.tokenize.tokenizer_config import digest as folder_digest
from nextloom.train.decoder.recipe import DecoderRecipe
from nextloom.train.engine.folder import MODEL_PART, RECEIPT, RUN, read, replace, write
from nextloom.train.engine.tracker import read as read_metrics
from nextloom.train.recipe import TrainRecipe
from nextloom.train.tokenizer.inputs import weights_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nextloom.train.engine.checkpoint import Progress
    from nextloom.train.engine.loop import Task

    Device = str | torch.device


def work(
    recipe: TrainRecipe,
    identity: Mapping[str, Any],
    *,
    rank: int = 0,
    world: int = 1,
    device: Device = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train on `device`; on the first worker, save the model and write the receipt.

    Where `stop` says so, end after the step in work and a checkpoint, without either.

    Raises:
        UserError: as `make_task` and `nextloom.train.engine.loop.train`, or the finished model gives no finite figures.
    """
    from nextloom.train.engine.checkpoint import clean
    from nextloom.train.engine.loop import train

    if rank == 0:
        clean(recipe.run_folder)
    with float32_as_written():  # bf16 products are autocast's; whatever is float32 is meant so
        task = make_task(recipe, device)
        model, progress = train(task, recipe, identity, rank=rank, world=world, stop=stop)
        if rank == 0 and progress.cursor == recipe.steps and not stop():
            _finish(recipe, task, model, identity, progress)


def make_task(recipe: TrainRecipe, device: Device = "cpu") -> Task:
    """The task of a recipe on `device`, its data opened.

    Raises:
        UserError: what the recipe names is absent, cannot be read, or does not belong together.
    """
    if isinstance(recipe, DecoderRecipe):
        from nextloom.train.decoder.task import DecoderTask

        return DecoderTask.open(recipe, device)
    from nextloom.train.tokenizer.gallery import Gallery
    from nextloom.train.tokenizer.task import TokenizerTask

    release = open_release(recipe.dataset, recipe.release)
    weights = weights_of(recipe.sampling, release) if recipe.sampling else None
    return TokenizerTask(recipe, Gallery(release), device, ids=release.ids, weights=weights)


def _finish(recipe: TrainRecipe, task: Task, model: nn.Module, identity: Mapping[str, Any], progress: Progress) -> None:
    """Swap the model in, then write the receipt: it holds the model's digest, so it fits no other one."""
    folder, output = recipe.run_folder, Path(recipe.output)
    part = folder / MODEL_PART
    shutil.rmtree(part, ignore_errors=True)
    task.save(model, part)
    evaluation = dict(task.evaluate(model))
    for name, value in evaluation.items():
        if not math.isfinite(value):
            raise UserError(
                f"the finished model's {name} is {value}",
                where=str(folder),
                next=f"lower lr (now {recipe.lr:g}) or clip, and start over with --fresh",
            )
    run = read(folder / RUN)
    made = {"output": folder_digest(part), "files": digest_files(part)}
    receipt = {"identity": identity, "start": run["start"], **made}
    old = (read(folder / RECEIPT) or {}).get("files", {})
    check_ours(str(output), old, run.get("files", {}), maker="nextloom train")
    write(folder / RUN, {**run, **made})  # so that a kill before the receipt leaves an output that is known as ours
    replace(part, output)
    steps = [line for line in read_metrics(folder) if "event" not in line]
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
    write(folder / RECEIPT, {**receipt, "summary": summary})
    (folder / RUN).unlink()
