"""One writer per dataset: a lease with a heartbeat and an epoch, checked before every commit.

Epoch N is the file ``lease/N.json``, created only if absent, so of two candidates one wins. Its holder alone
rewrites it (heartbeat). A lease is stale when its heartbeat is old, or when its holder ran on this host and its
process is gone; then the next epoch is created. A holder that was overtaken learns it at its next commit.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from nextloom.errors import UserError
from nextloom.io import Folder

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
KEPT_EPOCHS = 10
log = logging.getLogger(__name__)


class LeaseHeld(UserError):
    """Another writer holds the dataset."""


class LeaseLost(UserError):
    """Another writer took the lease over while this one was thought dead."""


class Lease:
    """The right to commit to one dataset; a context manager.

    Raises:
        LeaseHeld: on entering, when a live writer holds it; names host, process and command.
        LeaseLost: from `check`, when a later epoch exists.
    """

    def __init__(self, folder: Folder, purpose: str) -> None:
        self._folder, self._purpose = folder, purpose
        self._epoch = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        current = holder(self._folder)
        if current and not current["released"] and not is_dead(current):
            raise LeaseHeld(
                f"another writer holds this dataset: process {current['pid']} on {current['host']} "
                f"({current['purpose']}), since {_clock(current['since'])}, last seen {_clock(current['beat'])}",
                where=self._folder.uri,
                next=f"wait for it, or stop it: kill {current['pid']}",
            )
        self._epoch = (current["epoch"] if current else 0) + 1
        self._since = time.time()
        if not self._folder.create(_name(self._epoch), self._document()):
            raise LeaseHeld("another writer took the lease at this moment", where=self._folder.uri, next="try again")
        for name in self._folder.names("lease")[:-KEPT_EPOCHS]:
            self._folder.delete(name)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        if latest(self._folder) == self._epoch:
            self._folder.write(_name(self._epoch), self._document(released=True))

    def check(self) -> None:
        """Raise `LeaseLost` unless this is still the newest epoch."""
        newest = latest(self._folder)
        if newest != self._epoch:
            raise LeaseLost(
                f"epoch {newest} took over from epoch {self._epoch}; nothing more is committed here",
                where=self._folder.uri,
                next="nextloom status, then run again when the other writer has ended",
            )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._folder.write(_name(self._epoch), self._document())
            except Exception as error:
                log.warning("a heartbeat of the lease was not written: %s", error)

    def _document(self, released: bool = False) -> dict[str, Any]:
        pid = os.getpid()
        return {
            "epoch": self._epoch,
            "host": _host(),
            "pid": pid,
            "started": _process_start(pid),
            "purpose": self._purpose,
            "since": self._since,
            "beat": time.time(),
            "released": released,
        }


def latest(folder: Folder) -> int:
    """Newest epoch, 0 when nobody ever held the lease."""
    names = folder.names("lease")
    return int(Path(names[-1]).stem) if names else 0


def holder(folder: Folder) -> dict[str, Any] | None:
    """The document of the newest epoch, released or not."""
    epoch = latest(folder)
    return folder.read(_name(epoch)) if epoch else None


def _name(epoch: int) -> str:
    return f"lease/{epoch:09d}.json"


def is_dead(document: dict[str, Any]) -> bool:
    """True when the holder is gone: its process on this host, or its heartbeat for `STALE_SECONDS` elsewhere."""
    if document["host"] == _host():
        return _process_start(document["pid"]) != document["started"]
    return time.time() - document["beat"] > STALE_SECONDS


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
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
