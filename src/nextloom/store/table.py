"""A Delta table of Parquet files that others wrote: the driver alone commits, readers see whole commits.

The log keeps every version (clean-up is off: by default Delta forgets old versions after 30 days, which would
break releases). A fresh snapshot is opened for each commit, since a held handle slows down with every one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from nextloom.io import is_uri
from nextloom.store.files import File

KEEP_LOG = {"delta.enableExpiredLogCleanup": "false", "delta.logRetentionDuration": "interval 36500 days"}


class Table:
    """One Delta table at `uri`; `guard` is called before each commit and may refuse it (the lease)."""

    def __init__(self, uri: str, guard: Callable[[], None] | None = None) -> None:
        self.uri = uri
        self._guard = guard

    def exists(self) -> bool:
        """True once something was committed."""
        return DeltaTable.is_deltatable(self.uri)

    def files(self) -> list[File]:
        """Files of the newest version, sorted by id; [] for a table that does not exist yet."""
        if not self.exists():
            return []
        actions = pa.table(DeltaTable(self.uri).get_add_actions(flatten=True))
        names = set(actions.column_names)
        errors = "null_count.error.type"
        columns = ["path", "size_bytes", "num_records", "min.id", "max.id"] + ([errors] if errors in names else [])
        out = []
        for row in actions.select(columns).to_pylist():
            failed = row["num_records"] - (row[errors] if errors in row else row["num_records"])
            out.append(File(row["path"], row["size_bytes"], row["num_records"], failed, row["min.id"], row["max.id"]))
        return sorted(out, key=lambda f: (f.min_id, f.path))

    def version(self) -> int:
        """Number of the newest commit; -1 before the first."""
        return DeltaTable(self.uri).version() if self.exists() else -1

    def commit(self, schema: pa.Schema, add: Sequence[File], remove: Sequence[File] = (), note: str = "") -> None:
        """Add and remove files in one atomic step."""
        if self._guard:
            self._guard()
        if not self.exists():
            if not is_uri(self.uri):
                Path(self.uri).mkdir(parents=True, exist_ok=True)
            DeltaTable.create(self.uri, schema, mode="ignore", configuration=KEEP_LOG)
        if not add and not remove:
            return
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [RemoveAction(f.path, True, now) for f in remove]
        actions += [AddAction(f.path, f.size, {}, now, True, _stats(f, schema)) for f in add]
        DeltaTable(self.uri).create_write_transaction(
            actions,
            mode="append",
            schema=schema,
            commit_properties=CommitProperties(custom_metadata={"note": note}),
        )


def _stats(file: File, schema: pa.Schema) -> str:
    nulls: dict[str, object] = {"id": 0}
    if "error" in schema.names:
        nulls["error"] = {"type": file.rows - file.errors}
    bounds = {"numRecords": file.rows, "minValues": {"id": file.min_id}, "maxValues": {"id": file.max_id}}
    return json.dumps({**bounds, "nullCount": nulls})
