"""The worker pool of one pass: keepers on Ray, a bounded window of chunks, and error rows for what cannot be run.

Each worker is a Ray actor, a `Keeper`, that holds its CPUs and GPUs for the pass and lives as long: a model is loaded
once per worker, also when rows are run apart. Chunks are made when a worker is free for them. Rows that end a worker
are found and become error rows (`losses`), and a keeper that Ray loses (a node that dies, memory that runs out) is
replaced; so a pass ends whatever happens to its workers, with a value or an error for each row, or with a UserError.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from nextloom.errors import UserError
from nextloom.pipelines.keeper import GIB, WORKER_DIED, Budget, Done, Job, Keeper, Lost, Raised
from nextloom.pipelines.losses import Failed, Work, divide
from nextloom.pipelines.worker import Source, Task, lost_row
from nextloom.store.files import write_file

log = logging.getLogger(__name__)
SHORT_SECONDS = 5.0
"""Chunks shorter than this queue up at a worker, so that it does not wait while the driver commits."""
SETUPS = 2
"""Workers in a row that may die while the ops are set up."""
KEEPERS_LOST = 2
"""A chunk that was lost with so many keepers is halved, and its halves at their first; a lone row is an error row."""
JUDGE_AFTER = 100
"""Rows lost to one step, from where on it stops when nine of ten rows are lost."""
CLOSE_SECONDS = 2.0
WAIT_SECONDS = 30.0
"""No worker has a place for so long: say so, and see whether the cluster still has what is asked for."""

Tick = Callable[[], None]


def _nothing() -> None:
    pass


@dataclass(eq=False)
class _Worker:
    """One actor, and the chunks that are with it."""

    actor: Any
    ready: bool = False
    busy: int = 0


class WorkerPool:
    """Runs chunks of ids through the steps of a pass and yields the record of each written file.

    Args:
        tasks: the steps.
        rows: the table of rows.
        cpus: to be used at most.
        workers: to be started at most.
        tick: called at least every `WAIT_SECONDS` while no record comes.

    Raises:
        UserError: the cluster can never give what a worker asks for.
    """

    def __init__(
        self, tasks: Sequence[Task], rows: Source, cpus: int, workers: int | None = None, tick: Tick = _nothing
    ) -> None:
        self._tasks, self._rows, self._tick = list(tasks), rows, tick
        self._cpus = max(t.op.execution.num_cpus for t in tasks)
        self._gpus = sum(t.op.execution.num_gpus for t in tasks)
        asked = [t.op.execution.workers for t in tasks if t.op.execution.workers]
        have = self._check_resources()
        if self._gpus:
            asked.append(max(1, int(have["GPU"] / self._gpus + 1e-6)))
        self._size = min([workers or max(1, int(cpus // self._cpus)), *asked])
        self._workers: list[_Worker] = []
        self._running: dict[Any, tuple[_Worker, Work | None]] = {}
        """Reference -> the worker and what it runs; None: it is set up."""
        self._queue: deque[Work] = deque()
        self._settled: Counter[str] = Counter()
        self._lost: Counter[tuple[str, str]] = Counter()
        """(step, kind) -> its error rows of rows that ended their worker."""
        self._setups, self._ends, self._seconds = 0, 0, 0.0
        self._kind: Any = None
        self._job: Any = None

    def run(self, chunks: Iterable[pa.Table]) -> Generator[dict[str, Any]]:
        """Records as they come, until every row of `chunks` has one.

        Raises:
            UserError: a model cannot be loaded, the workers die whatever they run, or a step loses almost every row.
        """
        self._start()
        source = iter(chunks)
        try:
            while self._fill(source):
                yield from self._next()
        finally:
            self._close()
            self._tell_losses()

    # ---- workers

    def _check_resources(self) -> dict[str, float]:
        """What the cluster has; refuses what it can never give, instead of waiting for it."""
        import ray

        have = ray.cluster_resources()
        for name, resource, wanted in (("num_cpus", "CPU", self._cpus), ("num_gpus", "GPU", self._gpus)):
            if wanted <= have.get(resource, 0):
                continue
            asking = [t for t in self._tasks if getattr(t.op.execution, name)]
            asking.sort(key=lambda task: -getattr(task.op.execution, name))
            together = name == "num_gpus" and len(asking) > 1
            shared = f" ({' and '.join(t.step for t in asking)} run together)" if together else ""
            raise UserError(
                f"{wanted:g} {resource}s per worker are asked for{shared}, the cluster has {have.get(resource, 0):g}",
                where=f"steps.{asking[0].step}.execution.{name}",
                next=f"--set steps.{asking[0].step}.execution.{name}=..., or --address of a larger cluster",
            )
        return have

    def _start(self) -> None:
        import ray
        from ray import cloudpickle

        budgets = [Budget(t.op.execution.row_seconds, t.op.execution.row_memory * GIB) for t in self._tasks]
        self._job = ray.put(Job(cloudpickle.dumps((self._tasks, self._rows)), search_paths(), budgets))
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
        self._kind = ray.remote(Keeper).options(**options)

    def _fill(self, source: Iterator[pa.Table]) -> bool:
        """Give workers what they have room for, and start workers for what waits; False when all is done."""
        ahead = 2 if 0 < self._seconds < SHORT_SECONDS else 1
        while True:
            starting = sum(not worker.ready for worker in self._workers)
            self._queue.extend(Work(chunk) for chunk in islice(source, max(0, starting + 1 - len(self._queue))))
            if not self._queue:
                break
            free = min((w for w in self._workers if w.ready and w.busy < ahead), key=lambda w: w.busy, default=None)
            if (free is None or free.busy) and len(self._queue) > starting and len(self._workers) < self._size:
                worker = _Worker(self._kind.remote(self._job))
                self._workers.append(worker)
                self._running[worker.actor.setup.remote()] = (worker, None)
            elif free is not None:
                work = self._queue.popleft()
                free.busy += 1
                self._running[free.actor.run.remote(_stream(work.chunk))] = (free, work)
            else:
                break
        return bool(self._queue) or any(work for _, work in self._running.values())

    def _next(self) -> Iterator[dict[str, Any]]:
        """Wait for one answer, and act on it."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        done, _ = ray.wait(list(self._running), num_returns=1, timeout=WAIT_SECONDS)
        if not done:
            self._tick()
            self._tell_waiting()
            return
        worker, work = self._running.pop(done[0])
        worker.busy -= work is not None
        try:
            answer = ray.get(done[0])
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            self._drop(worker)
            yield from self._keeper_lost(work, type(error).__name__)
            return
        if isinstance(answer, Raised):
            self._raised(work, _opened(answer.error))
        elif isinstance(answer, Lost) and not answer.ready:
            self._drop(worker)
            self._not_set_up(f"the process dies while the ops are set up: {answer.detail}")
            if work:
                self._queue.appendleft(work)
        elif isinstance(answer, Lost):
            assert work is not None
            yield from self._rows_lost(work, answer)
        elif isinstance(answer, Done):
            self._seconds = answer.seconds
            records = _opened(answer.records)
            for record in records:
                self._settled[record["step"]] += record["done"]
            yield from records
        else:
            worker.ready, self._setups = True, 0

    # ---- what goes wrong

    def _rows_lost(self, work: Work, loss: Lost) -> Iterator[dict[str, Any]]:
        parts, failed = divide(work, loss, self._tasks)
        self._queue.extendleft(reversed(parts))
        if not self._ends:
            log.warning("a worker was lost (%s, %s); its rows are run again apart", loss.kind, loss.detail)
        self._ends += 1
        yield from self._error_rows(failed)

    def _keeper_lost(self, work: Work | None, why: str) -> Iterator[dict[str, Any]]:
        """A node died, or memory ran out: the chunk again, in halves if that repeats, for a row alone its error."""
        if work is None:
            self._not_set_up(f"workers do not start ({why})")
            return
        log.warning("a worker is gone (%s); what it had is run again", why)
        if work.gone + 1 < KEEPERS_LOST:
            self._queue.appendleft(replace(work, gone=work.gone + 1))
            return
        parts, failed = divide(work, Lost(WORKER_DIED, why), self._tasks)
        self._queue.extendleft(replace(part, gone=KEEPERS_LOST - 1) for part in reversed(parts))
        yield from self._error_rows(failed)

    def _raised(self, work: Work | None, error: BaseException) -> None:
        """A chunk that fails as a whole is tried once more: its table, or the place for its file, was not there."""
        if work is None or work.raised or isinstance(error, UserError):
            raise error
        log.warning("a chunk is run again: %s: %s", type(error).__name__, error)
        self._queue.appendleft(replace(work, raised=True))

    def _not_set_up(self, why: str) -> None:
        self._setups += 1
        if self._setups < SETUPS:
            return
        self._setups, left = 0, sum(worker.ready for worker in self._workers)
        if not left:
            raise UserError(
                why,
                where=f"steps.{', '.join(task.step for task in self._tasks)}",
                next="what was done is kept; try less memory per worker: --set run.workers=1",
            )
        log.warning("worker pool: %d of %d workers go on (%s)", left, self._size, why)
        self._size = len(self._workers)

    def _error_rows(self, failed: Sequence[Failed]) -> Iterator[dict[str, Any]]:
        """Write the error rows; stop a step that loses nearly every row.

        Raises:
            UserError: it does.
        """
        tasks = {task.step: task for task in self._tasks}
        for row in failed:
            uri, kind = tasks[row.step].table_uri, row.kind
            file = write_file(uri, lost_row(tasks[row.step], row.id, row.stage, kind, row.message, row.detail))
            self._lost[row.step, kind] += 1
            yield {"step": row.step, **file.as_dict(), "done": 1, "seconds": 0.0, "waited": 0.0, "busy": 0.0}
            lost = sum(count for (step, _), count in self._lost.items() if step == row.step)
            if lost > JUDGE_AFTER and lost > 9 * self._settled[row.step]:
                good = self._settled[row.step]
                raise UserError(
                    f"{lost} rows ended their worker and {good} did not: that is the op, not the rows",
                    where=f"steps.{row.step}",
                    next="mend the op; what was done is kept: nextloom run RECIPE --retry-errors",
                )

    def _drop(self, worker: _Worker) -> None:
        """Forget a worker; what else it had comes back as lost on its own."""
        import ray

        worker.ready = False
        if worker in self._workers:
            self._workers.remove(worker)
        ray.kill(worker.actor)

    def _close(self) -> None:
        import ray

        idle = [worker.actor.close.remote() for worker in self._workers if worker.ready and not worker.busy]
        if idle:
            ray.wait(idle, num_returns=len(idle), timeout=CLOSE_SECONDS)
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
        self._running.clear()

    def _tell_losses(self) -> None:
        for (step, kind), count in self._lost.items():
            log.warning("%s: %d rows are error rows of type %s", step, count, kind)

    def _tell_waiting(self) -> None:
        if any(worker.ready for worker in self._workers):
            return
        self._check_resources()
        log.warning("waiting for a worker: %g CPUs and %g GPUs, which others use", self._cpus, self._gpus)


def search_paths() -> list[str]:
    """Where this process finds modules, other than its Python: for workers, who look there last."""
    own = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})
    return [path for path in map(os.path.abspath, sys.path) if not path.startswith(own)]


def _stream(chunk: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, chunk.schema) as writer:
        writer.write_table(chunk)
    return sink.getvalue().to_pybytes()


def _opened(answer: bytes) -> Any:
    """What the process that ran the rows made: the same code as here, and as trusted."""
    return pickle.loads(answer)
