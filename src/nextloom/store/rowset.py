"""Row sets: which ids a step is wanted on, and which it has, read range by range so that memory stays flat.

Work to do is one subtraction, ``wanted - present``: it is resume, growth, and "only what is stale" at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from nextloom.io import join
from nextloom.op import CHILD_BITS, MAX_CHILDREN, digest
from nextloom.store.dataset import Dataset
from nextloom.store.files import File, read_files, read_ids, windows
from nextloom.store.records import as_files
from nextloom.store.table import Table

Range = tuple[int, int]
NONE = np.empty(0, np.int64)


def files_digest(files: Sequence[File]) -> str:
    """Identity of a table's content by its file names: known from the log, no row is read."""
    return names_digest(file.path for file in files)


def names_digest(names: Iterable[str]) -> str:
    """The same by names alone."""
    return digest(sorted(names))


@dataclass(frozen=True)
class RowSet:
    """Ids out of one table: all but `gone`, the children of `parents`, or the rows a Select kept."""

    uri: str
    files: tuple[File, ...]
    digest: str
    kind: Literal["all", "children", "kept"] = "all"
    gone: np.ndarray = field(default_factory=lambda: NONE)
    parents: RowSet | None = None

    def windows(self) -> Iterator[Range]:
        """Id ranges that cover the set."""
        return windows(self.files)

    def ids(self, low: int, high: int) -> np.ndarray:
        """Sorted ids in [low, high]."""
        if self.kind == "kept":
            try:
                data = read_files(self.uri, self.files, ["id", "verdict"], low=low, high=high)
            except LookupError:
                return NONE
            return data["id"].to_numpy()[data["verdict"].to_numpy(zero_copy_only=False) == "kept"]
        ids = read_ids(self.uri, self.files, low, high)
        if self.parents is not None:
            ids = ids[(ids & MAX_CHILDREN) != MAX_CHILDREN]
            return ids[np.isin(ids >> CHILD_BITS, self.parents.ids(low >> CHILD_BITS, high >> CHILD_BITS))]
        return ids[~np.isin(ids, self.gone)] if len(self.gone) else ids

    def all_ids(self) -> np.ndarray:
        """Every id, sorted."""
        return np.concatenate([self.ids(*window) for window in self.windows()] or [NONE])

    def count(self) -> int:
        """Number of rows."""
        if self.kind == "all":
            return sum(f.rows for f in self.files) - len(self.gone)
        return sum(len(self.ids(*window)) for window in self.windows())

    def as_dict(self, dataset_uri: str) -> dict[str, Any]:
        """What a manifest keeps: the file list relative to the dataset, so that a dataset can be moved."""
        return {
            **describe(self.uri, dataset_uri, self.files),
            "kind": self.kind,
            "digest": self.digest,
            "gone": self.gone.tolist(),
            "parents": self.parents.as_dict(dataset_uri) if self.parents else None,
        }

    @classmethod
    def from_dict(cls, dataset_uri: str, spec: Mapping[str, Any]) -> RowSet:
        """The row set that `as_dict` wrote."""
        parents = cls.from_dict(dataset_uri, spec["parents"]) if spec.get("parents") else None
        gone = np.array(spec["gone"], np.int64)
        files = as_files(spec["files"])
        return cls(join(dataset_uri, spec["table"]), files, spec["digest"], spec["kind"], gone, parents)


@dataclass(frozen=True)
class Guess:
    """Rows that a plan foresees: known ids, and `extra` rows of a listing that have no id yet."""

    known: np.ndarray
    extra: int = 0
    digest: None = None

    def windows(self) -> Iterator[Range]:
        if len(self.known):
            yield int(self.known[0]), int(self.known[-1])

    def ids(self, low: int, high: int) -> np.ndarray:
        return self.known[(self.known >= low) & (self.known <= high)]

    def all_ids(self) -> np.ndarray:
        return self.known

    def count(self) -> int:
        return len(self.known) + self.extra


def describe(table_uri: str, dataset_uri: str, files: Sequence[File]) -> dict[str, Any]:
    """A table's path relative to the dataset, and its files."""
    return {
        "table": table_uri.removeprefix(dataset_uri.rstrip("/")).strip("/"),
        "files": [file.as_dict() for file in files],
    }


def source_rows(dataset: Dataset) -> RowSet:
    """The live rows of the source."""
    files = dataset.rows.files()
    identity = digest([files_digest(files), files_digest(dataset.gone.files())])
    return RowSet(dataset.rows.uri, tuple(files), identity, "all", dataset.gone_ids())


def child_rows(table: Table, parents: RowSet) -> RowSet:
    """The children, in the table of an Expand, of the rows it is wanted on."""
    files = table.files()
    return RowSet(table.uri, tuple(files), digest([files_digest(files), parents.digest]), "children", parents=parents)


def missing(wanted: RowSet | Guess, table: Table, *, expand: bool, retry: bool = False) -> Iterator[np.ndarray]:
    """Sorted ids of `wanted` without a result in `table`, one array per range; with `retry`, failed ones too."""
    files = table.files()
    for low, high in wanted.windows():
        want = wanted.ids(low, high)
        done = present(table.uri, files, low, high, expand=expand, retry=retry)
        left = want[~np.isin(want, done)]
        if len(left):
            yield left


def present(uri: str, files: Sequence[File], low: int, high: int, *, expand: bool, retry: bool = False) -> np.ndarray:
    """Ids in [low, high] that have a value or an error (with `retry`, a value); of an Expand, parents expanded."""
    if expand:
        low, high = low << CHILD_BITS, (high << CHILD_BITS) | MAX_CHILDREN
    try:
        data = read_files(uri, files, ["id", "error"] if retry else ["id"], low=low, high=high)
    except LookupError:
        return NONE
    ids = data["id"].to_numpy()
    if retry:
        ids = ids[data["error"].is_null().to_numpy(zero_copy_only=False)]
    if expand:
        ids = ids[(ids & MAX_CHILDREN) == MAX_CHILDREN] >> CHILD_BITS
    return ids
