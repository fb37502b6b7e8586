"""A dataset on disk: rows with stable ids, one table per column and fingerprint, receipts, releases, the lease.

    <dataset>/rows, gone                   Delta tables: every row ever seen, and tombstones of those that vanished
    <dataset>/columns/<step>/<fingerprint> Delta table of one column: id, values, error
    <dataset>/packs/<name>/<fingerprint>   Delta table of one pack plan
    <dataset>/receipts/<step>.json         what a finished step was computed from
    <dataset>/releases/<name>-NNNN.json    immutable manifests with their own file lists
    <dataset>/lease/N.json                 the one writer

A fingerprint has a table of its own, since another fingerprint may have another schema; the old one stays
readable for the releases that list its files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.errors import UserError
from nextloom.io import Folder, join
from nextloom.store.files import File, read_files, write_file
from nextloom.store.lease import Lease
from nextloom.store.table import Table

ITEM = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("caption", pa.string()),
        ("sidecar", pa.string()),
    ]
)
"""What a source lists: its own key, where the bytes are, and a version that changes when they (or sidecars) do."""
ROWS = pa.schema([("id", pa.int64()), *ITEM])
GONE = pa.schema([("id", pa.int64())])


class Dataset:
    """Handle on one dataset. Reading needs nothing; committing needs `lease` to be entered."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.name = uri.rstrip("/").rpartition("/")[2]
        self.documents = Folder(uri)
        self._lease: Lease | None = None

    def lease(self, purpose: str) -> Lease:
        """The writer's lease; every commit of this handle checks it."""
        self._lease = Lease(self.documents, purpose)
        return self._lease

    def _guard(self) -> None:
        if self._lease is None:
            raise AssertionError("a commit without a lease")
        self._lease.check()

    def _table(self, *parts: str) -> Table:
        return Table(join(self.uri, *parts), self._guard)

    @property
    def rows(self) -> Table:
        """Every row ever seen."""
        return self._table("rows")

    @property
    def gone(self) -> Table:
        """Ids of rows whose object vanished or changed."""
        return self._table("gone")

    def column(self, step: str, fingerprint: str) -> Table:
        """The column of `step` at `fingerprint`."""
        return self._table("columns", step, fingerprint)

    def packs(self, name: str, fingerprint: str) -> Table:
        """The pack plan `name` at `fingerprint`."""
        return self._table("packs", name, fingerprint)

    def receipt(self, step: str) -> dict[str, Any] | None:
        """What the last finished run of `step` was computed from, or None."""
        return self.documents.read(f"receipts/{step}.json")

    def write_receipt(self, step: str, receipt: dict[str, Any]) -> None:
        """Replace the receipt of `step`."""
        self._guard()
        self.documents.write(f"receipts/{step}.json", receipt)

    def gone_ids(self) -> np.ndarray:
        """Sorted ids of tombstones."""
        files = self.gone.files()
        return _read_all(self.gone, files, ["id"])["id"].to_numpy() if files else np.empty(0, np.int64)

    def live_rows(self, columns: list[str]) -> pa.Table:
        """The live rows, sorted by id, with `id` and `columns`."""
        files = self.rows.files()
        if not files:
            return ROWS.empty_table().select(["id", *columns])
        data = _read_all(self.rows, files, ["id", *columns])
        gone = self.gone_ids()
        return data.filter(pc.invert(pc.is_in(data["id"], pa.array(gone)))) if len(gone) else data


class Changes:
    """What a listing would change: rows to add, rows to bury."""

    def __init__(self, dataset: Dataset, listing: pa.Table) -> None:
        """Compare `listing` (schema `ITEM`, unique keys) with the live rows; nothing is written."""
        counts = listing.group_by("key").aggregate([("key", "count")])
        twice = counts.filter(pc.greater(counts["key_count"], 1))
        if twice.num_rows:
            raise UserError(
                f"key {twice['key'][0].as_py()!r} is listed {twice['key_count'][0].as_py()} times",
                where="source",
            )
        live = dataset.live_rows(["key", "uri", "version"])
        self._dataset = dataset
        identity = ["key", "uri", "version"]
        new = listing.join(live, keys=identity, join_type="left anti")
        self.new = new.take(pc.sort_indices(new["key"])).select(ITEM.names)
        self.gone = np.sort(live.join(listing, keys=identity, join_type="left anti")["id"].to_numpy())
        self.unchanged = listing.num_rows - self.new.num_rows

    def __bool__(self) -> bool:
        return bool(self.new.num_rows or len(self.gone))

    def apply(self) -> None:
        """Give new rows the next free ids in key order, bury the vanished; ids are never used twice."""
        rows, gone = self._dataset.rows, self._dataset.gone
        if len(self.gone):
            gone.commit(GONE, [write_file(gone.uri, pa.table({"id": self.gone}, schema=GONE))], note="sync")
        if self.new.num_rows:
            start = max((f.max_id for f in rows.files()), default=-1) + 1
            ids = pa.array(np.arange(start, start + self.new.num_rows, dtype=np.int64))
            data = self.new.add_column(0, "id", ids).cast(ROWS)
            rows.commit(ROWS, [write_file(rows.uri, data)], note="sync")


def _read_all(table: Table, files: list[File], columns: list[str]) -> pa.Table:
    return read_files(table.uri, files, columns)
