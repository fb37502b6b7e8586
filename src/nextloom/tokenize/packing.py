"""Packing: which samples share one training sequence, decided from lengths alone.

    train: {op: pack, release: tokens, images: tokens, text: text, token_cap: 4096}     under packs:

A pack holds samples of about equal total cost under a hard cap on tokens, so that every worker of a step finishes
at the same moment. Cost is `per_token * tokens + per_pair * visible pairs`, in integers, so that ties and sums are
the same on every machine.

    1. order       samples by a hash of (id, seed); every window of this order holds the whole mixture
    2. packs       longest processing time first, window by window (`lpt`)
    3. pack_id     a hashed permutation of the finished packs: the global order in which training takes them

A plan depends on ids and lengths, never on token bytes, so it survives a tokenizer that keeps its schedules. It is a
pure function of lengths, config and seed: rows may come in any order. Speed: 120,000 samples per second on one core
of a busy 2-core machine (a million 512-pixel pictures with captions, sweep included).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from nextloom.config import Model
from nextloom.errors import UserError
from nextloom.hashing import hash64
from nextloom.op import Pack, digest
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files, write_file
from nextloom.store.release import Release
from nextloom.tokenize.documents import cost, picture_blocks
from nextloom.tokenize.lpt import Samples, lpt, sweep
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule

LENGTHS = ("id", "text_tokens", "schedule", "scales")
PACKS = pa.schema(
    [
        ("id", pa.int64()),
        ("pack_id", pa.int64()),
        ("samples", pa.list_(pa.int64())),
        ("tokens", pa.int64()),
        ("pairs", pa.int64()),
        ("cost", pa.int64()),
    ]
)
"""`id` repeats `pack_id` for the store."""
REJECTED = pa.schema([("id", pa.int64()), ("reason", pa.string())])
FILE_PACKS = 65_536
ENDS = ("", "-rejected")
"""What follows the fingerprint in the names of a plan's two tables."""


class Cost(Model):
    """What a sample costs to train on, in integers of any unit; the defaults are kFLOP of the 7B model."""

    per_token: int = Field(57_030_000, gt=0)
    """Forward, backward and recompute of the linear parts for one token."""
    per_pair: int = Field(1_806, ge=0)
    """The same of attention for one visible query-key pair."""


