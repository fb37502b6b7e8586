"""Is a release what it says? Every token file's pages and lengths are checked, and a sample of rows is encoded anew.

    pages       each Parquet page of the release's files against its checksum
    lengths     every row: bytes against the schedule, indices below the codebook's size
    encoding    a hashed sample: the picture is decoded, resized and encoded as the step does, and compared byte by byte
    coherence   the same rows: each stored target is the nearest code of what the stored inputs before it left

`verify` reads only. `mend` takes what differs out of the column, so that the next run does it again. The codes of a
picture are equal on one kind of processor, so verify where you extracted, or expect a few
rows whose codes tie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nextloom import pixels
from nextloom.content import Content, ContentError
from nextloom.errors import UserError
from nextloom.hashing import hash64
from nextloom.io import filesystem, join
from nextloom.op import Row
from nextloom.pipelines.recipe import Recipe
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files, write_file
from nextloom.store.release import Release, mark_broken
from nextloom.tokenize.image_tokens import ImageTokens
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule, tokens
from nextloom.tokenize.tokenizer_config import INDEX_DTYPE, read_config, unpack_indices
from nextloom.tokenize.tokenizer_config import digest as tokenizer_digest

SIDES = ("target", "input")
AT_ONCE = 4096


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    column: str
    check: str
    """pages, lengths, encoding or coherence."""
    key: str
    """Of the row, or the file for pages."""
    what: str
    id: int | None = None
    """Of the row; None for a file."""


@dataclass
class Verified:
    """What was looked at, and what was found."""

    release: str
    files: int = 0
    rows: int = 0
    sampled: int = 0
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(recipe: Recipe, release: Release, sample: int = 1000, seed: int = 0) -> Verified:
    """Check the token columns of a release.

    Args:
        recipe: has the steps of these columns, with the tokenizer's folder.
        release: what is checked.
        sample: rows per column that are encoded anew, chosen by a hash of id and `seed`.
        seed: another one looks at other rows.

    Raises:
        UserError: the release has no token column, or the recipe's tokenizer is not the one that made it.
    """
    out = Verified(release.name)
    steps = [name for name, column in release.columns.items() if column["op"] == ImageTokens.name]
    if not steps:
        raise UserError(f"release {release.name} has no column of image_tokens", next="name another: --release NAME")
    for step in steps:
        op = _op(recipe, release, step)
        broken = list(_pages(release, step, out))
        out.findings += broken
        if broken:
            continue  # what cannot be read cannot be compared
        out.findings += _lengths(release, step, op, out)
        out.findings += _encoded(release, step, op, sample, seed, out)
    return out


def mend(recipe: Recipe, dataset: Dataset, release: Release, findings: Sequence[Finding]) -> int:
    """Take broken files and differing rows out of their columns; the caller holds the lease.

    The release stays as it is, and is marked as broken; the rows are missing now, so a run does them again, and what
    is released then is a new version.

    Returns:
        How many files were replaced or removed.
    """
    replaced = 0
    for step in {finding.column for finding in findings}:
        mine = [finding for finding in findings if finding.column == step]
        broken, ids = {f.key for f in mine if f.id is None}, pa.array(sorted({f.id for f in mine if f.id is not None}))
        table = dataset.column(step, release.columns[step]["fingerprint"])
        gone = [file for file in table.files() if file.path in broken]
        kept = []
        for file in table.files():
            if file.path in broken or not len(ids):
                continue
            data = read_files(table.uri, [file])
            good = data.filter(pc.invert(pc.is_in(data["id"], ids)))
            if good.num_rows < data.num_rows:
                gone.append(file)
                kept += [write_file(table.uri, good)] if good.num_rows else []
        if gone:
            table.commit(recipe.steps[step].table_schema(), kept, gone, note="mend")
        replaced += len(gone)
    if findings:
        mark_broken(dataset, release, [asdict(finding) for finding in findings])
    return replaced


def _op(recipe: Recipe, release: Release, step: str) -> ImageTokens:
    op = recipe.steps.get(step)
    if not isinstance(op, ImageTokens):
        raise UserError(f"release {release.name} has tokens of step {step!r}, this recipe does not", where="steps")
    here, there = tokenizer_digest(op.tokenizer), release.columns[step]["config"]["tokenizer"]
    if here != there:
        raise UserError(
            f"{op.tokenizer} has digest {here}; release {release.name} was made by {there}",
            where=f"steps.{step}.tokenizer",
            next=f"--set steps.{step}.tokenizer=FOLDER of the tokenizer that made it",
        )
    for name, value in op.identity().items():
        was = release.columns[step]["config"].get(name)
        if name not in ("tokenizer", "reads") and was != value:
            raise UserError(
                f"{name} is {value!r}; release {release.name} was made with {was!r}", where=f"steps.{step}.{name}"
            )
    return op


def _pages(release: Release, step: str, out: Verified) -> Iterator[Finding]:
    spec = release.document["columns"][step]
    system, base = filesystem(join(release.dataset_uri, spec["table"]))
    for file in spec["files"]:
        out.files += 1
        try:
            with system.open_input_file(join(base, file["path"])) as handle:
                reader = pq.ParquetFile(handle, page_checksum_verification=True)
                for group in range(reader.metadata.num_row_groups):
                    reader.read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            yield Finding(step, "pages", file["path"], str(error).splitlines()[0])


def _lengths(release: Release, step: str, op: ImageTokens, out: Verified) -> Iterator[Finding]:
    codes = read_config(op.tokenizer).codes
    for start in range(0, len(release.ids), AT_ONCE):
        ids = release.ids[start : start + AT_ONCE]
        keys = release.rows(ids)["key"].to_pylist()
        for key, row in zip(keys, release.column(step, ids=ids).to_pylist(), strict=True):
            out.rows += 1
            if row["error"] is None and (problem := _length_problem(row, codes)):
                yield Finding(step, "lengths", key, problem, row["id"])


def _length_problem(row: dict[str, Any], codes: int) -> str:
    wanted = tokens(schedule(FINAL_GRIDS[row["schedule"]], row["scales"]))
    if row["n_tokens"] != wanted:
        return f"n_tokens is {row['n_tokens']}, its schedule has {wanted}"
    for side in SIDES:
        size = wanted * row["draws"] * INDEX_DTYPE.itemsize
        if len(row[side]) != size:
            return f"{side} has {len(row[side])} bytes, {size} are due"
        if (largest := int(unpack_indices(row[side]).max())) >= codes:
            return f"{side} holds code {largest} of a codebook of {codes}"
    return ""


def _encoded(release: Release, step: str, op: ImageTokens, sample: int, seed: int, out: Verified) -> Iterator[Finding]:
    ids = release.ids
    chosen = np.sort(ids[np.argsort(hash64(ids, "verify", seed), kind="stable")[:sample]])
    if not len(chosen):
        return
    op.setup()
    content = Content()
    stored = release.column(step, ids=chosen).to_pylist()
    for item, row in zip(release.rows(chosen).to_pylist(), stored, strict=True):
        out.sampled += 1
        if row["error"] is not None:
            continue
        try:
            rgb = pixels.decode(content.fetch(item), item.get("frame") or 0)
        except (OSError, ContentError, pixels.PictureError) as error:
            what = f"the picture cannot be read any more: {error}"
            yield Finding(step, "encoding", item["key"], what, item["id"])
            continue
        fresh = op.measure(Row(item["id"], item["key"], pixels=rgb))
        for side in SIDES:
            if fresh[side] != row[side]:
                what = f"{side} differs{_first(fresh[side], row[side])}"
                yield Finding(step, "encoding", item["key"], what, item["id"])
        if at := _incoherent(op, rgb, row):
            yield Finding(step, "coherence", item["key"], at, item["id"])


def _first(fresh: bytes, stored: bytes) -> str:
    if len(fresh) != len(stored):
        return f": {len(stored)} bytes, encoded anew {len(fresh)}"
    a, b = unpack_indices(fresh), unpack_indices(stored)
    places = np.flatnonzero(a != b)
    return f" at {len(places)} of {len(a)} positions, first at {places[0]}: {b[places[0]]}, encoded anew {a[places[0]]}"


def _incoherent(op: ImageTokens, rgb: np.ndarray, row: dict[str, Any]) -> str:
    """Where a stored target is not the nearest code of what the stored inputs left; "" if nowhere."""
    grids = schedule(FINAL_GRIDS[row["schedule"]], row["scales"])
    for draw in range(row["draws"]):
        part = slice(draw * row["n_tokens"], (draw + 1) * row["n_tokens"])
        inputs, targets = (unpack_indices(row[side])[part] for side in ("input", "target"))
        wrong = np.flatnonzero(op.targets_of(rgb, grids, inputs) != targets)
        if len(wrong):
            return f"draw {draw}: target {wrong[0]} is not the nearest code of what the inputs before it left"
    return ""
