"""A Delta table of Parquet files that others wrote: the driver alone commits, readers see whole commits.

The log keeps every version (clean-up is off: by default Delta forgets old versions after 30 days, which would
break releases). A fresh snapshot is opened for each commit, since a held handle slows down with every one.

Every commit carries an id, the epoch of its writer's lease, and a digest of the files it names:

    the answer to a commit is lost     the log is read back: a commit of this id is there, or it is made again
    a writer slept and was overtaken   its snapshot, or the log since, holds a later epoch: nothing is committed
    it slept while nobody had          the log has moved since this writer read it: nothing is committed
    committed yet

so that neither can add the same rows twice. See `nextloom.store.log` for what is checked when a log is opened.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from nextloom.errors import Damaged, UserError
from nextloom.io import is_uri
from nextloom.problems import one_line
from nextloom.store.files import FILE_NAME, File, repair_command
from nextloom.store.log import LOG, actions_digest, entries_problems, has_entries, log_problem

KEEP_LOG = {"delta.enableExpiredLogCleanup": "false", "delta.logRetentionDuration": "interval 36500 days"}
WRITER = "nextloom"
"""Delta's name for the application whose transaction numbers are the epochs of the lease."""
TRIES, PAUSE = 3, 0.5
RECENT = 20
"""Commits in which an id is looked for."""


class Overtaken(UserError):
    """Another writer committed to the table meanwhile."""


