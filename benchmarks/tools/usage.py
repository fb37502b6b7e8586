"""CPU-seconds and memory of a command with everything it starts, also what outlives its parent (Linux).

This process makes itself the reaper of orphans, so that daemons which a command leaves behind (Ray's, say) end as its
children and their time is counted; memory is the sum of proportional set sizes, sampled, so shared pages count once.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Usage:
    """What one command cost."""

    cpu_seconds: float
    seconds: float
    peak_bytes: int


def measure(command: Sequence[str], env: Mapping[str, str] | None = None) -> Usage:
    """Run `command` to its end, and to that of all it started; a failure raises with its output."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before, start = _children(), time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak, done = [0], threading.Event()
    sampler = threading.Thread(target=_sample, args=(peak, done), daemon=True)
    sampler.start()
    output, _ = process.communicate()
    done.set()
    sampler.join()
    while True:  # orphans
        try:
            os.wait()
        except ChildProcessError:
            break
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-4000:]}")
    return Usage(_children() - before, time.perf_counter() - start, peak[0])


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _sample(peak: list[int], done: threading.Event) -> None:
    while not done.wait(SAMPLE_SECONDS):
        peak[0] = max(peak[0], sum(map(_proportional, _descendants(os.getpid()))))


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(after_name[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
