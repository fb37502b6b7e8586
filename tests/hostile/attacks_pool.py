"""Rows that take the worker's time, memory or life; they cost themselves, and their neighbours have values."""

from __future__ import annotations

import atexit
import pickle
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa

from hostile.attack import Attack, Outcome, patched
from nextloom.pipelines import keeper, losses
from nextloom.pipelines.keeper import GIB, Budget, Done, Job, Keeper, Lost
from nextloom.pipelines.losses import Work
from nextloom.pipelines.pool import _stream, search_paths
from nextloom.pipelines.worker import Source, Task
from nextloom.store.files import File, read_files, write_file
from toy_attacks import DIE, FORK, GROW, HANG, HELD, Bad

ROWS, GUILTY, TRIES = 4, 2, 8
SHORT, SMALL = Budget(seconds=HELD / 2, bytes=8 * GIB), Budget(seconds=60, bytes=0.06 * GIB)
ROOMY = Budget(seconds=60, bytes=8 * GIB)
_keepers: dict[str, Keeper] = {}


def _keeper(job: Job) -> Keeper:
    """A keeper for `job`, whose first process is the last one's, to save the imports."""
    found = _keepers.get(keeper.BOOT)
    if found is None:
        found = _keepers[keeper.BOOT] = Keeper(job)
        atexit.register(found.close)
    if found._pid:
        found._end()
    found._job = job
    return found


def settle(folder: Path, way: str, budget: Budget) -> tuple[dict[int, str], list[list[int]]]:
    """What became of four rows, of which one does something; and the ids of which the answer to each chunk tells."""
    rows = pa.table({"id": range(ROWS), "key": [f"row{i}" for i in range(ROWS)]})
    source = Source(str(folder / "rows"), (write_file(str(folder / "rows"), rows),))
    task = Task("bad", Bad(ways={GUILTY: way}), str(folder / "column"))
    mine = _keeper(Job(pickle.dumps(([task], source)), search_paths(), [budget]))
    chunks = [pa.table({"id": ids, "bad": [True] * len(ids)}) for ids in ([0, 1, 2], [3])]
    queue, out, answers = deque(map(Work, chunks)), {}, []
    while queue:
        work = queue.popleft()
        answer = mine.run(_stream(work.chunk))
        if isinstance(answer, Lost):
            parts, failed = losses.divide(work, answer, [task])
            queue.extendleft(reversed(parts))
            out |= {row.id: row.kind for row in failed}
        elif isinstance(answer, Done):
            for record in pickle.loads(answer.records):
                file = File(**{name: record[name] for name in File.__dataclass_fields__})
                ids = read_files(task.table_uri, [file])["id"].to_pylist()
                out |= dict.fromkeys(ids, "value")
                answers.append([ids, work.chunk["id"].to_pylist()])
    return out, answers


def _overrun(way: str, budget: Budget) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        out, _ = settle(folder, way, budget)
        neighbours = [out.get(i) for i in range(ROWS) if i != GUILTY]
        assert neighbours == ["value"] * (ROWS - 1)
        return Outcome(out[GUILTY] == "value", f"error row {out[GUILTY]}")

    return strike


def _die(way: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        out, _ = settle(folder, way, ROOMY)
        lost = [i for i in range(ROWS) if i not in out]
        return Outcome(bool(lost), f"error row {out.get(GUILTY)}")

    return strike


def _fork(way: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        wrong = 0
        for attempt in range(TRIES):  # which of the two processes answers first is chance
            _, answers = settle(folder / str(attempt), way, ROOMY)
            wrong += sum(told != asked for told, asked in answers)
            if wrong:
                break
        return Outcome(wrong > 0, f"{wrong} answers to another question")

    return strike


def _unwatched() -> AbstractContextManager:
    return patched(keeper._Watcher, "look", lambda _: None)


def _dropped() -> AbstractContextManager:
    return patched(losses, "divide", lambda *_: ([], []))


def _deaf() -> AbstractContextManager:
    return patched(keeper, "BOOT", "import os\nos.register_at_fork = lambda **_: None\n" + keeper.BOOT)


ATTACKS = [
    *(Attack("budgets", f"time: {way}", "error row RowTimeout", _overrun(way, SHORT), _unwatched) for way in HANG),
    *(Attack("budgets", f"memory: {way}", "error row RowMemory", _overrun(way, SMALL), _unwatched) for way in GROW),
    *(Attack("budgets", f"death: {way}", "error row WorkerDied", _die(way), _dropped) for way in DIE),
    *(Attack("budgets", f"copies: {way}", "0 answers to another", _fork(way), _deaf) for way in FORK),
]
