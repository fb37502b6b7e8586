"""Indices at the published size against those of plain numpy in float64; the same bytes in any company."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import make_quantizer_golden as golden
from nextloom.tokenize.quantizer import Correction, Quantizer
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.tokenizer_config import pack_indices

STORED = np.load(golden.FILE)


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    return published()


def published() -> Quantizer:
    made = Quantizer(golden.CODES, golden.SEMANTIC, golden.PIXEL)
    semantic, pixel = map(torch.from_numpy, golden.codebook())
    with torch.no_grad():
        made.semantic.copy_(semantic)
        made.pixel.copy_(pixel)
    return made


def case(name: str) -> tuple[torch.Tensor, tuple]:
    height, width, scales = golden.CASES[name]
    assert (height, width) in FINAL_GRIDS
    return torch.from_numpy(golden.features(name))[None], schedule((height, width), scales)


@pytest.mark.parametrize("name", golden.CASES)
def test_every_index_equals_the_float64_restatement(quantizer, name):
    z, grids = case(name)
    inputs, targets = quantizer.encode(z, grids)
    assert STORED[f"{name}_lead"][0] > 1e-5, "no code of these is a tie in float32"
    assert targets[0].tolist() == STORED[name].tolist(), "bump code_version of image_tokens"
    assert torch.equal(inputs, targets)


def drawn(quantizer: Quantizer, z: torch.Tensor, grids, keys) -> list[bytes]:
    inputs, targets = quantizer.encode(z, grids, Correction(), keys)
    return [pack_indices(row.numpy(), golden.CODES) for pair in zip(inputs, targets, strict=True) for row in pair]


OTHER = """
import sys, torch
from test_quantizer_golden import case, drawn, published
torch.set_num_threads(int(sys.argv[1]))
z, grids = case("wide8")
sys.stdout.write("".join(b.hex() for b in drawn(published(), z, grids, ["wide8"])))
"""


def test_the_same_bytes_in_any_batch_order_thread_count_and_process(quantizer):
    z, grids = case("wide8")
    others = z + torch.randn(4, *z.shape[1:], generator=torch.Generator().manual_seed(0))
    alone = drawn(quantizer, z, grids, ["wide8"])
    keys = ["a", "b", "wide8", "c"]
    batch = torch.cat([others[:2], z, others[2:3]])
    assert drawn(quantizer, batch, grids, keys)[4:6] == alone
    turned = torch.arange(4).flip(0)
    assert drawn(quantizer, batch[turned], grids, keys[::-1])[2:4] == alone
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert drawn(quantizer, z, grids, ["wide8"]) == alone
    torch.set_num_threads(threads)
    for count in ("1", "2"):
        told = subprocess.run([sys.executable, "-c", OTHER, count], capture_output=True, text=True, timeout=120)
        assert told.stdout == "".join(b.hex() for b in alone), told.stderr[-500:]


def test_another_arithmetic_differs_only_where_codes_tie(quantizer):
    """What a GPU may do: features off by float32 rounding change an index only where two codes are that near."""
    z, grids = case("square8")
    _, (plain,) = quantizer.encode(z, grids)
    noisy = z * (1 + 1e-7 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1)))
    _, (other,) = quantizer.encode(noisy, grids)
    assert torch.equal(plain, other), "the least lead of these is 2e-4"
