"""A keeper: the small process that Ray places, with a worker process below it that runs the rows.

The keeper owns a share of CPUs and GPUs for as long as a pass goes on, and nothing a row does can reach it. It looks at
its worker twenty times a second: a row that takes longer than `row_seconds`, or with which the worker grows by more
than `row_memory`, ends the worker, and so does a crash. What the worker was at is on its desk; the pool decides what to
do about those rows, and the keeper starts another worker with the next chunk. Trade-off: two more processes per worker,
and a chunk's ids and records go through a pipe.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import nextloom
from nextloom.pipelines import child
from nextloom.pipelines.desk import SIZE, Desk, Note

POLL_SECONDS = 0.05
TREE_EVERY = 5
"""Polls between two looks at the processes that an op started."""
MOST_PROCESSES = 500
"""An op that started more is ended as one that takes too much."""
GIB = 2**30
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(nextloom.__file__)))
BOOT = """
import sys
sys.path.append(sys.argv[1])
from nextloom.pipelines.child import main
main(*map(int, sys.argv[2:]))
"""
"""The stem's program. The package's folder comes last on its path, the working directory is not on it."""
WORKER_DIED, ROW_TIMEOUT, ROW_MEMORY = "WorkerDied", "RowTimeout", "RowMemory"


@dataclass(frozen=True)
class Budget:
    """What one call of an op, or one fetch and decode, may take."""

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Job:
    """What a keeper runs: pickled (tasks, rows), where own ops are found, and a budget per task."""

    work: bytes
    paths: Sequence[str]
    budgets: Sequence[Budget]

    def budget(self, note: Note) -> Budget:
        """Of a task's op its own; a fetch or decode is done for all tasks and has the largest."""
        if note.code >= 0:
            return self.budgets[note.code]
        return Budget(max(b.seconds for b in self.budgets), max(b.bytes for b in self.budgets))


@dataclass(frozen=True)
class Done:
    """A chunk is settled: pickled records of the files that were written, and seconds it took."""

    records: bytes
    seconds: float


@dataclass(frozen=True)
class Raised:
    """The worker could not be set up, or a chunk failed as a whole: the pickled exception.

    It is opened in the driver: own ops, and their exceptions, are not imported here.
    """

    error: bytes


@dataclass(frozen=True)
class Lost:
    """The worker is gone, and its chunk with it."""

    kind: str
    """WorkerDied, RowTimeout or RowMemory."""
    detail: str
    notes: tuple[Note, ...] = ()
    """What it was at: the rows that may have done it. Empty: it was at no row."""
    ready: bool = True
    """False: it went while the ops were set up."""


class Keeper:
    """Runs chunks in a worker process. Methods are called one at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the keeper lives)
        self._file.truncate(SIZE)
        self._desk = Desk(self._file.fileno())
        self._stem: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._pid = 0
        """Of the worker; 0: there is none."""
        self._connection: Any = None

    def setup(self) -> Raised | Lost | None:
        """Start a worker, which loads the models; None when it is ready."""
        self._desk.clear()
        try:
            self._fork()
        except (EOFError, OSError) as error:
            ended = self.close()
            why = f"the process that starts workers ended with {ended}" if ended else str(error)
            return Lost(WORKER_DIED, why, ready=False)
        self._send(pickle.dumps((self._job.work, list(self._job.paths))))
        answer = self._answer(watch=False)
        if isinstance(answer, Lost):
            return Lost(answer.kind, answer.detail, ready=False)
        kind, payload = answer
        if kind == child.READY:
            return None
        self._end()
        return Raised(payload)

    def run(self, chunk: bytes) -> Done | Raised | Lost:
        """One chunk, as an Arrow stream."""
        if not self._pid:
            failed = self.setup()
            if failed:
                return failed
        began = time.monotonic()
        self._send(chunk)
        answer = self._answer(watch=True)
        if isinstance(answer, Lost):
            return answer
        kind, payload = answer
        return Done(payload, time.monotonic() - began) if kind == child.DONE else Raised(payload)

    def close(self) -> int:
        """End the worker and everything that was started below it; the exit code of the stem if it had ended before."""
        if self._pid:
            self._end()
        ended = 0
        if self._stem:
            ended = self._stem.poll() or 0
            self._stem.kill()
            self._stem.wait()
            self._stem = None
        if self._control:
            self._control.close()
            self._control = None
        return ended

    def _fork(self) -> None:
        """Have a worker forked, by a new stem if need be."""
        if self._stem is None:
            self._control, theirs = socket.socketpair()
            with theirs:
                numbers = (theirs.fileno(), self._file.fileno())
                command = [sys.executable, "-P", "-c", BOOT, PACKAGE, *map(str, numbers), str(os.getpid())]
                self._stem = subprocess.Popen(
                    command, pass_fds=numbers, stdin=subprocess.DEVNULL, start_new_session=True
                )
        assert self._control is not None
        self._control.sendall(child.FORK)
        number, descriptors, _, _ = socket.recv_fds(self._control, child.NUMBER, 1)
        if len(number) < child.NUMBER or not descriptors:
            raise EOFError
        self._pid = int.from_bytes(number, "little")
        self._connection = Connection(descriptors[0])

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is gone, as `_answer` will see
            self._connection.send_bytes(data)

    def _answer(self, *, watch: bool) -> tuple[bytes, bytes] | Lost:
        """The worker's next message: its kind and its payload; or how it was lost."""
        watcher = _Watcher(self._pid, self._job, self._desk) if watch else None
        while True:
            try:
                if self._connection.poll(POLL_SECONDS):
                    message = self._connection.recv_bytes()
                    return message[:1], message[1:]
            except (EOFError, OSError):
                notes = tuple(self._desk.notes())
                return Lost(WORKER_DIED, self._end(), notes)
            guilty = watcher.look() if watcher else None
            if guilty:
                self._end()
                return guilty

    def _end(self) -> str:
        """Make sure that the worker is gone with all it started; how it ended."""
        assert self._control is not None
        pid, self._pid = self._pid, 0
        self._connection.close()
        for each in {*_below(pid), pid}:  # to one that ends by itself this does nothing: how it ended is settled
            _kill(os.kill, each)
        _kill(os.killpg, pid)
        try:
            self._control.sendall(child.WAIT)
            status = self._control.recv(child.NUMBER)
        except OSError:
            status = b""
        if len(status) < child.NUMBER:  # the stem is gone too
            self.close()
            return "it is gone with the process that started it"
        code = int.from_bytes(status, "little", signed=True)
        if code >= 0:
            return f"it ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
        return f"it was ended by signal {-code}"