class PackSamples(Pack):
    """Packs of equal cost out of a release with text and picture tokens."""

    name: ClassVar[str] = "pack"
    code_version: ClassVar[int] = 1

    images: str
    """The release's `image_tokens` column."""
    text: str | None = None
    """The release's `text_tokens` column; without it pictures stand alone."""
    token_cap: int = Field(gt=0)
    """Most tokens in a pack; a longer sample is rejected."""
    budget: int | None = Field(None, gt=0)
    """Cost of a full pack; default: the best of a sweep around `per_token * token_cap`."""
    cost: Cost = Cost()
    """How cost is counted."""
    window: int = Field(20_000, gt=0)
    """Samples that are balanced together."""
    seed: int = 0
    """Of the order."""

    def fingerprint(self, lengths: str) -> str:
        """Identity of the plan that this op makes of lengths with digest `lengths`."""
        config = self.identity()
        config.pop("release")
        return digest({"op": self.name, "version": self.version(), "config": config, "lengths": lengths})

    def pack(self, lengths: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Packs and rejected samples; see `pack_lengths`, which also returns the budget."""
        packs, rejected, _ = pack_lengths(self, lengths)
        return packs, rejected


def pack_lengths(op: PackSamples, lengths: pa.Table) -> tuple[pa.Table, pa.Table, int]:
    """Pack samples.

    Args:
        op: cap, budget, cost, window, seed.
        lengths: table(id, text_tokens, schedule, scales), unique ids in any order.

    Returns:
        packs (schema `PACKS`, sorted by pack_id), rejected (schema `REJECTED`), and the budget. Each sample is in
        exactly one of them. A pack costs at most the budget, unless it is one sample that costs more on its own.
    """
    samples, rejected = _samples(op, lengths.select(list(LENGTHS)).sort_by("id"))
    budget = op.budget or sweep(samples, op.token_cap, op.cost.per_token)
    bins = lpt(samples, op.token_cap, budget, op.window)
    order = np.argsort(hash64(np.arange(len(bins)), "packs", op.seed), kind="stable")
    members = [np.asarray(bins[i], np.int64) for i in order]
    flat = np.concatenate(members) if members else np.empty(0, np.int64)
    offsets = pa.array(np.cumsum([0, *map(len, members)]), pa.int32())
    starts = offsets.to_numpy()[:-1]
    numbers = pa.array(np.arange(len(members)))
    columns = [
        numbers,
        numbers,
        pa.ListArray.from_arrays(offsets, pa.array(samples.ids[flat])),
        *(np.add.reduceat(a[flat], starts) if members else flat for a in (samples.tokens, samples.pairs, samples.cost)),
    ]
    return pa.Table.from_arrays([pa.array(c) for c in columns], schema=PACKS), rejected, budget


def _samples(op: PackSamples, lengths: pa.Table) -> tuple[Samples, pa.Table]:
    ids, text, row, scales = (lengths[name].to_numpy().astype(np.int64) for name in LENGTHS)
    if len(np.unique(ids)) != len(ids):
        raise ValueError("an id occurs twice in the lengths")
    tokens, pairs = np.zeros_like(ids), np.zeros_like(ids)
    for number, count in set(zip(row.tolist(), scales.tolist(), strict=True)):
        mine = (row == number) & (scales == count)
        own_tokens, own_pairs = cost(picture_blocks(schedule(FINAL_GRIDS[number], count)))
        tokens[mine] = text[mine] + own_tokens
        pairs[mine] = text[mine] * (text[mine] + 1) // 2 + text[mine] * own_tokens + own_pairs
    price = op.cost.per_token * tokens + op.cost.per_pair * pairs
    fits = tokens <= op.token_cap
    order = np.argsort(hash64(ids, "order", op.seed), kind="stable")
    order = order[fits[order]]
    reasons = [f"{n} tokens, the cap is {op.token_cap}" for n in tokens[~fits].tolist()]
    rejected = pa.table({"id": ids[~fits], "reason": pa.array(reasons, pa.string())}, schema=REJECTED)
    return Samples(*(array[order] for array in (ids, tokens, pairs, price))), rejected


def lengths_digest(lengths: pa.Table) -> str:
    """Identity of a lengths table: of its numbers, whatever their order and the chunks they came in."""
    data = lengths.select(list(LENGTHS)).sort_by("id")
    total = hashlib.sha256()
    for name in LENGTHS:
        total.update(np.ascontiguousarray(data[name].to_numpy().astype("<i8")).tobytes())
    return total.hexdigest()[:16]


def read_lengths(op: PackSamples, release: Release) -> tuple[pa.Table, int]:
    """Lengths of the samples that have their tokens, and how many rows of the release failed to get them."""
    pictures = release.column(op.images, ["schedule", "scales", "error"])
    good = pictures["error"].is_null()
    text = pa.array(np.zeros(pictures.num_rows, np.int64))
    if op.text is not None:
        captions = release.column(op.text, ["n_tokens", "error"])
        good = pc.and_(good, captions["error"].is_null())
        text = captions["n_tokens"]
    columns = [pictures["id"], text, pictures["schedule"], pictures["scales"]]
    lengths = pa.table(dict(zip(LENGTHS, columns, strict=True))).filter(good)
    return lengths, pictures.num_rows - lengths.num_rows


@dataclass(frozen=True)
class PlanResult:
    """What `write_plan` did. `counts`: rows = packed + rejected + failed, and figures of the packs."""

    name: str
    state: str
    """fresh (nothing to do), same (a new release of equal lengths: only the receipt was rewritten) or written."""
    counts: Mapping[str, Any]


def write_plan(dataset: Dataset, name: str, op: PackSamples, release: Release) -> PlanResult:
    """Bring pack plan `name` up to date; the caller holds the dataset's lease.

    Raises:
        UserError: the release lacks a column, or not one sample can be packed.
    """
    receipt = dataset.receipt(f"packs.{name}")
    config = {**op.identity(), "version": op.version()}
    if receipt and receipt["config"] == config and receipt["release_digest"] == release.digest:
        return PlanResult(name, "fresh", receipt["counts"])
    lengths, failed = read_lengths(op, release)
    lengths_id = lengths_digest(lengths)
    fingerprint = op.fingerprint(lengths_id)
    state = "same"
    if receipt and receipt["fingerprint"] == fingerprint:
        counts = {**receipt["counts"], "rows": lengths.num_rows + failed, "failed": failed}
    else:
        state, counts = "written", _write(dataset, name, op, fingerprint, lengths, failed)
    document = {
        "fingerprint": fingerprint,
        "lengths_digest": lengths_id,
        "release": release.name,
        "release_digest": release.digest,
        "images": op.images,
        "text": op.text,
        "config": config,
        "commits": {end: dataset.packs(name, fingerprint + end).version() for end in ENDS},
        "counts": counts,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    dataset.write_receipt(f"packs.{name}", document)
    return PlanResult(name, state, counts)


def _write(
    dataset: Dataset, name: str, op: PackSamples, fingerprint: str, lengths: pa.Table, failed: int
) -> dict[str, Any]:
    packs, rejected, budget = pack_lengths(op, lengths)
    if not packs.num_rows:
        raise UserError(
            f"none of {lengths.num_rows + failed} rows can be packed: {rejected.num_rows} are longer than "
            f"{op.token_cap} tokens, {failed} have no tokens",
            where=f"packs.{name}",
            next=f"raise packs.{name}.token_cap, or run the steps that make the tokens with --retry-errors",
        )
    for data, suffix in zip((packs, rejected), ENDS, strict=True):
        table = dataset.packs(name, fingerprint + suffix)
        parts = [data.slice(start, FILE_PACKS) for start in range(0, data.num_rows, FILE_PACKS)]
        table.commit(data.schema, [write_file(table.uri, part) for part in parts], table.files(), note="pack")
    spent = packs["cost"].to_numpy()
    return {
        "rows": lengths.num_rows + failed,
        "packed": lengths.num_rows - rejected.num_rows,
        "rejected": rejected.num_rows,
        "failed": failed,
        "packs": packs.num_rows,
        "tokens": pc.sum(packs["tokens"]).as_py(),
        "pairs": pc.sum(packs["pairs"]).as_py(),
        "budget": budget,
        "fill": round(pc.mean(packs["tokens"]).as_py() / op.token_cap, 4),
        "balance": round(float(spent.mean() / spent.max()), 4),
    }


@dataclass(frozen=True)
class PackPlan:
    """A finished plan, for readers: its receipt, and its packs in pack_id order."""

    dataset_uri: str
    name: str
    receipt: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Identity of the packs: equal lengths and config give an equal one."""
        return self.receipt["fingerprint"]

    def packs(self) -> pa.Table:
        """All packs, schema `PACKS`; about 9 bytes per sample in memory."""
        table = Dataset(self.dataset_uri).packs(self.name, self.fingerprint)
        table.require(self.receipt["commits"].get("", -1))
        return read_files(table.uri, table.files())


def open_plan(dataset_uri: str, name: str) -> PackPlan:
    """Plan `name` of a dataset.

    Raises:
        UserError: there is none.
    """
    receipt = Dataset(dataset_uri).receipt(f"packs.{name}")
    if receipt is None:
        raise UserError(f"no pack plan {name!r}", where=dataset_uri, next="nextloom pack RECIPE")
    return PackPlan(dataset_uri, name, receipt)
