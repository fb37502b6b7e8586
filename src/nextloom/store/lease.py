"""One writer per dataset: a lease with a heartbeat and an epoch, checked before every commit.

Epoch N is the file ``lease/N.json``, created only if absent, so of two candidates one wins. Its holder alone
rewrites it (heartbeat). A lease is stale when its heartbeat is old, or comes from further in the future than clocks
may differ, or when its holder ran on this host and its process is gone; then the next epoch is created. A holder that
was overtaken learns it at its next commit, however long it slept (see `nextloom.store.table`). `unlock` takes the
lease from a holder that cannot be asked: another machine, or a document that cannot be read.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

from nextloom.documents import Folder
from nextloom.errors import Damaged, UserError
from nextloom.problems import one_line

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
SKEW_SECONDS = 60.0
"""How far the clock of another host may be ahead."""
KEPT_EPOCHS = 10
UNLOCK = "nextloom unlock RECIPE --yes"
"""What takes the lease of a dataset from a writer that is gone for good."""
LARGEST = 1e11
"""No number of a lease is larger: seconds since 1970, process numbers."""
EPOCH = re.compile(r"^lease/(\d{9})\.json$")
FIELDS: dict[str, tuple[type, ...]] = {
    "epoch": (int,),
    "host": (str,),
    "pid": (int,),
    "started": (str, type(None)),
    "purpose": (str,),
    "since": (int, float),
    "beat": (int, float),
    "released": (bool,),
}
log = logging.getLogger(__name__)


class LeaseHeld(UserError):
    """Another writer holds the dataset."""


class LeaseLost(UserError):
    """Another writer took the lease over while this one was thought dead."""


class Lease:
    """The right to commit to one dataset; a context manager.

    Args:
        folder: of the dataset.
        purpose: the command, for whoever finds the lease held.
        unlock: what an error names as the way to take it from a holder that is gone for good.

    Raises:
        LeaseHeld: on entering, when a live writer holds it; names host, process and command.
        LeaseLost: from `check`, when a later epoch exists.
    """

    def __init__(self, folder: Folder, purpose: str, unlock: str = UNLOCK) -> None:
        self._folder, self._purpose, self._unlock = folder, purpose, unlock
        self._epoch = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        current = holder(self._folder, self._unlock)
        if current and not current["released"] and not is_dead(current):
            raise LeaseHeld(
                f"another writer holds this dataset: {who(current)} "
                f"({current['purpose']}), since {_clock(current['since'])}, last seen {_clock(current['beat'])}",
                where=self._folder.uri,
                next=f"wait for it, or {_stop(current, self._unlock)}",
            )
        self._epoch = latest(self._folder) + 1
        self._since = time.time()
        if not self._folder.create(_name(self._epoch), self._document()):
            raise LeaseHeld("another writer took the lease at this moment", where=self._folder.uri, next="try again")
        for name in [name for name in self._folder.names("lease") if EPOCH.match(name)][:-KEPT_EPOCHS]:
            self._folder.delete(name)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        try:
            if latest(self._folder) == self._epoch:
                self._folder.write(_name(self._epoch), self._document(released=True))
        except Exception as error:
            if kind is None:
                raise
            log.warning("the lease was not given back: %s", one_line(error))  # what ended the work is told instead

    def check(self) -> int:
        """Raise `LeaseLost` unless this is still the newest epoch, which is returned."""
        newest = latest(self._folder)
        if newest != self._epoch:
            raise LeaseLost(
                f"epoch {newest} took over from epoch {self._epoch}; nothing more is committed here",
                where=self._folder.uri,
                next="nextloom status RECIPE, then run again when the other writer has ended",
            )
        return self._epoch

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._folder.write(_name(self._epoch), self._document())
            except Exception as error:
                log.warning("a heartbeat of the lease was not written: %s", one_line(error))

    def _document(self, released: bool = False) -> dict[str, Any]:
        return _document(self._epoch, self._purpose, self._since, released)


def latest(folder: Folder) -> int:
    """Newest epoch, 0 when nobody ever held the lease."""
    epochs = [EPOCH.match(name) for name in folder.names("lease")]
    return max((int(found[1]) for found in epochs if found), default=0)


def holder(folder: Folder, unlock: str = UNLOCK) -> dict[str, Any] | None:
    """The document of the newest epoch, released or not.

    Raises:
        Damaged: it cannot be read, so who holds the lease is not known.
    """
    epoch = latest(folder)
    where = f"{folder.uri}/{_name(epoch)}"
    hint = f"make sure that no other writer is at work, then {unlock}"
    try:
        document = folder.read(_name(epoch)) if epoch else None
    except Damaged as damage:
        raise Damaged(f"{damage.what}, so who writes is not known", where=where, next=hint) from None
    if document is not None:
        fields = document if isinstance(document, dict) else {}
        wrong = [name for name, kinds in FIELDS.items() if not isinstance(fields.get(name), kinds)]
        wrong = wrong or [name for name in ("since", "beat", "pid") if abs(fields[name]) > LARGEST]
        if wrong or fields["epoch"] != epoch:
            what = f"is no lease ({(wrong or ['epoch'])[0]}), so who writes is not known"
            raise Damaged(what, where=where, next=hint)
    return document


def describe_holder(folder: Folder) -> str:
    """Who holds the lease, in words; "" when nobody does, or its holder died."""
    try:
        current = holder(folder)
    except Damaged as damage:
        return f"nobody knows whom: {damage.where} {damage.what}"
    if current is None or current["released"] or is_dead(current):
        return ""
    return f"{who(current)} ({current['purpose']})"


def unlock(folder: Folder, above: int = 0) -> None:
    """Take the lease from whoever holds it: what that one commits later is refused, and the next writer gets it.

    Args:
        folder: of the dataset.
        above: an epoch that the new one has to exceed: the latest of the commits in its tables.

    Raises:
        LeaseHeld: the holder is a live process of this host, which can be stopped.
    """
    try:
        current = holder(folder)
    except Damaged:
        current = None
    if current and not current["released"] and _is_here(current) and not is_dead(current):
        raise LeaseHeld(f"the lease is held by {who(current)}, which lives", where=folder.uri, next=_stop(current))
    epoch = max(latest(folder), above) + 1
    if not folder.create(_name(epoch), _document(epoch, "nextloom unlock", time.time(), released=True)):
        raise LeaseHeld("another writer took the lease at this moment", where=folder.uri, next="try again")


def _name(epoch: int) -> str:
    return f"lease/{epoch:09d}.json"


def is_dead(document: dict[str, Any]) -> bool:
    """True when the holder is gone: its process on this host, or its heartbeat for `STALE_SECONDS` elsewhere.

    A heartbeat from more than `SKEW_SECONDS` in the future says nothing of its holder, and would for ever.
    """
    if _is_here(document):
        return _process_start(document["pid"]) != document["started"]
    age = time.time() - document["beat"]
    return not -SKEW_SECONDS <= age <= STALE_SECONDS


def who(document: dict[str, Any]) -> str:
    """The holder in words: a process of this host by its number, others by their host alone."""
    return f"process {document['pid']} on this host" if _is_here(document) else f"a process on {_place(document)}"


def _stop(document: dict[str, Any], unlock: str = UNLOCK) -> str:
    if _is_here(document):
        return f"stop it: kill {document['pid']}"
    return f"stop it on {_place(document)}; if that is gone for good, {unlock}"


def _place(document: dict[str, Any]) -> str:
    """Host of another holder; a container of this host has its name."""
    name = document["host"].partition("/")[0][:100]
    return f"{name} (another container)" if name == socket.gethostname() else name


def _is_here(document: dict[str, Any]) -> bool:
    return document["host"] == _host()


def _document(epoch: int, purpose: str, since: float, released: bool) -> dict[str, Any]:
    pid = os.getpid()
    return {
        "epoch": epoch,
        "host": _host(),
        "pid": pid,
        "started": _process_start(pid),
        "purpose": purpose,
        "since": since,
        "beat": time.time(),
        "released": released,
    }


def _host() -> str:
    """Host name with its process namespace: two containers of one name are two hosts."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _process_start(pid: int) -> str | None:
    """Start time of a live process in clock ticks since boot, so that a reused pid is not mistaken; None if gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return "alive" if not Path("/proc/self").exists() and _alive(pid) else None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        return "an unknown time"
