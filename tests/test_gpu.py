"""Training on a GPU, as far as a machine without one can tell.

torch pretends: on fake tensors every operation checks that its operands lie on one device, and computes nothing. Ray
is told of GPUs that torch then does not find, which must be refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nextloom.curation.scores.embed import Embed
from nextloom.errors import UserError
from nextloom.op import Execution
from nextloom.train.decoder.task import DecoderTask
from nextloom.train.engine.loop import Task
from nextloom.train.launch import launch
from nextloom.train.tokenizer.reconstruction import ReconstructionRecipe, evaluate
from nextloom.train.tokenizer.task import TokenizerTask
from test_tokenizer import SMALL, pictures, wanted
from test_training import recipe, world

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: pretending one proves nothing")
ON_RAY = """
import sys, ray
ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="error",
         object_store_memory=128 * 2**20)
from pathlib import Path
from nextloom.curation.scores.embed import Embed
from nextloom.errors import UserError
from nextloom.op import Execution
from nextloom.train.launch import launch
from test_training import recipe
for workers in (2, 1):
    try:
        launch(recipe(Path(sys.argv[1]), execution={"workers": workers, "use_gpu": True}))
    except UserError as error:
        print(error)
"""


def tokenizer_task(root: Path) -> TokenizerTask:
    fields = {"tokenizer": SMALL, "scales": 4, "batch": 4, "gan_weight": 0.5, "gan_from": 0, "drop": 0.5}
    return TokenizerTask(wanted(**fields), pictures())


def decoder_task(root: Path) -> DecoderTask:
    return DecoderTask.open(recipe(world(root), precision="bf16"))


def on_gpu(task: Task, model: nn.Module) -> None:
    """One forward pass; where a tensor was forgotten on the CPU, torch raises."""
    batch = task.batch(0)
    total, count, metrics = task.loss(model, batch, 0)
    tensors = [part for value in metrics.values() for part in (value if isinstance(value, tuple) else (value,))]
    assert count > 0 and total.shape == () and total.requires_grad and len(metrics) > 2
    assert {part.device.type for part in (total, *tensors) if isinstance(part, torch.Tensor)} == {"cuda"}


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("make", [tokenizer_task, decoder_task])
def test_every_tensor_of_a_step_is_on_the_gpu(make, tmp_path):
    task = make(tmp_path)
    model = task.build()
    task.device = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        if isinstance(task, TokenizerTask):
            assert task.teacher is not None
            task.teacher = task.teacher.to("cuda")
        model = model.to("cuda")
        on_gpu(task, model)
        forgotten = next(module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d))
        forgotten.weight = nn.Parameter(torch.zeros(forgotten.weight.shape, device="cpu"))
        with pytest.raises(RuntimeError, match="device"):
            on_gpu(task, model)


def test_without_a_gpu_a_training_that_wants_one_is_refused(tmp_path):
    job = recipe(world(tmp_path), execution={"use_gpu": True})
    with pytest.raises(UserError, match=r"execution\.use_gpu: a GPU is asked for, but torch .* sees none"):
        launch(job)
    assert not (job.run_folder / "run.json").exists()
    assert job.identity() == recipe(tmp_path).identity(), "where a training runs is no part of its identity"


@pytest.mark.proof
def test_on_ray_too_before_a_worker_starts(tmp_path):
    world(tmp_path)
    done = subprocess.run([sys.executable, "-c", ON_RAY, tmp_path], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    few, none = done.stdout.strip().split("execution.use_gpu: ")[1:]
    assert few.startswith("2 workers want a GPU each, the cluster has 1\n  next: --address of a larger cluster")
    assert none.startswith("a GPU is asked for, but torch")
    assert not (tmp_path / "run.run" / "run.json").exists(), "an earlier training is not thrown away for this"


def test_an_encoder_and_an_evaluation_too(tmp_path):
    with pytest.raises(UserError, match=r"execution\.num_gpus: a GPU is asked for"):
        Embed(model="parts", execution=Execution(num_gpus=1)).setup()
    world(tmp_path, painted=True)
    recipe = {"tokenizer": str(tmp_path / "tokenizer"), "pictures": str(tmp_path), "levels": (64,)}
    with pytest.raises(UserError, match=r"device: a GPU is asked for"):
        evaluate(ReconstructionRecipe(**recipe, device="cuda"))
