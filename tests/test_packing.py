"""Packing: every sample once, caps kept, equal costs, one plan for equal lengths."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy_dataset
from nextloom.errors import UserError
from nextloom.hashing import hash64, uniform
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files
from nextloom.tokenize.documents import cost, picture_blocks
from nextloom.tokenize.packing import (
    Cost,
    PackSamples,
    lengths_digest,
    open_plan,
    pack_lengths,
    read_lengths,
    write_plan,
)
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule


def op(**fields: object) -> PackSamples:
    return PackSamples(**{"release": "tokens", "images": "tokens", "text": "text", "token_cap": 256, **fields})


def table(text: list[int], rows: list[int], scales: list[int]) -> pa.Table:
    ids = np.arange(len(text)) * 7 + 3
    return pa.table({"id": ids, "text_tokens": text, "schedule": rows, "scales": scales})


def mixture(count: int, seed: int = 0) -> pa.Table:
    """Lengths like those of 512-pixel text-to-image training."""
    rng = np.random.default_rng(seed)
    text = rng.lognormal(np.log(120), 0.8, count).astype(int)
    return table(text.tolist(), rng.integers(0, 41, count).tolist(), [16] * count)


samples = st.tuples(st.integers(0, 300), st.integers(0, 40), st.integers(1, 6))


@settings(max_examples=60)
@given(
    st.lists(samples, max_size=60),
    st.integers(10, 400),
    st.integers(1, 40),
    st.one_of(st.none(), st.integers(1, 500_000)),
    st.integers(0, 3),
)
def test_each_sample_is_in_one_pack_or_rejected(rows, cap, window, budget, seed):
    lengths = table(*(list(c) for c in zip(*rows, strict=True))) if rows else table([], [], [])
    config = op(token_cap=cap, window=window, budget=budget, cost=Cost(per_token=1000, per_pair=3), seed=seed)
    packs, rejected, limit = pack_lengths(
        config, lengths.cast(pa.schema([(n, pa.int64()) for n in lengths.schema.names]))
    )
    packed = [i for pack in packs["samples"].to_pylist() for i in pack]
    assert sorted(packed + rejected["id"].to_pylist()) == lengths["id"].to_pylist()
    assert packs["pack_id"].to_pylist() == packs["id"].to_pylist() == list(range(packs.num_rows))
    known = {row["id"]: row for row in lengths.to_pylist()}
    for pack in packs.to_pylist():
        figures = []
        for sample in pack["samples"]:
            row = known[sample]
            blocks = [1] * row["text_tokens"]
            figures.append(cost(blocks + picture_blocks(schedule(FINAL_GRIDS[row["schedule"]], row["scales"]))))
        assert (pack["tokens"], pack["pairs"]) == tuple(map(sum, zip(*figures, strict=True)))
        assert pack["cost"] == 1000 * pack["tokens"] + 3 * pack["pairs"]
        assert pack["tokens"] <= cap
        assert pack["cost"] <= limit or len(pack["samples"]) == 1
    for row in rejected.to_pylist():
        assert f"the cap is {cap}" in row["reason"]


def test_order_of_arrival_changes_nothing_and_the_seed_everything():
    lengths = mixture(500)
    shuffled = lengths.take(np.random.default_rng(1).permutation(500))
    config = op(token_cap=32768, window=200)
    first = pack_lengths(config, lengths)[0]
    assert pack_lengths(config, shuffled)[0].equals(first)
    assert lengths_digest(shuffled) == lengths_digest(lengths)
    assert pack_lengths(op(token_cap=32768, window=200, seed=1), lengths)[0]["samples"] != first["samples"]


def test_packs_cost_the_same():
    packs, _, budget = pack_lengths(op(token_cap=65536), mixture(3000))
    spent = packs["cost"].to_numpy()
    # 17 pictures per pack and nothing small to fill gaps with: where the number does not divide, 16
    assert spent.max() <= budget
    assert np.percentile(spent, 10) / spent.max() > 0.99
    assert spent.mean() / spent.max() > 0.99


def test_the_sweep_finds_a_budget_that_a_fixed_one_misses():
    lengths = table([0] * 400, [20] * 400, [6] * 400)  # equal samples of 92 tokens: 11 fit under the cap
    packs, _, budget = pack_lengths(op(token_cap=1024), lengths)
    assert budget >= packs["cost"].to_numpy().max()
    assert packs["cost"].to_numpy().mean() / packs["cost"].to_numpy().max() > 0.98


def test_a_plan_survives_new_token_bytes(tmp_path):
    uri = str(tmp_path / "toys")
    captions = [f"toy {i}" for i in range(30)]
    release = toy_dataset.build(uri, captions, failed=[4])
    dataset = Dataset(uri)
    with dataset.lease("test"):
        made = write_plan(dataset, "main", op(), release)
        again = write_plan(dataset, "main", op(), release)
    assert (made.state, again.state) == ("written", "fresh")
    assert made.counts["rows"] == 30 == made.counts["packed"] + made.counts["rejected"] + made.counts["failed"]
    assert made.counts["failed"] == 1
    plan = open_plan(uri, "main")
    packs, version = plan.packs(), dataset.packs("main", plan.fingerprint).version()

    retrained = toy_dataset.build(uri, captions, failed=[4], seed=1)
    with dataset.lease("test"):
        assert write_plan(dataset, "main", op(), retrained).state == "same"
    moved = open_plan(uri, "main")
    assert moved.receipt["release"] == retrained.name != release.name
    assert moved.packs().equals(packs)
    assert dataset.packs("main", plan.fingerprint).version() == version, "nothing was written"


def test_longer_captions_give_another_plan_and_long_ones_are_rejected(tmp_path):
    uri = str(tmp_path / "toys")
    release = toy_dataset.build(uri, ["short", "x" * 300, "short"])
    dataset = Dataset(uri)
    with dataset.lease("test"):
        counts = write_plan(dataset, "main", op(seed=5), release).counts
        fingerprint = open_plan(uri, "main").fingerprint
        rejected = dataset.packs("main", fingerprint + "-rejected")
        assert (counts["packed"], counts["rejected"]) == (2, 1)
        assert read_files(rejected.uri, rejected.files()).to_pylist() == [
            {"id": 1, "reason": "331 tokens, the cap is 256"}
        ]
        assert write_plan(dataset, "main", op(token_cap=400), release).state == "written"
    assert open_plan(uri, "main").fingerprint != fingerprint


def test_pictures_alone_and_columns_that_are_absent(tmp_path):
    release = toy_dataset.build(str(tmp_path / "toys"), ["a", "b"])
    lengths, failed = read_lengths(op(text=None), release)
    assert (lengths["text_tokens"].to_pylist(), failed) == ([0, 0], 0)
    with pytest.raises(UserError, match="no column 'pictures'"):
        read_lengths(op(images="pictures"), release)
    with pytest.raises(UserError, match="no pack plan"):
        open_plan(str(tmp_path / "toys"), "main")


def test_packing_imports_neither_ray_nor_torch():
    code = "import sys, nextloom.tokenize.packing; print(sorted({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def splitmix_from(base: int, number: int) -> int:
    """SplitMix64 in Python integers: the output of that number, from 0, of the generator seeded with `base`."""
    mask = 2**64 - 1
    x = (base + (number + 1) * 0x9E3779B97F4A7C15) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return x


def splitmix(number: int, *names: object) -> int:
    """Seeded by blake2b of the stream's name."""
    name = "\0".join(map(str, names)).encode()
    return splitmix_from(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"), number)


def test_hashes_are_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix_from(1234567, number) for number in range(3)] == published
    numbers = [0, 1, 2, 10**12, 2**63 - 1]
    assert hash64(np.array(numbers), "name", 3).tolist() == [splitmix(number, "name", 3) for number in numbers]
    assert hash64(np.array([[5], [6]]), "name", 4).tolist() == [[splitmix(5, "name", 4)], [splitmix(6, "name", 4)]]
    assert uniform(np.arange(9), "k").tolist() == [(splitmix(number, "k") >> 11) / 2**53 for number in range(9)]


