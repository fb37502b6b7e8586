"""From a pack plan and a release to the documents of a step.

Step s takes the packs [s * n, (s + 1) * n) of an endless order: the plan's own, then, epoch after epoch, hashed
permutations of it. Rank r of W takes an arithmetic slice of them. So the whole state of the data is one integer, and
what a step holds does not depend on the number of workers. Token bytes are read by id from the files that the
release lists; the last `CACHED_FILES` files of each column stay in memory, and so does the plan.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from nextloom.errors import UserError
from nextloom.hashing import hash64, uniform
from nextloom.io import join
from nextloom.store.files import File, read_files
from nextloom.store.release import Release
from nextloom.tokenize.documents import Document, Picture, Segment, Text
from nextloom.tokenize.packing import PackPlan
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.text_tokens import ID_DTYPE
from nextloom.tokenize.tokenizer_config import unpack_indices

CACHED_FILES = 64
PICTURE = ["schedule", "scales", "n_tokens", "draws", "target", "input", "tokenizer"]


class TokenColumn:
    """Rows of one released column, by id."""

    def __init__(self, release: Release, step: str, names: list[str]) -> None:
        spec = release.document["columns"][step]
        self._uri, self._names = join(release.dataset_uri, spec["table"]), names
        self._files = [File(**item) for item in spec["files"]]
        self._low, self._high = (np.array([getattr(f, n) for f in self._files]) for n in ("min_id", "max_id"))
        self._load = lru_cache(maxsize=CACHED_FILES)(self._read)

    def row(self, sample: int) -> dict[str, Any]:
        """Values of one row.

        Raises:
            LookupError: the release has no such row.
        """
        for number in np.flatnonzero((self._low <= sample) & (self._high >= sample)).tolist():
            ids, data = self._load(number)
            at = int(np.searchsorted(ids, sample))
            if at < len(ids) and ids[at] == sample:
                return {name: data[name][at].as_py() for name in self._names}
        raise LookupError(f"sample {sample} is in the pack plan, but not in {self._uri}")

    def _read(self, number: int) -> tuple[np.ndarray, pa.Table]:
        data = read_files(self._uri, [self._files[number]], ["id", *self._names]).combine_chunks()
        return data["id"].to_numpy(), data


class PackedData:
    """Documents of a plan.

    Args:
        plan: which samples share a pack.
        release: where their tokens are.
        seed: of the order after the first epoch, and of the dropped captions.
        null_prompt: share of samples whose caption is dropped, by a hash of id, seed and epoch. A plan counts every
            caption, so a pack never grows by it.
    """

    def __init__(self, plan: PackPlan, release: Release, seed: int, null_prompt: float = 0.0) -> None:
        self.plan, self.release, self.seed, self.null_prompt = plan, release, seed, null_prompt
        packs = plan.packs()
        self._offsets = np.cumsum([0, *packs["samples"].combine_chunks().value_lengths().to_pylist()])
        self._samples = packs["samples"].combine_chunks().flatten().to_numpy()
        self._pictures = TokenColumn(release, plan.receipt["images"], PICTURE)
        self._tokenizer = release.columns[plan.receipt["images"]]["config"]["tokenizer"]
        text = plan.receipt["text"]
        self._text = None if text is None else TokenColumn(release, text, ["ids"])
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        """Number of packs."""
        return len(self._offsets) - 1

    def packs_of(self, step: int, count: int, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        """(epoch, pack_id) of the packs that this rank takes in `step`, out of `count` over all ranks.

        Args:
            count: a multiple of `world`.
        """
        assert count % world == 0, f"{count} packs per step are no multiple of {world} workers"
        share = count // world
        first = step * count + rank * share
        places = [divmod(g, len(self)) for g in range(first, first + share)]
        return [(epoch, int(self._order(epoch)[place])) for epoch, place in places]

    def samples(self, pack: int) -> np.ndarray:
        """Sample ids of one pack, int64."""
        return self._samples[self._offsets[pack] : self._offsets[pack + 1]]

    def documents(self, pack: int, epoch: int = 0) -> list[Document]:
        """The training documents of one pack in one epoch."""
        samples = self.samples(pack)
        null = uniform(samples, "null", self.seed, epoch) < self.null_prompt
        return [self.document(int(s), bool(drop), epoch=epoch) for s, drop in zip(samples, null, strict=True)]

    def document(self, sample: int, null: bool = False, caption_of: int | None = None, epoch: int = 0) -> Document:
        """Caption without loss, then the picture as drawn for `epoch`; the caption of `caption_of` when given.

        Raises:
            UserError: the row's codes are not of the tokenizer that the release names.
        """
        segments: list[Segment] = []
        if self._text is not None and not null:
            raw = self._text.row(sample if caption_of is None else caption_of)["ids"]
            segments.append(Text(np.frombuffer(raw, ID_DTYPE), loss=False))
        row = self._pictures.row(sample)
        if row["tokenizer"] != self._tokenizer:
            raise UserError(
                f"sample {sample} was made by tokenizer {row['tokenizer']}, the release names {self._tokenizer}",
                where=self.release.name,
                next="nextloom verify RECIPE --mend, then nextloom run RECIPE",
            )
        grids = schedule(FINAL_GRIDS[row["schedule"]], row["scales"])
        at = (epoch % row["draws"]) * row["n_tokens"]
        read, predicted = (unpack_indices(row[side])[at : at + row["n_tokens"]] for side in ("input", "target"))
        segments.append(Picture(grids, read, predicted))
        return segments

    def _permutation(self, epoch: int) -> np.ndarray:
        packs = np.arange(len(self))
        return packs if epoch == 0 else np.argsort(hash64(packs, "epoch", self.seed, epoch), kind="stable")
