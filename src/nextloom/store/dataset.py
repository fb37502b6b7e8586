"""A dataset on disk: rows with stable ids, one table per column and fingerprint, receipts, releases, the lease.

    <dataset>/rows, gone                   Delta tables: every row ever seen, and tombstones of those that vanished
    <dataset>/columns/<step>/<fingerprint> Delta table of one column: id, values, error
    <dataset>/packs/<name>/<fingerprint>   Delta table of one pack plan
    <dataset>/receipts/<step>.json         what a finished step was computed from; of `source`, the units listed
    <dataset>/releases/<name>-NNNN.json    immutable manifests with their own file lists
    <dataset>/broken/<name>-NNNN.json      releases whose files were found damaged
    <dataset>/copies/                      second copies of rows, tombstones and releases
    <dataset>/lease/N.json                 the one writer

A fingerprint has a table of its own, since another fingerprint may have another schema; the old one stays
readable for the releases that list its files.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.documents import Folder
from nextloom.errors import Damaged
from nextloom.inside import parts_of, refuse_links
from nextloom.io import is_uri, join
from nextloom.store.copies import COPIES, KeptTable
from nextloom.store.files import read_files
from nextloom.store.lease import Lease
from nextloom.store.log import LOG
from nextloom.store.records import check_receipt
from nextloom.store.table import Table

log = logging.getLogger(__name__)
ITEM = pa.schema(
    [
        ("key", pa.string()),
        ("unit", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("member", pa.string()),
        ("version", pa.string()),
        ("caption", pa.string()),
        ("sidecar", pa.string()),
    ]
)
"""What a source lists: its own key, the unit it lies in, where the bytes are (`nextloom.content` reads them), a
version that changes when they (or sidecars) do, and what the source says about them."""
ROWS = pa.schema([("id", pa.int64()), *ITEM])
GONE = pa.schema([("id", pa.int64())])
KEPT = {"rows": ROWS, "gone": GONE}
"""Tables with a second copy, and their schemas."""


class Dataset:
    """Handle on one dataset. Reading needs nothing; committing needs `lease` to be entered."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.name = uri.rstrip("/").rpartition("/")[2]
        self.documents = Folder(uri)
        self._lease: Lease | None = None
        self._seen: dict[str, int] = {}
        self._told: set[str] = set()

    def lease(self, purpose: str) -> Lease:
        """The writer's lease; every commit of this handle checks it, and that tables stand as it read them."""
        self._lease = Lease(self.documents, purpose)
        self._seen.clear()
        return self._lease

    def guard(self) -> int:
        """Refuse to go on without the writer's lease; called before every commit. Returns its epoch."""
        if self._lease is None:
            raise AssertionError("a commit without a lease")
        return self._lease.check()

    def table(self, path: str) -> Table:
        """The table at `path` below the dataset, such as ``rows`` or ``columns/<step>/<fingerprint>``.

        Raises:
            Damaged: no such path can be.
            Outside: a link lies on the way.
        """
        parts = parts_of(path)
        if not is_uri(self.uri):
            above, _, name = self.uri.rstrip("/").rpartition("/")
            refuse_links(above or "/", name, *parts, LOG)
        seen = self._seen if self._lease else None
        if path not in KEPT:
            return Table(join(self.uri, path), self.guard, seen)
        if not is_uri(self.uri):
            refuse_links(self.uri, COPIES, path)
        return KeptTable(self.uri, path, self.guard, seen)

    @property
    def rows(self) -> Table:
        """Every row ever seen."""
        return self.table("rows")

    @property
    def gone(self) -> Table:
        """Ids of rows whose object vanished or changed."""
        return self.table("gone")

    def column(self, step: str, fingerprint: str) -> Table:
        """The column of `step` at `fingerprint`."""
        return self.table(f"columns/{step}/{fingerprint}")

    def packs(self, name: str, fingerprint: str) -> Table:
        """The pack plan `name` at `fingerprint`."""
        return self.table(f"packs/{name}/{fingerprint}")

    def receipt(self, step: str, *, strict: bool = False) -> dict[str, Any] | None:
        """What the last finished run of `step` was computed from, or None.

        A receipt only saves work, so a damaged one counts as none: a warning says so, and the next run of the step
        looks at its rows and writes it anew.

        Raises:
            Damaged: it cannot be read, and `strict` is set.
        """
        name = f"receipts/{step}.json"
        try:
            return check_receipt(step, self.documents.read(name), join(self.uri, name))
        except Damaged as damage:
            if strict:
                raise
            if name not in self._told:
                self._told.add(name)
                log.warning("%s: %s; taken as absent, the next run writes it anew", damage.where, damage.what)
            return None

    def write_receipt(self, step: str, receipt: dict[str, Any]) -> None:
        """Replace the receipt of `step`."""
        self.guard()
        self.documents.write(f"receipts/{step}.json", receipt)

    def gone_ids(self) -> np.ndarray:
        """Sorted ids of tombstones."""
        files = self.gone.files()
        return read_files(self.gone.uri, files, ["id"])["id"].to_numpy() if files else np.empty(0, np.int64)

    def all_rows(self, columns: list[str]) -> pa.Table:
        """All rows ever seen, sorted by id, with `id` and `columns`."""
        files = self.rows.files()
        names = ["id", *columns]
        return read_files(self.rows.uri, files, names) if files else ROWS.empty_table().select(names)

    def live_rows(self, columns: list[str]) -> pa.Table:
        """The live rows, sorted by id, with `id` and `columns`."""
        data, gone = self.all_rows(columns), self.gone_ids()
        return data.filter(pc.invert(pc.is_in(data["id"], pa.array(gone)))) if len(gone) else data
