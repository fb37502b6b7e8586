"""Is all that a dataset holds what was written? Every live table, log entry, file and document is read whole.

    documents   receipts, releases with their second copies, the lease: readable, and of the right kind
    logs        no entry is missing, each names the files that were committed, none is older than its table's copy
    files       of every live table, and of every release that is not marked as broken: there, with the bytes that
                their names stand for
    numbers     what a log says of a file (rows, failed rows, first and last id) is what the file holds
    ids         no id is in a table twice

Live tables are rows and tombstones, the columns of the recipe and of the receipts, and the pack plans. Reads only; one
file is in memory at a time. Each finding names the command that repairs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from nextloom.errors import UserError
from nextloom.io import join
from nextloom.pipelines.plan import fingerprints_of
from nextloom.pipelines.recipe import Recipe
from nextloom.store.copies import RESTORE, KeptTable, copy_problems
from nextloom.store.dataset import KEPT, Dataset
from nextloom.store.files import File, file_problem, read_ids, repair_command, stored_file, windows
from nextloom.store.lease import holder
from nextloom.store.log import LOG, entries_problems
from nextloom.store.release import COPIES, is_broken, read_release, versions
from nextloom.store.table import Table
from nextloom.store.vacuum import all_tables


@dataclass(frozen=True)
class Damage:
    """One thing that is not what was written."""

    where: str
    """Path or URI of the file or document."""
    what: str
    next: str
    """The command that repairs it."""


@dataclass
class Audit:
    """What was looked at, and what was found."""

    tables: int = 0
    files: int = 0
    documents: int = 0
    findings: list[Damage] = field(default_factory=list)


def audit(recipe: Recipe, dataset: Dataset) -> Audit:
    """Look at everything live in a dataset; writes nothing."""
    out = Audit()
    listed: dict[str, set[File]] = {}
    for damage in _documents(dataset, out, listed):
        out.findings.append(damage)
    for path in live(recipe, dataset):
        out.tables += 1
        files, findings = check_table(dataset.table(path), committed(dataset, path))
        out.files += len(files)
        out.findings += findings
        listed[path] = listed.get(path, set()) - set(files)
    for path, files in sorted(listed.items()):  # what only a release names
        for file in sorted(files, key=lambda each: each.path):
            out.files += 1
            uri = join(dataset.uri, path)
            if problem := file_problem(uri, file):
                out.findings.append(Damage(join(uri, file.path), problem, repair_command(uri)))
    return out


def live(recipe: Recipe, dataset: Dataset) -> list[str]:
    """Paths of the tables that the recipe, a receipt or a pack plan names, and of rows and tombstones."""
    wanted = {*KEPT, *(f"columns/{step}/{mark}" for step, mark in fingerprints_of(recipe, dataset).items())}
    for name in dataset.documents.names("receipts"):
        step = name.removeprefix("receipts/").removesuffix(".json")
        fingerprint = (dataset.receipt(step) or {}).get("fingerprint")
        if fingerprint and step.startswith("packs."):
            plan = step.removeprefix("packs.")
            wanted |= {f"packs/{plan}/{fingerprint}", f"packs/{plan}/{fingerprint}-rejected"}
        elif fingerprint:
            wanted.add(f"columns/{step}/{fingerprint}")
    there = set(all_tables(dataset))
    return sorted(path for path in wanted if path in there or path in KEPT)


def committed(dataset: Dataset, path: str) -> int:
    """The commit that the receipt of a column or pack plan names; -1 when there is none."""
    kind, _, rest = path.partition("/")
    name, _, mark = rest.partition("/")
    if kind == "packs":
        receipt = dataset.receipt(f"packs.{name}")
        own = receipt and mark.startswith(receipt["fingerprint"])
        return receipt["commits"].get(mark.removeprefix(receipt["fingerprint"]), -1) if receipt and own else -1
    receipt = dataset.receipt(name) if kind == "columns" else None
    return receipt["commit"] if receipt and receipt["fingerprint"] == mark else -1


def check_table(table: Table, commit: int = -1) -> tuple[list[File], list[Damage]]:
    """Files of a table, and what is wrong with them and its log, in which `commit` has to be."""
    hint = repair_command(table.uri)
    try:
        table.require(commit)
        files = table.files()
    except UserError as error:
        return [], [Damage(error.where or table.uri, error.what, error.next or hint)]
    out = [Damage(f"{table.uri}/{LOG}/{name}", what, hint) for name, what in entries_problems(table.uri)]
    for file in files:
        if problem := file_problem(table.uri, file) or _numbers_problem(table, file):
            out.append(Damage(join(table.uri, file.path), problem, hint))
    if not out:
        out += [Damage(table.uri, what, hint) for what in _twice(table, files)]
    if isinstance(table, KeptTable):
        out += [Damage(where, f"(second copy) {what}", RESTORE) for where, what in copy_problems(table)]
    return files, out


def _numbers_problem(table: Table, file: File) -> str:
    stored = stored_file(table.uri, file.path)
    return "" if stored == file else f"holds other rows than the log says: {_numbers(stored)}, not {_numbers(file)}"


def _numbers(file: File) -> str:
    return f"{file.rows:,} rows ({file.errors:,} failed) of ids {file.min_id} to {file.max_id}"


def _twice(table: Table, files: list[File]) -> Iterator[str]:
    for low, high in windows(files):
        ids = np.sort(read_ids(table.uri, files, low, high))
        if (same := ids[1:][ids[1:] == ids[:-1]]).size:
            yield f"{same.size:,} ids are there twice, the first is {same[0]}"


def _documents(dataset: Dataset, out: Audit, listed: dict[str, set[File]]) -> Iterator[Damage]:
    """Damaged documents; fills `listed` with the files of every release, by table."""
    folder = dataset.documents
    for name in folder.names("receipts"):
        out.documents += 1
        step = name.removeprefix("receipts/").removesuffix(".json")
        verb = "pack" if step.startswith("packs.") else "run"
        try:
            dataset.receipt(step, strict=True)
        except UserError as error:
            yield Damage(error.where or name, error.what, f"nextloom {verb} RECIPE writes it anew")
    for name, _ in versions(folder):
        out.documents += 2
        hint = f"nextloom rebuild RECIPE {name}"
        try:
            release = read_release(dataset.uri, name)
            if not release or is_broken(dataset, release):
                continue  # its files are known to be damaged: a later version holds the same
            for table, files in release.files().items():
                listed.setdefault(table, set()).update(files)
            if folder.read(f"{COPIES}/{name}.json") != release.document:
                yield Damage(join(dataset.uri, COPIES, f"{name}.json"), "(second copy) is lost or another", hint)
        except UserError as error:
            yield Damage(error.where or name, error.what, hint)
    try:
        out.documents += holder(folder) is not None
    except UserError as error:
        yield Damage(error.where or "lease", error.what, error.next or "")
