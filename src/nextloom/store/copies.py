"""The second copy of what nothing could make anew: the rows (the only map from id to key) and the tombstones.

    copies/rows/part-*.parquet   every file of the table, byte by byte; written before the commit that names it
    copies/rows.json             version and file list of the table; written after each commit

So a log that lost its newest entries is known by its version, and files, log and copy can be restored from one
another, with the same names: every id, receipt and release stays what it was. A kill between a commit and the document
leaves a document that is one version behind, which is no damage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from nextloom.documents import Folder
from nextloom.errors import Damaged
from nextloom.inside import folder
from nextloom.io import filesystem, is_uri, join
from nextloom.store.files import FILE_NAME, File, file_problem, get_file, put_file
from nextloom.store.log import LOG, LOG_NAME, entries_problems
from nextloom.store.records import check_copies
from nextloom.store.table import Table

COPIES = "copies"
RESTORE = "nextloom rebuild RECIPE source"


@dataclass(frozen=True)
class Known:
    """What the second copy says of a table."""

    version: int
    files: tuple[File, ...]


class KeptTable(Table):
    """A table with a second copy: each read compares the log with it, each commit brings it up to date."""

    def __init__(
        self,
        dataset_uri: str,
        name: str,
        guard: Callable[[], int] | None = None,
        seen: MutableMapping[str, int] | None = None,
    ) -> None:
        super().__init__(join(dataset_uri, name), guard, seen)
        self.copies_uri = join(dataset_uri, COPIES, name)
        self._documents, self._name = Folder(dataset_uri), f"{COPIES}/{name}.json"

    def files(self) -> list[File]:
        """Files of the newest version, sorted by id.

        Raises:
            Damaged: the log cannot be read, or is not the one that was committed.
        """
        version, found = self.snapshot()
        try:
            known = self.known()
        except Damaged:
            known = None  # `verify --all` tells; the next commit writes it anew
        if known and (problem := _difference(version, found, known)):
            raise Damaged(f"the log of this table {problem}", where=f"{self.uri}/{LOG}", next=RESTORE)
        return found

    def known(self) -> Known | None:
        """What the second copy says; None before the first commit.

        Raises:
            Damaged: its document cannot be read.
        """
        document = self._documents.read(self._name)
        if document is None:
            return None
        return Known(*check_copies(document, join(self._documents.uri, self._name)))

    def commit(self, schema: pa.Schema, add: Sequence[File], remove: Sequence[File] = (), note: str = "") -> None:
        for file in add:
            self.copy(file)
        super().commit(schema, add, remove, note)
        self.note()

    def copy(self, file: File) -> bool:
        """Bring the copy of one file up to date; False when it was."""
        if not file_problem(self.copies_uri, file):
            return False
        _remove(self.copies_uri, file.path)
        put_file(self.copies_uri, file.path, get_file(self.uri, file.path))
        return True

    def put_back(self, file: File) -> None:
        """Put the copy of a lost or damaged file in its place."""
        raw = get_file(self.copies_uri, file.path)
        _remove(self.uri, file.path)
        put_file(self.uri, file.path, raw)

    def note(self) -> None:
        """Write what the log holds into the second copy's document."""
        version, found = self.snapshot()
        self._documents.write(self._name, {"version": version, "files": [file.as_dict() for file in found]})


def copy_problems(table: KeptTable) -> list[tuple[str, str]]:
    """(path, what is wrong) of the second copy of a sound table; a copy that a kill left behind is none."""
    try:
        known = table.known()
    except Damaged as damage:
        return [(damage.where or "", damage.what)]
    if known is None:
        return [(f"{table.copies_uri}.json", "is lost")] if table.exists() else []
    wrong = ((file, file_problem(table.copies_uri, file)) for file in known.files)
    return [(join(table.copies_uri, file.path), problem) for file, problem in wrong if problem]


def restore(table: KeptTable, schema: pa.Schema) -> list[str]:
    """Bring files, log and second copy of a table back from one another; the caller holds the lease.

    Returns:
        What was done, a line each; [] when all was sound.

    Raises:
        Damaged: something is lost in both places.
    """
    try:
        known = table.known()
    except Damaged:
        known = None
    try:
        version, files = table.snapshot()
        good = not any(entries_problems(table.uri)) and not (known and _difference(version, files, known))
    except Damaged:
        version, files, good = -1, [], False
    if known is None and not table.exists():
        return []
    if not good:
        if known is None:
            raise Damaged(
                "neither the log of this table nor its copy can be read",
                where=table.uri,
                next=f"bring {table.uri} or {table.copies_uri}.json back from a backup",
            )
        files = list(known.files)
    done, lost = [], []
    for file in files:
        problem, copied = file_problem(table.uri, file), file_problem(table.copies_uri, file)
        if problem and copied:
            lost.append(file.path)
        elif problem:
            table.put_back(file)
            done.append(f"{join(table.uri, file.path)} {problem}: restored from its copy")
        elif copied and table.copy(file):
            done.append(f"{join(table.copies_uri, file.path)} {copied}: copied again")
    if lost:
        raise Damaged(
            f"lost here and in {table.copies_uri}; {len(lost)} files are",
            where=join(table.uri, lost[0]),
            next="bring one of the two back from a backup, then " + RESTORE,
        )
    if not good:
        drop_log(table)
        table.commit(schema, files, note="restore")
        done.append(f"{table.uri}/{LOG}: written anew with {len(files):,} files")
    elif known is None:
        done.append(f"{table.copies_uri}.json: written anew")
    table.note()
    return done


def drop_log(table: Table, checkpoints_only: bool = False) -> None:
    """Delete the log of a table, or only its checkpoints, which Delta can do without; no data file is touched."""
    table.forget()
    if is_uri(table.uri):
        system, base = filesystem(join(table.uri, LOG))
        for info in system.get_file_info(_selector(base)):
            if not checkpoints_only or "checkpoint" in info.base_name:
                system.delete_file(info.path)
        return
    if not os.path.isdir(join(table.uri, LOG)):
        return
    with folder(table.uri, [LOG]) as handle:
        for name in sorted(os.listdir(handle)):
            if LOG_NAME.match(name) and (not checkpoints_only or "checkpoint" in name):
                os.unlink(name, dir_fd=handle)
        os.fsync(handle)


def _selector(base: str):
    import pyarrow.fs as pafs

    return pafs.FileSelector(base, allow_not_found=True)


def _difference(version: int, files: Sequence[File], known: Known) -> str:
    """How a log differs from what was committed; "" when it does not, or is newer than the copy."""
    if version < known.version:
        lost = "is lost" if version < 0 else f"ends at entry {version}"
        return f"{lost}; entry {known.version} was committed"
    if version == known.version and {f.path for f in files} != {f.path for f in known.files}:
        return "does not name the files that were committed"
    return ""


def _remove(table_uri: str, name: str) -> None:
    """Delete one file of a table, if it is there; never what a link leads to."""
    assert FILE_NAME.match(name), name
    try:
        if is_uri(table_uri):
            system, base = filesystem(table_uri)
            system.delete_file(join(base, name))
        else:
            with folder(table_uri) as handle:
                os.unlink(name, dir_fd=handle)
    except FileNotFoundError:
        return
