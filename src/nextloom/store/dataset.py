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

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.errors import UserError
from nextloom.io import Folder, join
from nextloom.store.files import read_files, write_file
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


class Changes:
    """What a listing would change: rows to add, bury, revive, and rows whose bytes lie elsewhere now.

    An object is known by its key and version, wherever it lies: a source that was moved, narrowed for a run, or
    unmounted for an hour keeps its ids. A new version under a known key is a new row.
    """

    def __init__(self, dataset: Dataset, listing: Callable[[Mapping[str, str]], pa.Table]) -> None:
        """Compare a listing with all rows ever seen; nothing is written.

        Args:
            dataset: whose rows.
            listing: from key -> version of what is known to a table of schema `ITEM` with unique keys; objects that
                are known need no caption or sidecar.
        """
        self._dataset = dataset
        known = dataset.all_rows(["key", "uri", "version"])
        gone = dataset.gone_ids()
        versions = dict(zip(known["key"].to_pylist(), known["version"].to_pylist(), strict=True))
        items = listing(versions)
        counts = items.group_by("key").aggregate([("key", "count")])
        twice = counts.filter(pc.greater(counts["key_count"], 1))
        if twice.num_rows:
            key, count = twice["key"][0].as_py(), twice["key_count"][0].as_py()
            raise UserError(f"key {key!r} is listed {count} times", where="source")
        identity = ["key", "version"]
        new = items.join(known, keys=identity, join_type="left anti")
        self.new = new.take(pc.sort_indices(new["key"])).select(ITEM.names)
        seen = known.join(items.select([*identity, "uri"]), keys=identity, join_type="inner", right_suffix="_now")
        live = seen["id"].to_numpy()
        ids = known["id"].to_numpy()
        self._gone = np.setdiff1d(ids, live)
        self.gone = np.setdiff1d(self._gone, gone)
        """Ids of rows to bury."""
        self.revived = np.intersect1d(gone, live)
        """Ids of buried rows that are there again."""
        moved = seen.filter(pc.not_equal(seen["uri"], seen["uri_now"]))
        self._moved = dict(zip(moved["id"].to_pylist(), moved["uri_now"].to_pylist(), strict=True))
        self.kept = np.sort(live)
        """Ids that stay or come back."""

    def __bool__(self) -> bool:
        return bool(self.new.num_rows or len(self.gone) or len(self.revived) or self._moved)

    def describe(self) -> str:
        """Such as ``+200 -1``; "" when nothing changes."""
        parts = [f"+{self.new.num_rows:,}"] if self.new.num_rows else []
        parts += [f"-{len(self.gone):,}"] if len(self.gone) else []
        parts += [f"{len(self.revived):,} back"] if len(self.revived) else []
        parts += [f"{len(self._moved):,} moved"] if self._moved else []
        return " ".join(parts)

    def apply(self) -> None:
        """Give new rows the next free ids in key order, bury and revive; ids are never used for another object.

        Three commits; after a kill between them the same listing finds the rest to do.
        """
        rows, gone = self._dataset.rows, self._dataset.gone
        if self._moved:
            data = self._dataset.all_rows(ROWS.names[1:])
            uris = [self._moved.get(i, u) for i, u in zip(data["id"].to_pylist(), data["uri"].to_pylist(), strict=True)]
            data = data.set_column(data.column_names.index("uri"), "uri", pa.array(uris, pa.string())).select(
                ROWS.names
            )
            rows.commit(ROWS, [write_file(rows.uri, data)], rows.files(), note="moved")
        if len(self.gone) or len(self.revived):
            buried = pa.table({"id": self._gone}, schema=GONE)
            files = [write_file(gone.uri, buried)] if buried.num_rows else []
            gone.commit(GONE, files, gone.files(), note="sync")
        if self.new.num_rows:
            start = max((f.max_id for f in rows.files()), default=-1) + 1
            ids = pa.array(np.arange(start, start + self.new.num_rows, dtype=np.int64))
            data = self.new.add_column(0, "id", ids).cast(ROWS)
            rows.commit(ROWS, [write_file(rows.uri, data)], note="sync")
