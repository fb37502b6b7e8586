"""Is a release what it says? Its files are read whole, its tokens are checked, and a sample of rows is encoded anew.

    pages       each Parquet page of the release's files against its checksum: rows, selection and every column
    lengths     every row of tokens: bytes against the schedule, indices below the codebook's size
    tokenizer   the same rows: the digest that the row names is the one that the release names
    picture     a hashed sample: its file can still be read; `mend` leaves such rows alone, their tokens may be sound
    encoding    the same sample: the picture is decoded, resized and encoded as the step does, and compared byte by byte
    coherence   the same rows: each stored target is the nearest code of what the stored inputs before it left

`verify` reads only. `mend` takes what differs out of the column, so that the next run does it again. The codes of a
picture are equal on one kind of processor, so verify where you extracted, or expect a few rows whose codes tie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from nextloom.op import Row, attempt
from nextloom.pipelines.recipe import Graph, Recipe
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files, write_file
from nextloom.store.release import Release, mark_broken
from nextloom.tokenize.image_tokens import ImageTokens
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule, tokens
from nextloom.tokenize.tokenizer_config import INDEX_DTYPE, read_config, unpack_indices
from nextloom.tokenize.tokenizer_config import digest as tokenizer_digest

SOURCE = "source"
"""What a finding in the source's table of rows calls its column; no step may have this name."""
SIDES = ("target", "input", "clean")
AT_ONCE, TOGETHER = 4096, 64
"""Rows in memory: their tokens, and their pictures' files."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    column: str
    check: str
    """pages, lengths, tokenizer, picture, encoding or coherence."""
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
    """Check the files of a release and its token columns.

    Args:
        recipe: has the steps of these columns, with the tokenizer's folder.
        release: what is checked.
        sample: rows per column that are encoded anew, chosen by a hash of id and `seed`.
        seed: another one looks at other rows.

    Raises:
        UserError: the recipe, its tokenizer or the program is not what made the tokens.
    """
    out = Verified(release.name)
    ops = {name: _op(recipe, release, name) for name, c in release.columns.items() if c["op"] == ImageTokens.name}
    tables = _tables(release)
    broken = {name for name, table in tables.items() if _broken(release, name, table, out)}
    needed = {name for name in tables if name not in release.columns}  # rows and selection
    for step, op in ops.items():
        if broken & {*needed, step}:
            continue  # what cannot be read cannot be compared
        out.findings += _whole(release, step, op, out)
        differing = {finding.id for finding in out.findings if finding.column == step}
        chosen = np.sort(release.ids[np.argsort(hash64(release.ids, "verify", seed), kind="stable")[:sample]])
        if Graph(recipe)[step].content not in broken:
            out.findings += _encoded(recipe, release, step, chosen, differing, out)
    return out


def mend(recipe: Recipe, dataset: Dataset, release: Release, findings: Sequence[Finding]) -> int:
    """Take broken files and differing rows out of their columns; the caller holds the lease.

    Rows whose picture cannot be read are left alone: that says nothing of their tokens.

    The release stays as it is, and is marked as broken; the rows are missing now, so a run does them again, and what
    is released then is a new version.

    Returns:
        How many files were replaced or removed.

    Raises:
        UserError: the table of rows is damaged, which is no column that could be made again; or the recipe lacks
            the step of a column.
    """
    findings = [finding for finding in findings if finding.check != "picture"]
    if lost := next((finding.key for finding in findings if finding.column == SOURCE), None):
        table = join(release.dataset_uri, release.document["rows"]["table"])
        raise UserError(
            "the table of rows is damaged, and no run makes it again",
            where=join(table, lost),
            next="nextloom rebuild RECIPE source restores it from its copy",
        )
    damaged = sorted({finding.column for finding in findings})
    if unknown := [step for step in damaged if step not in recipe.steps]:
        raise UserError(f"release {release.name} has a column {unknown[0]!r}, this recipe does not", where="steps")
    replaced, tables = 0, _tables(release)
    for step in damaged:
        mine = [finding for finding in findings if finding.column == step]
        broken, ids = {f.key for f in mine if f.id is None}, pa.array(sorted({f.id for f in mine if f.id is not None}))
        table = dataset.column(step, tables[step]["table"].rpartition("/")[2])
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
    made, now = release.columns[step]["version"], op.version()
    if made != now:
        raise UserError(
            f"this program extracts by version {now}; release {release.name} was made by {made}",
            where=f"steps.{step}",
            next="nextloom run RECIPE makes these tokens anew; verify the old ones with the program that made them",
        )
    for name, value in op.identity().items():
        was = release.columns[step]["config"].get(name)
        if name not in ("tokenizer", "reads") and was != value:
            raise UserError(
                f"{name} is {value!r}; release {release.name} was made with {was!r}", where=f"steps.{step}.{name}"
            )
    return op


def _tables(release: Release) -> dict[str, Mapping[str, Any]]:
    """Every table whose files the release names (rows, columns, selection and its parents), by step or `SOURCE`."""
    document = release.document
    tables = {**document["columns"]}
    others, selection = [document["rows"]], document["selection"]
    while selection:
        others.append(selection)
        selection = selection.get("parents")
    for spec in others:
        place, _, rest = spec["table"].partition("/")
        tables.setdefault(rest.partition("/")[0] if place == "columns" else SOURCE, spec)
    return tables


def _broken(release: Release, column: str, table: Mapping[str, Any], out: Verified) -> bool:
    found = list(_pages(release, column, table, out))
    out.findings += found
    return bool(found)


def _pages(release: Release, column: str, table: Mapping[str, Any], out: Verified) -> Iterator[Finding]:
    system, base = filesystem(join(release.dataset_uri, table["table"]))
    for file in table["files"]:
        out.files += 1
        try:
            with system.open_input_file(join(base, file["path"])) as handle:
                reader = pq.ParquetFile(handle, page_checksum_verification=True)
                if reader.metadata.num_rows != file["rows"]:
                    what = f"{reader.metadata.num_rows:,} rows, the release lists {file['rows']:,}"
                    yield Finding(column, "pages", file["path"], what)
                for group in range(reader.metadata.num_row_groups):
                    reader.read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            yield Finding(column, "pages", file["path"], str(error).splitlines()[0])


def _whole(release: Release, step: str, op: ImageTokens, out: Verified) -> Iterator[Finding]:
    """What every row can be asked without its picture."""
    codes, made = read_config(op.tokenizer).codes, release.columns[step]["config"]["tokenizer"]
    for start in range(0, len(release.ids), AT_ONCE):
        ids = release.ids[start : start + AT_ONCE]
        keys = release.rows(ids)["key"].to_pylist()
        for key, row in zip(keys, release.column(step, ids=ids).to_pylist(), strict=True):
            out.rows += 1
            if row["error"] is not None:
                continue
            if problem := _length_problem(row, op, codes):
                yield Finding(step, "lengths", key, problem, row["id"])
            elif row["tokenizer"] != made:
                what = f"made by tokenizer {row['tokenizer']}, the release names {made}"
                yield Finding(step, "tokenizer", key, what, row["id"])


def _length_problem(row: dict[str, Any], op: ImageTokens, codes: int) -> str:
    if (row["scales"], row["draws"]) != (op.count, op.draws):
        return f"{row['scales']} scales and {row['draws']} draws, the step says {op.count} and {op.draws}"
    if row["schedule"] not in range(len(FINAL_GRIDS)):
        return f"there is no schedule {row['schedule']}"
    wanted = tokens(schedule(FINAL_GRIDS[row["schedule"]], row["scales"]))
    if row["n_tokens"] != wanted:
        return f"n_tokens is {row['n_tokens']}, its schedule has {wanted}"
    for side in SIDES:
        size = wanted * INDEX_DTYPE.itemsize * ((1 if op.clean else 0) if side == "clean" else row["draws"])
        if len(row[side] or b"") != size:
            return f"{side} has {len(row[side] or b'')} bytes, {size} are due"
        if not size:
            continue
        if (largest := int(unpack_indices(row[side]).max())) >= codes:
            return f"{side} holds code {largest} of a codebook of {codes}"
    return ""


def _encoded(
    recipe: Recipe, release: Release, step: str, chosen: np.ndarray, differing: set[int | None], out: Verified
) -> Iterator[Finding]:
    """What a fresh encoding of `chosen` rows says of them; not of those in `differing`, of which enough is known."""
    op = recipe.steps[step]
    assert isinstance(op, ImageTokens)
    if not len(chosen):
        return
    op.setup()
    for start in range(0, len(chosen), TOGETHER):
        ids = chosen[start : start + TOGETHER]
        pairs = zip(release.rows(ids).to_pylist(), release.column(step, ids=ids).to_pylist(), strict=True)
        due = [(item, row) for item, row in pairs if row["error"] is None and row["id"] not in differing]
        if not due:
            continue
        out.sampled += len(due)
        for (item, row), raw in zip(due, _bytes(recipe, release, step, [item for item, _ in due]), strict=True):
            yield from _compared(step, op, item, row, raw)


def _compared(step: str, op: ImageTokens, item: Mapping[str, Any], row: dict[str, Any], raw: Any) -> Iterator[Finding]:
    """One row against a fresh encoding of its bytes; or why there is none."""
    rgb = raw if isinstance(raw, Exception) else attempt(lambda raw: pixels.decode(raw, item.get("frame") or 0), raw)
    if isinstance(rgb, Exception):
        yield Finding(step, "picture", item["key"], f"the picture cannot be read any more: {rgb}", item["id"])
        return
    fresh = attempt(op.measure, Row(item["id"], item["key"], pixels=rgb))
    if isinstance(fresh, Exception):
        yield Finding(step, "encoding", item["key"], f"the picture gives no tokens any more: {fresh}", item["id"])
        return
    for name in fresh:
        if fresh[name] != row[name]:
            how = _first(fresh[name], row[name]) if name in SIDES else f": {row[name]}, anew {fresh[name]}"
            yield Finding(step, "encoding", item["key"], f"{name} differs{how}", item["id"])
    if at := _incoherent(op, rgb, row):
        yield Finding(step, "coherence", item["key"], at, item["id"])


def _bytes(recipe: Recipe, release: Release, step: str, items: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Bytes of each row, or the exception: from where the source found them, or from the column that brought them."""
    bringing = Graph(recipe)[step].content
    if bringing is None:
        content = Content(recipe.source.door())
        return [attempt(content.fetch, item) for item in items]
    column = getattr(recipe.steps[bringing], "content", "")
    brought = release.column(bringing, [column], np.array([item["id"] for item in items], np.int64))[column].to_pylist()
    return [ContentError(f"column {bringing} has no bytes for it") if raw is None else raw for raw in brought]


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
