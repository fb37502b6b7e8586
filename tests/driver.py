"""A run in a process of its own that kills itself: ``python driver.py ROOT POINT N``.

POINT is `before_write` (workers are about to start), `uncommitted` (files of commit N are written, the commit is not
made), `committed` (commit N is made), or `any_time` (N is ``commit:seconds``: so long after that commit).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from engine import build, run
from nextloom.pipelines.pool import WorkerPool
from nextloom.store.table import Table


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, number: str) -> None:
    """Arrange for the death of this process."""
    original, count = Table.commit, 0
    number, _, delay = number.partition(":")

    def commit(self, *args, **kwargs):
        nonlocal count
        count += 1
        hit = count == int(number)
        if hit and point == "uncommitted":
            die()
        original(self, *args, **kwargs)
        if hit and point == "committed":
            die()
        if hit and point == "any_time":
            threading.Timer(float(delay), die).start()

    if point == "before_write":
        WorkerPool.run = lambda self, chunks: die()
    else:
        Table.commit = commit


if __name__ == "__main__":
    root, point, number = sys.argv[1:]
    arm(point, number)
    data = json.loads((Path(root) / "recipe.json").read_text())
    run(*build(Path(root), **data))
    sys.exit("the run ended before it was killed")
