"""Rebuild: bring a damaged part of a dataset back, from a second copy or from its inputs.

    source       rows and tombstones, file by file and log, from their second copy: ids come back equal
    a release    its manifest from the second copy; without one, the next `release` publishes a new version
    a step       damaged files leave the column, and the next run makes their rows anew; a damaged log is written anew
                 where the files are provably all there (their digest is in the receipt), else the column starts empty
    a pack plan  is dropped, and `pack` makes it anew

A column is a function of its inputs, so what comes back is equal. Releases that list a dropped file are marked as
broken: the same content will be a new version, of sound files.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyarrow as pa

from nextloom.errors import Damaged, UserError, did_you_mean
from nextloom.io import is_uri, join
from nextloom.pipelines.audit import Damage, check_table, committed
from nextloom.pipelines.plan import fingerprints_of
from nextloom.pipelines.recipe import SOURCE, Recipe
from nextloom.store.copies import KeptTable, drop_log, restore
from nextloom.store.dataset import KEPT, Dataset
from nextloom.store.files import FILE_NAME, file_problem, stored_file
from nextloom.store.log import log_problem, named_files
from nextloom.store.release import COPIES, all_releases, mark_broken, read_release, versions
from nextloom.store.rowset import names_digest
from nextloom.store.table import Table
from nextloom.store.vacuum import all_tables, our_files


def rebuild(recipe: Recipe, dataset: Dataset, name: str) -> list[str]:
    """Repair `source`, a step, a pack plan or a release version; the caller holds the lease.

    Returns:
        What was done, a line each; [] when nothing is damaged.

    Raises:
        UserError: an unknown name.
        Damaged: what nothing could make anew is lost in both places.
    """
    if name == SOURCE:
        kept = ((dataset.table(path), schema) for path, schema in KEPT.items())
        return [line for table, schema in kept if isinstance(table, KeptTable) for line in restore(table, schema)]
    if name in recipe.packs:
        return _drop_packs(dataset, name)
    if name in dict(versions(dataset.documents)):
        return _release(dataset, name)
    if name not in recipe.steps:
        known = [SOURCE, *recipe.steps, *recipe.packs, *dict(versions(dataset.documents))]
        raise UserError(f"there is no {name[:100]!r} to rebuild; {did_you_mean(name, known)}")
    marks = {fingerprints_of(recipe, dataset).get(name), (dataset.receipt(name) or {}).get("fingerprint")} - {None}
    paths = [path for path in all_tables(dataset) if path in {f"columns/{name}/{mark}" for mark in marks}]
    schema = recipe.steps[name].table_schema()
    return [line for path in paths for line in _column(dataset, path, schema, dataset.receipt(name))]


def _column(dataset: Dataset, path: str, schema: pa.Schema, receipt: dict[str, Any] | None) -> list[str]:
    table = dataset.table(path)
    files, damages = check_table(table, committed(dataset, path))
    if not damages:
        return []
    bad = [file for file in files if file_problem(table.uri, file)]
    if len(bad) == len(damages):
        table.commit(schema, [], bad, note="rebuild")
        _mark_releases(dataset, path, {file.path for file in bad})
        return [f"{join(table.uri, file.path)}: taken out, a run makes its {file.rows:,} rows anew" for file in bad]
    return _log(dataset, table, path, schema, receipt, damages[0])


def _log(
    dataset: Dataset, table: Table, path: str, schema: pa.Schema, receipt: dict[str, Any] | None, damage: Damage
) -> list[str]:
    """Write the log of a column anew, with the files that are provably its own, else with none."""
    commit = committed(dataset, path)
    if not is_uri(table.uri) and not log_problem(table.uri):
        drop_log(table, checkpoints_only=True)
        with suppress(UserError):
            if not check_table(table, commit)[1]:
                return [f"{damage.where}: {damage.what}; a damaged checkpoint of the log was dropped"]
    names = _proven(dataset, table, path, receipt["files"] if receipt and commit >= 0 else "")
    found, lost = [], set()
    for name in sorted(names):
        try:
            file = stored_file(table.uri, name)
            if file_problem(table.uri, file):
                lost.add(name)
            else:
                found.append(file)
        except (OSError, pa.ArrowException):
            lost.add(name)
    drop_log(table)
    table.commit(schema, found, note="rebuild")
    if receipt and commit >= 0 and found and not lost:
        dataset.write_receipt(receipt["step"], {**receipt, "commit": table.version()})
    elif commit >= 0:
        dataset.guard()
        dataset.documents.delete(f"receipts/{path.split('/')[1]}.json")
    _mark_releases(dataset, path, lost)
    kept = f"with {len(found):,} of its {len(names):,} files" if names else "empty"
    after = "" if found and not lost else "; a run makes the rest anew"
    return [f"{damage.where}: {damage.what}; the log was written anew, {kept}{after}"]


def _proven(dataset: Dataset, table: Table, path: str, digest: str) -> set[str]:
    """Names of the files of a column: all on disk, or those of the readable entries, if its receipt's digest agrees."""
    on_disk = {name.rpartition("/")[2] for name, _ in our_files(dataset) if name.rpartition("/")[0] == path}
    for names in (on_disk, named_files(table.uri)):
        if names_digest(names) == digest and all(map(FILE_NAME.match, names)):
            return names
    return set()


def _mark_releases(dataset: Dataset, path: str, names: set[str]) -> None:
    """Mark the releases that list one of these files; one that cannot be read is left to its own repair."""
    with suppress(Damaged):
        for release in all_releases(dataset.uri):
            if lost := {file.path for file in release.files().get(path, ())} & names:
                mark_broken(dataset, release, [{"column": path, "check": "pages", "key": name} for name in lost])


def _release(dataset: Dataset, name: str) -> list[str]:
    folder, main, copy = dataset.documents, f"releases/{name}.json", f"{COPIES}/{name}.json"
    dataset.guard()
    try:
        release = read_release(dataset.uri, name)
        assert release is not None, "it was listed"
        with suppress(Damaged):
            if folder.read(copy) == release.document:
                return []
        folder.write(copy, release.document)
        return [f"{join(dataset.uri, copy)}: written anew"]
    except Damaged as damage:
        with suppress(Damaged):
            if second := read_release(dataset.uri, name, COPIES):
                folder.write(main, second.document)
                return [f"{damage.where} {damage.what}: restored from its copy"]
        folder.write(f"broken/{name}.json", {"findings": [{"check": "manifest", "what": damage.what}]})
        folder.delete(main)
        folder.delete(copy)
        again = f"nextloom release RECIPE {name.rpartition('-')[0]} publishes a new version"
        return [f"{damage.where} {damage.what}, its copy too: taken away; {again}"]


def _drop_packs(dataset: Dataset, name: str) -> list[str]:
    """Empty every table of a pack plan, and forget its receipt."""
    done = []
    for path in all_tables(dataset):
        if path.startswith(f"packs/{name}/"):
            drop_log(dataset.table(path))
            done.append(f"{join(dataset.uri, path)}: dropped; nextloom pack RECIPE makes it anew")
    dataset.guard()
    dataset.documents.delete(f"receipts/packs.{name}.json")
    return done
