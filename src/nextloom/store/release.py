"""A release: an immutable manifest of rows and columns, with its own file lists.

What a trainer reads. It names every file it needs, so later commits, however many, change nothing for its readers;
only an explicit vacuum may delete a file, and never one that a release lists.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nextloom.errors import UserError
from nextloom.io import Folder, join
from nextloom.op import digest
from nextloom.store.dataset import Dataset
from nextloom.store.files import File, take_ids
from nextloom.store.rowset import RowSet
from nextloom.untrusted import Door


class Release:
    """Reader of one manifest. Rows come sorted by id; every column covers exactly them."""

    def __init__(self, dataset_uri: str, document: Mapping[str, Any]) -> None:
        self.dataset_uri, self.document = dataset_uri, document

    @property
    def name(self) -> str:
        """Name and version, such as ``tokens-0003``."""
        return self.document["name"]

    @property
    def digest(self) -> str:
        """Identity of its content: which rows, which fingerprints, which errors; not names, dates or files."""
        return content_digest(self.document)

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """step -> op, version, config, fingerprint of each column."""
        return {name: {k: v for k, v in c.items() if k != "files"} for name, c in self.document["columns"].items()}

    @property
    def door(self) -> Door:
        """What opens the bytes of its rows: the roots and limits of the source they were listed by."""
        return Door.from_dict(self.document["door"])

    @cached_property
    def ids(self) -> np.ndarray:
        """Sorted ids of its rows, int64."""
        return RowSet.from_dict(self.dataset_uri, self.document["selection"]).all_ids()

    def rows(self, ids: np.ndarray | None = None) -> pa.Table:
        """id, key, uri, caption ... of all rows, or of `ids` in that order."""
        return self._read(self.document["rows"], ids, None)

    def column(self, step: str, names: Sequence[str] | None = None, ids: np.ndarray | None = None) -> pa.Table:
        """id and `names` (all by default, `error` last) of one column, for all rows or for `ids` in that order."""
        if step not in self.document["columns"]:
            known = ", ".join(self.document["columns"]) or "none"
            raise UserError(
                f"release {self.name} has no column {step!r} (it has: {known})",
                next=f"add {step} to the columns of this release in the recipe, then nextloom release RECIPE",
            )
        return self._read(self.document["columns"][step], ids, names)

    def _read(self, spec: Mapping[str, Any], ids: np.ndarray | None, names: Sequence[str] | None) -> pa.Table:
        wanted = self.ids if ids is None else ids
        return take_ids(join(self.dataset_uri, spec["table"]), _files(spec["files"]), wanted, names)


def content_digest(content: Mapping[str, Any]) -> str:
    """What `Release.digest` is made of: a value is a function of row and fingerprint, unless it failed."""
    columns = {step: [column["fingerprint"], column["failed"]] for step, column in content["columns"].items()}
    return digest([content["dataset"], content["content"], columns])


def _files(items: Sequence[Mapping[str, Any]]) -> tuple[File, ...]:
    return tuple(File(**item) for item in items)


def publish(dataset: Dataset, name: str, content: Mapping[str, Any]) -> tuple[Release, bool]:
    """Write the next version of release `name`; one equal to the newest, if that is sound, is not written again.

    Args:
        content: dataset, content (digest of the rows), rows_count, door (see `untrusted`), selection, rows, columns
            (each with `failed`, the digest of its failed ids within the selection).

    Returns:
        The release, and whether it is new.
    """
    newest = latest(dataset.uri, name)
    if newest and newest.digest == content_digest(content) and not is_broken(dataset, newest):
        return newest, False
    version = int(newest.name.rpartition("-")[2]) + 1 if newest else 1
    document = {"name": f"{name}-{version:04d}", "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **content}
    dataset.guard()
    if not dataset.documents.create(f"releases/{document['name']}.json", document):
        raise UserError(f"release {document['name']} was made by another writer at this moment", next="try again")
    return Release(dataset.uri, document), True


def mark_broken(dataset: Dataset, release: Release, findings: Sequence[Mapping[str, Any]]) -> None:
    """Note that files of a release are damaged: the same content will be a new version, of sound files."""
    dataset.guard()
    dataset.documents.write(f"broken/{release.name}.json", {"findings": list(findings)})


def is_broken(dataset: Dataset, release: Release) -> bool:
    """Whether `mark_broken` was told of it."""
    return dataset.documents.read(f"broken/{release.name}.json") is not None


def latest(dataset_uri: str, name: str) -> Release | None:
    """Newest version of release `name`, or None."""
    folder = Folder(dataset_uri)
    names = [n for n in folder.names("releases") if Path(n).stem.rpartition("-")[0] == name]
    document = folder.read(names[-1]) if names else None
    return Release(dataset_uri, document) if document else None


def open_release(dataset_uri: str, name: str) -> Release:
    """Release ``name`` (newest version) or ``name-0003``.

    Raises:
        UserError: there is none.
    """
    document = Folder(dataset_uri).read(f"releases/{name}.json")
    found = Release(dataset_uri, document) if document else latest(dataset_uri, name)
    if found is None:
        raise UserError(f"no release {name!r}", where=dataset_uri, next="nextloom release RECIPE")
    return found
