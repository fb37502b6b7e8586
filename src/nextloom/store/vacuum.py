"""Vacuum: delete files that nothing names any more. Never done unasked, never what a release lists.

A file below a dataset stays when it is

    - in the newest version of a table that the recipe as it is now, a receipt or a pack plan names
    - in the file list of any release
    - a log entry of such a table, or one of the dataset's documents
    - younger than `older_than` hours, since a reader may be at it
    - of a name that we do not write, no regular file, or behind a link

All else goes: files that a kill left uncommitted, files that a compaction or a retry replaced, and whole columns of
fingerprints that neither the recipe, the last run nor a release uses (flip the configuration back, and they are
computed anew). What an unfinished run of the recipe has committed stays. While a receipt or a release cannot be read,
what it names is not known, and nothing is deleted.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import pyarrow.fs as pafs

from nextloom.inside import folder
from nextloom.io import filesystem, is_uri, join
from nextloom.store.copies import COPIES
from nextloom.store.dataset import Dataset
from nextloom.store.files import FILE_NAME
from nextloom.store.log import LOG, LOG_NAME
from nextloom.store.release import all_releases

TABLES = {"rows": 0, "gone": 0, "columns": 2, "packs": 2, COPIES: 1}
"""Folder -> how many folders deep its tables lie."""
Stamp = tuple[int, int, int]
"""Inode, size and time of a file's last change: another file under the same name has another."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Files of one table that nothing names."""

    table: str
    """Path below the dataset."""
    dead: bool
    """Nothing names the table itself: its log goes too."""
    files: Mapping[str, Stamp]
    """Paths below the dataset, and what was there when they were listed."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(size for _, size, _ in self.files.values())


def find_garbage(dataset: Dataset, wanted: Mapping[str, str], older_than: float = 1.0) -> list[Garbage]:
    """What a vacuum would delete; writes nothing.

    Args:
        dataset: which.
        wanted: step -> fingerprint of the columns that the recipe wants now.
        older_than: hours since a file's last change.

    Raises:
        Damaged: a receipt or release cannot be read, so what it names is not known.
    """
    live = {*live_tables(dataset), *(f"columns/{step}/{fingerprint}" for step, fingerprint in wanted.items())}
    named = released_files(dataset)
    for table in live:
        named |= {f"{table}/{file.path}" for file in dataset.table(table).files()}
    named |= {f"{COPIES}/{path}" for path in named if path.startswith(("rows/", "gone/"))}
    limit = time.time() - older_than * 3600
    found: dict[str, dict[str, Stamp]] = {}
    young: set[str] = set()
    for path, stamp in our_files(dataset):
        table = _table_of(path)
        if path in named or (table in live and f"/{LOG}/" in path):
            continue
        if stamp[2] / 1e9 > limit:
            young.add(table)
        else:
            found.setdefault(table, {})[path] = stamp
    out = []
    for table, files in sorted(found.items()):
        unnamed = not any(name.startswith(f"{table}/") for name in named)
        dead = unnamed and table not in live and not table.startswith(f"{COPIES}/")
        if not dead or table not in young:  # half a log would be no table
            out.append(Garbage(table, dead, dict(sorted(files.items()))))
    return out


def vacuum(dataset: Dataset, garbage: list[Garbage]) -> list[str]:
    """Delete what `find_garbage` found; the caller holds the lease.

    Returns:
        Paths below the dataset that were deleted. What was replaced since the listing is left.
    """
    dataset.guard()
    deleted = []
    for table in garbage:
        deleted += [path for path, stamp in table.files.items() if _delete(dataset, path, stamp)]
        if table.dead:
            _remove_empty(dataset, table.table)
    return deleted


def our_files(dataset: Dataset) -> Iterator[tuple[str, Stamp]]:
    """Every file below the tables' folders that has a name of ours; no link is followed."""
    if is_uri(dataset.uri):
        system, base = filesystem(dataset.uri)
        for kind in TABLES:
            selector = pafs.FileSelector(join(base, kind), allow_not_found=True, recursive=True)
            for info in system.get_file_info(selector):
                path = info.path[len(base) :].lstrip("/")
                if info.type == pafs.FileType.File and is_ours(path):
                    yield path, (0, info.size, int(info.mtime.timestamp() * 1e9))
        return
    above, _, name = dataset.uri.rstrip("/").rpartition("/")
    for kind in TABLES:
        with suppress(FileNotFoundError), folder(above or "/", [name, kind]) as handle:
            for path, info in _walk(handle, kind, 5):
                if is_ours(path):
                    yield path, _stamp(info)