class Table:
    """One Delta table at `uri`.

    Args:
        uri: path or URI.
        guard: called before each commit; refuses it (the lease was lost) or returns the epoch of the lease.
        seen: versions that the present holder of the lease has read or made, by uri; shared by all its handles.
    """

    def __init__(
        self, uri: str, guard: Callable[[], int] | None = None, seen: MutableMapping[str, int] | None = None
    ) -> None:
        self.uri = uri
        self._guard, self._seen = guard, seen

    def exists(self) -> bool:
        """True once something was committed."""
        return DeltaTable.is_deltatable(self.uri) if is_uri(self.uri) else has_entries(self.uri)

    def files(self) -> list[File]:
        """Files of the newest version, sorted by id; [] for a table that does not exist yet.

        Raises:
            Damaged: the log cannot be read, or names files that are none of ours.
        """
        return self.snapshot()[1]

    def snapshot(self) -> tuple[int, list[File]]:
        """Number of the newest commit, -1 before the first, and its files as in `files`."""
        if not self.exists():
            self._note(-1)
            return -1, []
        table = self._open()
        self._note(table.version())
        actions = pa.table(table.get_add_actions(flatten=True))
        names = set(actions.column_names)
        errors = "null_count.error.type"
        columns = ["path", "size_bytes", "num_records", "min.id", "max.id"] + ([errors] if errors in names else [])
        if not actions.num_rows:
            return table.version(), []
        if missing := set(columns) - names:
            raise self._damaged(f"has no {min(missing)} of its files")
        out = []
        for row in actions.select(columns).to_pylist():
            if not FILE_NAME.match(row["path"]) or None in (row["num_records"], row["min.id"], row["max.id"]):
                raise self._damaged(f"names {row['path'][:100]!r}, which no writer of ours does")
            failed = row["num_records"] - (row[errors] if errors in row else row["num_records"])
            out.append(File(row["path"], row["size_bytes"], row["num_records"], failed, row["min.id"], row["max.id"]))
        return table.version(), sorted(out, key=lambda f: (f.min_id, f.path))

    def forget(self) -> None:
        """Forget the version that this writer goes by: its log is written anew."""
        if self._seen is not None:
            self._seen.pop(self.uri, None)

    def version(self) -> int:
        """Number of the newest commit; -1 before the first."""
        return self._open().version() if self.exists() else -1

    def require(self, version: int) -> None:
        """Raise `Damaged` when commit `version`, which somebody saw, is not in the log any more."""
        if (newest := self.version()) < version:
            raise self._damaged(f"ends at entry {newest}, entry {version} was committed")

    def epoch(self) -> int:
        """The latest epoch of the lease under which something was committed; 0 before the first."""
        return (self._open().transaction_version(WRITER) or 0) if self.exists() else 0

    def commit(self, schema: pa.Schema, add: Sequence[File], remove: Sequence[File] = (), note: str = "") -> None:
        """Add and remove files in one atomic step.

        Raises:
            UserError: the lease was lost, or another writer committed to the table since it was read.
        """
        epoch = self._guard() if self._guard else 0
        if not self.exists():
            if not is_uri(self.uri):
                Path(self.uri).mkdir(parents=True, exist_ok=True)
            self._refuse_moved(-1)
            DeltaTable.create(self.uri, schema, mode="ignore", configuration=KEEP_LOG)
            self._note(0, made=True)
            self._flush(0)
        if not add and not remove:
            return
        identity, version = uuid.uuid4().hex, -1
        for trial in range(TRIES):
            table = self._open()
            self._refuse_overtaken(table, epoch)
            version = table.version() + 1
            try:
                self._write(table, schema, add, remove, {"note": note, "id": identity}, epoch)
                break
            except Exception as error:
                if self._is_there(identity):
                    break  # only the answer was lost
                if isinstance(error, CommitFailedError) or trial + 1 == TRIES:
                    self._refuse_overtaken(self._open(), epoch)  # says who came in between
                    raise
                time.sleep(PAUSE)
        self._note(version, made=True)
        self._flush(version)

    def _write(
        self,
        table: DeltaTable,
        schema: pa.Schema,
        add: Sequence[File],
        remove: Sequence[File],
        said: dict[str, str],
        epoch: int,
    ) -> None:
        now = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [RemoveAction(f.path, True, now) for f in remove]
        actions += [AddAction(f.path, f.size, {}, now, True, _stats(f, schema)) for f in add]
        content = actions_digest([f.path for f in add], [f.path for f in remove])
        table.create_write_transaction(
            actions,
            mode="append",
            schema=schema,
            commit_properties=CommitProperties(
                custom_metadata={**said, "epoch": str(epoch), "actions": content},
                max_commit_retries=0,  # a commit that came in between is another writer's
                app_transactions=[Transaction(WRITER, epoch)] if epoch else None,
            ),
        )

    def _open(self) -> DeltaTable:
        """The newest snapshot."""
        if problem := log_problem(self.uri):
            raise self._damaged(problem)
        try:
            return DeltaTable(self.uri)
        except OSError:
            raise
        except Exception as error:
            entry = next((f"{name} {what}" for name, what in entries_problems(self.uri)), "")
            told = one_line(error).removeprefix("Kernel error: ")
            raise self._damaged(f"cannot be read: {entry or told}") from None

    def _damaged(self, what: str) -> Damaged:
        return Damaged(f"the log of this table {what}", where=f"{self.uri}/{LOG}", next=repair_command(self.uri))

    def _note(self, version: int, made: bool = False) -> None:
        """Remember the version that this writer goes by: the first that it read, or the last that it made."""
        if self._seen is not None and (made or self.uri not in self._seen):
            self._seen[self.uri] = version

    def _refuse_moved(self, version: int) -> None:
        seen = version if self._seen is None else self._seen.setdefault(self.uri, version)
        if seen != version:
            raise Overtaken(
                f"another writer committed to this table (version {version}) after it was read (version {seen}); "
                "nothing more is committed",
                where=self.uri,
                next="run the same command again",
            )

    def _refuse_overtaken(self, table: DeltaTable, epoch: int) -> None:
        latest = table.transaction_version(WRITER) or 0
        if epoch and latest > epoch:
            if self._guard:
                self._guard()  # says who
            raise Overtaken(
                f"epoch {latest} of the lease committed to this table, the lease documents know {epoch} only",
                where=self.uri,
                next="nextloom unlock RECIPE --yes, when no other writer is at work",
            )
        self._refuse_moved(table.version())

    def _is_there(self, identity: str) -> bool:
        """Whether a commit of this id is in the log."""
        try:
            recent = DeltaTable(self.uri).history(RECENT)
        except Exception:  # the store does not answer: what failed is told by the commit's own error
            return False
        return any(commit.get("id") == identity for commit in recent)

    def _flush(self, version: int) -> None:
        """Flush a commit's log entry to the local disk, its folder too."""
        if is_uri(self.uri):
            return
        folder = Path(self.uri, LOG)
        for path in (folder / f"{version:020d}.json", folder, folder.parent):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _stats(file: File, schema: pa.Schema) -> str:
    nulls: dict[str, object] = {"id": 0}
    if "error" in schema.names:
        nulls["error"] = {"type": file.rows - file.errors}
    bounds = {"numRecords": file.rows, "minValues": {"id": file.min_id}, "maxValues": {"id": file.max_id}}
    return json.dumps({**bounds, "nullCount": nulls})