def test_draws_look_uniform():
    drawn = uniform(np.arange(20_000), "a key", 3)
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(np.histogram(drawn, 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    for other in (drawn[1:], uniform(np.arange(19_999), "a key", 4), uniform(np.arange(19_999), "b key", 3)):
        assert abs(np.corrcoef(drawn[:-1], other)[0, 1]) < 0.02


def test_golden_plan_equals_a_naive_restatement():
    cap, budget = 16384, 10**12
    known = {row["id"]: row for row in mixture(100).to_pylist()}
    size = {}
    for i, row in known.items():
        blocks = [1] * row["text_tokens"] + picture_blocks(schedule(FINAL_GRIDS[row["schedule"]], row["scales"]))
        tokens, pairs = cost(blocks)
        size[i] = tokens, 57_030_000 * tokens + 1_806 * pairs
    arrival = sorted(known, key=lambda i: splitmix(i, "order", 0))
    waiting, bins = arrival, []
    while waiting:
        total = [sum(size[i][k] for i in waiting) for k in (0, 1)]
        count = max(-(-total[1] // budget), -(-total[0] // cap))
        packs, left = [[] for _ in range(count)], []
        for i in sorted(waiting, key=lambda i: -size[i][1]):
            load = [max(sum(size[j][1] for j in p) * cap, sum(size[j][0] for j in p) * budget) for p in packs]
            into = packs[load.index(min(load))]
            fits = all(sum(size[j][k] for j in [*into, i]) <= limit for k, limit in ((0, cap), (1, budget)))
            (into if fits else left).append(i)
        bins += packs
        waiting = [i for i in arrival if i in set(left)]
    wanted = [bins[i] for i in sorted(range(len(bins)), key=lambda i: splitmix(i, "packs", 0))]
    packs = pack_lengths(op(token_cap=cap, budget=budget), mixture(100))[0]
    assert packs["samples"].to_pylist() == wanted, "a new plan for old lengths: bump code_version"