def all_tables(dataset: Dataset) -> list[str]:
    """Every table that has a file or a log entry, by its path below the dataset."""
    found = {_table_of(path) for path, _ in our_files(dataset)}
    return sorted(table for table in found if not table.startswith(f"{COPIES}/"))


def is_ours(path: str) -> bool:
    """Whether `path` below a dataset is one that a table's files or log have."""
    kind, *folders, name = path.split("/")
    depth = TABLES.get(kind, -1)
    if folders[depth:] == [LOG] and kind != COPIES:
        return LOG_NAME.match(name) is not None
    return len(folders) == depth and FILE_NAME.match(name) is not None


def _walk(handle: int, path: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files below an opened folder."""
    with os.scandir(handle) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(info.st_mode):
                yield f"{path}/{entry.name}", info
            elif stat.S_ISDIR(info.st_mode) and depth:
                inner = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
                try:
                    yield from _walk(inner, f"{path}/{entry.name}", depth - 1)
                finally:
                    os.close(inner)


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_ino, info.st_size, info.st_mtime_ns


def _delete(dataset: Dataset, path: str, stamp: Stamp) -> bool:
    """Delete one file, by the handle of its folder, if it is the one that was listed."""
    if is_uri(dataset.uri):
        system, base = filesystem(dataset.uri)
        system.delete_file(join(base, path))
        return True
    above, _, name = dataset.uri.rstrip("/").rpartition("/")
    *folders, last = path.split("/")
    with suppress(FileNotFoundError), folder(above or "/", [name, *folders]) as handle:
        info = os.stat(last, dir_fd=handle, follow_symlinks=False)
        if stat.S_ISREG(info.st_mode) and _stamp(info) == stamp:
            os.unlink(last, dir_fd=handle)
            return True
    return False


def _remove_empty(dataset: Dataset, table: str) -> None:
    """Take away the folders of a table in which nothing is left."""
    if is_uri(dataset.uri):
        return
    above, _, name = dataset.uri.rstrip("/").rpartition("/")
    for path in (f"{table}/{LOG}", table, table.rpartition("/")[0]):
        *folders, last = path.split("/")
        with suppress(OSError), folder(above or "/", [name, *folders]) as handle:  # not empty, or a link
            if folders or last not in TABLES:
                os.rmdir(last, dir_fd=handle)


def _table_of(path: str) -> str:
    """``rows``, ``columns/<step>/<fingerprint>`` or ``packs/<name>/<fingerprint>`` of a path below the dataset."""
    parts = path.split("/")
    return "/".join(parts[: TABLES[parts[0]] + 1])


def live_tables(dataset: Dataset) -> Iterator[str]:
    """Tables that a receipt or a pack plan names.

    Raises:
        Damaged: a receipt cannot be read.
    """
    yield from ("rows", "gone")
    for name in dataset.documents.names("receipts"):
        step = name.removeprefix("receipts/").removesuffix(".json")
        receipt = dataset.receipt(step, strict=True) or {}
        fingerprint = receipt.get("fingerprint")
        if fingerprint is None:
            continue  # of the source: it names units
        if step.startswith("packs."):
            plan = step.removeprefix("packs.")
            yield from (f"packs/{plan}/{fingerprint}", f"packs/{plan}/{fingerprint}-rejected")
        else:
            yield f"columns/{step}/{fingerprint}"


def released_files(dataset: Dataset) -> set[str]:
    """Files, below the dataset, that any release lists.

    Raises:
        Damaged: a release cannot be read.
    """
    named: set[str] = set()
    for release in all_releases(dataset.uri):
        named |= {f"{table}/{file.path}" for table, files in release.files().items() for file in files}
    return named