class _Watcher:
    """Compares what a worker is at with the budget, from one poll to the next."""

    def __init__(self, pid: int, job: Job, desk: Desk) -> None:
        self._pid, self._job, self._desk = pid, job, desk
        self._looks, self._others, self._count, self._used = 0, 0, 0, _resident(pid)
        self._last = time.monotonic()
        self._begun: dict[int, tuple[float, int]] = {}
        """slot -> (when its note began, bytes in use before it)."""
        self._paused = 0.0

    def look(self) -> Lost | None:
        """What the worker must be ended for, if anything."""
        now = time.monotonic()
        late = now - self._last - POLL_SECONDS
        self._paused += late if late > 1 else 0.0  # this process was stopped or starved, so the worker was too
        self._last = now
        before, self._used = self._used, self._memory()
        notes = self._desk.notes()
        begun = {note.slot: self._begun.get(note.slot) for note in notes}
        slow, big = [], []
        for note in notes:
            known = begun[note.slot]
            if known is None or known[0] != note.began:
                begun[note.slot] = known = (note.began, min(before, self._used))
                self._paused = 0.0 if len(notes) == 1 else self._paused
            budget = self._job.budget(note)
            if now - note.began - self._paused > budget.seconds:
                slow.append(note)
            if self._used - known[1] > budget.bytes or self._count > MOST_PROCESSES:
                big.append(note)
        self._begun = {slot: known for slot, known in begun.items() if known}
        if slow:
            seconds = max(now - note.began for note in slow)
            return Lost(ROW_TIMEOUT, f"{seconds:.0f} s", tuple(slow))
        if big:
            grown = self._used - min(self._begun[note.slot][1] for note in big)
            many = f" in {self._count} processes" if self._count > 1 else ""
            return Lost(ROW_MEMORY, f"{grown / GIB:.1f} GiB more{many}", tuple(big))
        return None

    def _memory(self) -> int:
        """Bytes in use by the worker, and by what it started as of the last look at those."""
        if self._looks % TREE_EVERY == 0:
            below = _below(self._pid)
            self._others, self._count = sum(map(_resident, below)), len(below)
        self._looks += 1
        return _resident(self._pid) + self._others


def _kill(how: Any, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        how(pid, signal.SIGKILL)


def _resident(pid: int) -> int:
    """Bytes of a process in memory; 0 when it is gone, and where there is no /proc."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


_PAGE = os.sysconf("SC_PAGE_SIZE")


def _below(pid: int) -> list[int]:
    """Processes below `pid`, on Linux."""
    found, left = [], [pid]
    while left:
        parent = left.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                children = [int(word) for word in file.read().split()]
                found += children
                left += children
    return found
