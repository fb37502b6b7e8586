"""CPU-seconds and memory of a command with everything it starts, also what outlives its parent (Linux).

This process makes itself the reaper of orphans, so all that a command starts stays below it in the process tree. The
tree is sampled ten times a second: the CPU time of a process is what its last sample says (a parent that ignores the
end of its children, as Ray's raylet does, never gets their time into its own), so at most a tenth of a second per
process is lost. Memory is the sum of proportional set sizes, once a second, so shared pages count once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
SAMPLE_SECONDS = 0.1
MEMORY_EVERY = 10
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What one command cost."""

    cpu_seconds: float
    seconds: float
    peak_bytes: int
    output: str


class Died(RuntimeError):
    """A command ended with another status than 0; below 0: by that signal. The text holds the end of its output."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(command)} ended with {status}:\n{output[-4000:]}")
        self.status = status


class _Sampler(threading.Thread):
    """Follows the tree below this process until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stop, self.peak = threading.Event(), 0
        self.ticks: dict[tuple[int, int], int] = {}
        """(pid, start time) -> CPU ticks when last seen."""

    def run(self) -> None:
        count = 0
        while not self.stop.wait(SAMPLE_SECONDS):
            found = dict(_descendants(os.getpid()))
            self.ticks.update(found)
            if count % MEMORY_EVERY == 0:
                self.peak = max(self.peak, sum(_proportional(pid) for pid, _ in found))
            count += 1


def measure(command: Sequence[str], env: Mapping[str, str] | None = None, limit: float | None = None) -> Usage:
    """Run `command` to its end, and to that of all it started; a failure raises with its output.

    With `limit`, all of it is ended after that many seconds, which is a failure too.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sampler, start = _Sampler(), time.perf_counter()
    sampler.start()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    clock = threading.Timer(limit, _end_all) if limit else None
    if clock:
        clock.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - start
    while True:  # orphans
        try:
            os.wait()
        except ChildProcessError:
            break
    if clock:
        clock.cancel()
    sampler.stop.set()
    sampler.join()
    if limit and time.perf_counter() - start >= limit:
        raise RuntimeError(f"{' '.join(command)} did not end within {limit:.0f} seconds:\n{output[-4000:]}")
    if process.returncode:
        raise Died(command, process.returncode, output)
    return Usage(sum(sampler.ticks.values()) / TICKS, seconds, sampler.peak, output)


def _end_all() -> None:
    """End every process below this one, until none is left."""
    while found := [pid for (pid, _), _ in _descendants(os.getpid()) if _running(pid)]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(SAMPLE_SECONDS)


def _running(pid: int) -> bool:
    """Whether a process is more than an entry that waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _descendants(root: int) -> Iterator[tuple[tuple[int, int], int]]:
    """((pid, start time), CPU ticks) of every process below `root`."""
    parents: dict[int, list[tuple[tuple[int, int], int]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            own = ((int(entry.name), int(fields[19])), int(fields[11]) + int(fields[12]))
            parents.setdefault(int(fields[1]), []).append(own)
    waiting = [root]
    while waiting:
        children = parents.get(waiting.pop(), [])
        yield from children
        waiting += [pid for (pid, _), _ in children]


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
