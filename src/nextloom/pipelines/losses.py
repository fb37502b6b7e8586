"""What becomes of the rows of a chunk whose worker was ended by one of them.

Rows before and after the row that was at work are run again without it. The row itself is run alone, unless it was
the only one: then a row that overran its budget is an error row at once, and one that killed its worker after the
second time, since a worker may also be killed from outside. Where nothing says which row it was, the chunk is halved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nextloom.pipelines.desk import DECODE, Note, load_of
from nextloom.pipelines.keeper import ROW_MEMORY, ROW_TIMEOUT, WORKER_DIED, Lost
from nextloom.pipelines.worker import Task, origins

DEATHS = 2
"""A row that killed so many workers is an error row."""
ALONE = 64
"""So many rows under suspicion are run one by one; more are halved first."""
MESSAGES = {
    WORKER_DIED: "the row killed its worker twice",
    ROW_TIMEOUT: "the row took longer than execution.row_seconds allows",
    ROW_MEMORY: "the row took more memory than execution.row_memory allows",
}


@dataclass(frozen=True)
class Work:
    """A chunk to run: `id`, and per step whether it wants the row."""

    chunk: pa.Table
    strikes: int = 0
    """Workers that its only row has killed."""
    gone: int = 0
    """Keepers that it was lost with, for reasons of their own."""
    raised: bool = False
    """It failed as a whole before."""


@dataclass(frozen=True)
class Failed:
    """A row that becomes an error row in one step."""

    step: str
    id: int
    stage: str
    kind: str
    detail: str

    @property
    def message(self) -> str:
        return MESSAGES[self.kind]


def divide(work: Work, loss: Lost, tasks: Sequence[Task]) -> tuple[list[Work], list[Failed]]:
    """(what is to be run in its place, in order; the rows that are not run again).

    Each part is smaller than `work`, or has one strike more: this ends.
    """
    ids = work.chunk["id"].to_numpy()
    suspects = _suspects(ids, loss.notes)
    if len(suspects) == 0:
        return _halves(work, loss, tasks)
    if len(suspects) > 1:
        return _apart(work, suspects), []
    (row,) = np.flatnonzero(ids == suspects[0])
    chunk = work.chunk.slice(row, 1)
    blamed = _blamed(chunk, loss.notes, tasks) or {t.step: t.step for t in tasks if chunk[t.step][0].as_py()}
    before, after = work.chunk.slice(0, row), work.chunk.slice(row + 1)
    strikes = work.strikes + 1 if len(ids) == 1 else 1
    sure = len(loss.notes) == 1 or len(ids) == 1
    if not sure:
        middle, failed = [Work(chunk)], []
    elif loss.kind == WORKER_DIED and strikes < DEATHS:
        middle, failed = [Work(chunk, strikes)], []
    else:
        failed = [Failed(step, int(suspects[0]), stage, loss.kind, loss.detail) for step, stage in blamed.items()]
        middle = [Work(_without(chunk, blamed))]
    return [part for part in [Work(before), *middle, Work(after)] if _wanted(part.chunk)], failed


def _suspects(ids: np.ndarray, notes: Sequence[Note]) -> np.ndarray:
    under = np.zeros(len(ids), bool)
    for note in notes:
        under |= (ids >= note.first) & (ids <= note.last)
    return ids[under]


def _apart(work: Work, suspects: np.ndarray) -> list[Work]:
    """Those before, the suspects (one by one, or in halves), those after."""
    ids = work.chunk["id"].to_numpy()
    first, last = np.searchsorted(ids, [suspects[0], suspects[-1]])
    inside = work.chunk.slice(first, last - first + 1)
    if len(suspects) <= ALONE:
        guilty = np.isin(inside["id"].to_numpy(), suspects)
        parts = [inside.slice(at, 1) for at in np.flatnonzero(guilty)]
        if not guilty.all():
            parts.insert(0, inside.filter(pa.array(~guilty)))
    else:
        middle = inside.num_rows // 2
        parts = [inside.slice(0, middle), inside.slice(middle)]
    parts = [work.chunk.slice(0, first), *parts, work.chunk.slice(last + 1)]
    return [Work(part) for part in parts if _wanted(part)]


def _halves(work: Work, loss: Lost, tasks: Sequence[Task]) -> tuple[list[Work], list[Failed]]:
    """Of several rows two halves; of one row a chunk per step; of one step of one row a strike, and then an error."""
    chunk = work.chunk
    if chunk.num_rows > 1:
        middle = chunk.num_rows // 2
        return [Work(part) for part in (chunk.slice(0, middle), chunk.slice(middle)) if _wanted(part)], []
    steps = [task.step for task in tasks if chunk[task.step][0].as_py()]
    if len(steps) > 1:
        return [Work(_without(chunk, {other for other in steps if other != step})) for step in steps], []
    if work.strikes + 1 < DEATHS:
        return [Work(chunk, work.strikes + 1)], []
    return [], [Failed(step, chunk["id"][0].as_py(), step, loss.kind, loss.detail) for step in steps]


def _blamed(chunk: pa.Table, notes: Sequence[Note], tasks: Sequence[Task]) -> dict[str, str]:
    """step -> stage of those for which the lone row of `chunk` was at work."""
    found = {}
    for note in notes:
        if note.code >= 0:
            concerned = [(tasks[note.code], tasks[note.code].step)]
        else:
            place, stage = load_of(note.code)
            origin = origins(tasks)[place]
            lookers = ("pixels",) if stage == DECODE else ("bytes", "pixels")
            concerned = [(task, stage) for task in tasks if task.content == origin and task.needs in lookers]
        found |= {task.step: stage for task, stage in concerned if chunk[task.step][0].as_py()}
    return found


def _without(chunk: pa.Table, steps: Iterable[str]) -> pa.Table:
    """`chunk`, no longer wanted by `steps`."""
    for step in steps:
        at = chunk.column_names.index(step)
        chunk = chunk.set_column(at, step, pa.array([False] * chunk.num_rows))
    return chunk


def _wanted(chunk: pa.Table) -> bool:
    return any(True in chunk[name].to_pylist() for name in chunk.column_names if name != "id")
