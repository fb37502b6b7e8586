"""Vacuum: delete files that nothing names any more. Never done unasked, never what a release lists.

A file below a dataset stays when it is

    - in the newest version of a table that the recipe as it is now, a receipt or a pack plan names
    - in the file list of any release
    - a log entry of such a table, or one of the dataset's documents
    - younger than `older_than` hours, since a reader may be at it

All else goes: files that a kill left uncommitted, files that a compaction or a retry replaced, and whole columns of
fingerprints that neither the recipe, the last run nor a release uses (flip the configuration back, and they are
computed anew). What an unfinished run of the recipe has committed stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from nextloom.io import filesystem, join
from nextloom.store.dataset import Dataset

TABLES = ("rows", "gone", "columns", "packs")


@dataclass(frozen=True, slots=True)
class Garbage:
    """Files of one table that nothing names."""

    table: str
    """Path below the dataset."""
    dead: bool
    """Nothing names the table itself: its log goes too."""
    files: tuple[str, ...]
    """Paths as the dataset's filesystem has them."""
    size: int
    """Bytes."""


def find_garbage(dataset: Dataset, wanted: Mapping[str, str], older_than: float = 1.0) -> list[Garbage]:
    """What a vacuum would delete; writes nothing.

    Args:
        dataset: which.
        wanted: step -> fingerprint of the columns that the recipe wants now.
        older_than: hours since a file's last change.
    """
    live = {*_live_tables(dataset), *(f"columns/{step}/{fingerprint}" for step, fingerprint in wanted.items())}
    named = _released(dataset)
    for table in live:
        at = _table(dataset, table)
        named |= {f"{table}/{file.path}" for file in at.files()}
    system, base = filesystem(dataset.uri)
    limit = time.time() - older_than * 3600
    found: dict[str, list[pafs.FileInfo]] = {}
    young: set[str] = set()
    for kind in TABLES:
        selector = pafs.FileSelector(join(base, kind), allow_not_found=True, recursive=True)
        for info in system.get_file_info(selector):
            path = info.path[len(base) :].lstrip("/")
            table = _table_of(path)
            kept = path in named or (table in live and "/_delta_log/" in f"/{path}")
            if info.type != pafs.FileType.File or kept:
                continue
            if info.mtime.timestamp() > limit:
                young.add(table)
            else:
                found.setdefault(table, []).append(info)
    out = []
    for table, files in sorted(found.items()):
        dead = table not in live and not any(name.startswith(f"{table}/") for name in named)
        if not dead or table not in young:  # half a log would be no table
            out.append(Garbage(table, dead, tuple(f.path for f in files), sum(f.size for f in files)))
    return out


def vacuum(dataset: Dataset, garbage: list[Garbage]) -> None:
    """Delete what `find_garbage` found; the caller holds the lease."""
    dataset.guard()
    system, base = filesystem(dataset.uri)
    for table in garbage:
        for path in table.files:
            system.delete_file(path)
        folder = join(base, table.table)
        left = system.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True))
        if table.dead and not any(info.type == pafs.FileType.File for info in left):
            system.delete_dir(folder)


def _table_of(path: str) -> str:
    """``rows``, ``columns/<step>/<fingerprint>`` or ``packs/<name>/<fingerprint>`` of a path below the dataset."""
    parts = path.split("/")
    return "/".join(parts[:3]) if parts[0] in ("columns", "packs") else parts[0]


def _table(dataset: Dataset, path: str) -> Any:
    kind, *rest = path.split("/")
    if kind == "columns":
        return dataset.column(*rest)
    return dataset.packs(*rest) if kind == "packs" else getattr(dataset, kind)


def _live_tables(dataset: Dataset) -> Iterator[str]:
    """Tables that a receipt or a pack plan names."""
    yield from ("rows", "gone")
    for name in dataset.documents.names("receipts"):
        step = name.removeprefix("receipts/").removesuffix(".json")
        receipt = dataset.receipt(step) or {}
        fingerprint = receipt.get("fingerprint")
        if fingerprint is None:
            continue  # of the source: it names units
        if step.startswith("packs."):
            plan = step.removeprefix("packs.")
            yield from (f"packs/{plan}/{fingerprint}", f"packs/{plan}/{fingerprint}-rejected")
        else:
            yield f"columns/{step}/{fingerprint}"


def _released(dataset: Dataset) -> set[str]:
    """Files, below the dataset, that any release lists."""
    named: set[str] = set()
    for name in dataset.documents.names("releases"):
        document = dataset.documents.read(name) or {}
        specs = [document["rows"], *document["columns"].values()]
        selection = document["selection"]
        while selection:
            specs.append(selection)
            selection = selection.get("parents")
        named |= {f"{spec['table']}/{file['path']}" for spec in specs for file in spec["files"]}
    return named
