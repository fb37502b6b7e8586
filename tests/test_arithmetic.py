"""Float32 is float32: no TF32 in trainings, teachers and figures, and codes of no other type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nextloom.arithmetic import AS_WRITTEN, flags, float32_as_written
from nextloom.tokenize.quantizer import Quantizer
from nextloom.tokenize.teacher import Teacher
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.train.decoder.task import DecoderTask
from nextloom.train.launch import launch
from nextloom.train.tokenizer.figures import remainders, restore
from test_training import TOKENIZER, recipe, world

GRIDS = ((1, 1), (2, 2))


def precisions() -> list[str]:
    return [flag.fp32_precision for flag in flags()]


@pytest.fixture(autouse=True)
def fast():
    """A program that asked for the fastest products, and finds its wish untouched afterwards."""
    before = precisions()
    for flag, wish in zip(flags(), ("tf32", "tf32", "tf32", "bf16", "bf16"), strict=True):
        flag.fp32_precision = wish
    wished = precisions()
    yield
    after = precisions()
    for flag, value in zip(flags(), before, strict=True):
        flag.fp32_precision = value
    assert after == wished


def test_flags_are_put_back_also_after_an_error():
    with pytest.raises(ZeroDivisionError), float32_as_written():
        assert precisions() == [AS_WRITTEN] * 5
        raise ZeroDivisionError


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_and_its_judgement_use_float32_as_written(tmp_path, monkeypatch, precision):
    seen = []

    def watched(name: str):
        original = getattr(DecoderTask, name)

        def call(self, *rest):
            seen.append((name, precisions()))
            return original(self, *rest)

        return call

    for name in ("build", "batch", "loss", "evaluate"):
        monkeypatch.setattr(DecoderTask, name, watched(name))
    launch(recipe(world(tmp_path), steps=1, warmup=0, precision=precision))
    assert {name for name, _ in seen} == {"build", "batch", "loss", "evaluate"}
    assert all(values == [AS_WRITTEN] * 5 for _, values in seen)


class Looks(nn.Module):
    """Notes the precision it is asked in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[str]] = []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.seen.append([*precisions(), str(torch.get_num_threads())])
        return x[..., :2, :2]


def test_a_teacher_is_float32_whoever_asks_it():
    network = Looks()
    Teacher(network, 2, 3)(torch.zeros(1, 3, 4, 4), (2, 2))
    assert network.seen[0][:5] == [AS_WRITTEN] * 5


def test_the_remainders_are_of_the_features_that_gave_the_codes(monkeypatch):
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZER).eval().requires_grad_(False)
    restored = restore(tokenizer, np.zeros((16, 16, 3), np.uint8), GRIDS, "cpu")
    seen, encode = [], Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, x: (seen.append([*precisions(), torch.get_num_threads()]), encode(self, x))[1]
    )
    rests = remainders(tokenizer, restored)
    assert seen == [[*[AS_WRITTEN] * 5, 1]] and len(rests) == 2
    z = tokenizer.features(restored.x)
    left = z - tokenizer.quantizer.features(torch.from_numpy(restored.codes)[None], GRIDS)
    assert rests[-1] == pytest.approx(float(left.norm() / z.norm()), rel=1e-5)


CASTS = {
    "bfloat16()": lambda m: m.bfloat16(),
    "half()": lambda m: m.half(),
    "to(bfloat16)": lambda m: m.to(torch.bfloat16),
    "to(cpu, float16)": lambda m: m.to("cpu", torch.float16),
    "double()": lambda m: m.double(),
    "type(float16)": lambda m: m.type(torch.float16),
    "inside of another module": lambda m: nn.Sequential(m).bfloat16(),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("make", [lambda: Quantizer(32, 6, 4), lambda: Tokenizer(TOKENIZER)])
def test_another_type_is_refused_before_a_weight_is_changed(make, cast):
    torch.manual_seed(0)
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(TypeError, match="would give other codes"):
        CASTS[cast](module)
    assert all(v.dtype == before[n].dtype and torch.equal(v, before[n]) for n, v in module.state_dict().items())
    module.float().to("cpu")


def test_codes_that_were_rounded_all_the_same_choose_no_index():
    quantizer = Quantizer(32, 6, 4)
    quantizer.semantic.data = quantizer.semantic.data.bfloat16()
    with pytest.raises(TypeError, match=r"codes are torch\.bfloat16"):
        quantizer.encode(torch.zeros(1, 10, 2, 2), GRIDS)
