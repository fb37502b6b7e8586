"""The worker pool of one pass, on Ray Data; and the careful way for rows whose worker died.

Ray Data streams chunks through a pool of actors. A worker process that dies takes its chunk with it: the chunk is
dropped (restarts are bounded), the driver finds its rows missing, and runs them apart: in plain Ray tasks, halving
what dies until single rows, and steps, are left. Exceptions never get here, since a worker turns them into rows.
"""

from __future__ import annotations

import gc
import logging
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from nextloom.errors import UserError
from nextloom.pipelines.worker import Source, Task, Worker
from nextloom.store.files import write_file

log = logging.getLogger(__name__)
RESTARTS = 8
DEATHS = 2
MOST_BURIED = 50
_workers: dict[str, Worker] = {}


class Crew:
    """Runs chunks of ids through the steps of a pass and yields the record of each written file."""

    def __init__(self, tasks: Sequence[Task], rows: Source, cpus: int, workers: int | None = None) -> None:
        self._tasks, self._rows = tasks, rows
        self._cpus = max(t.op.execution.num_cpus for t in tasks)
        self._gpus = sum(t.op.execution.num_gpus for t in tasks)
        asked = [t.op.execution.workers for t in tasks if t.op.execution.workers]
        have = self._check_resources()
        if self._gpus:
            asked.append(max(1, int(have["GPU"] / self._gpus + 1e-6)))
        self._size = min([workers or max(1, int(cpus // self._cpus)), *asked])

    def _check_resources(self) -> dict[str, float]:
        """What the cluster has; refuses what it can never give, instead of waiting for it."""
        import ray

        have = ray.cluster_resources()
        for name, resource, wanted in (("num_cpus", "CPU", self._cpus), ("num_gpus", "GPU", self._gpus)):
            if wanted > have.get(resource, 0):
                raise UserError(
                    f"{wanted:g} {resource}s per worker are asked for, the cluster has {have.get(resource, 0):g}",
                    where=f"steps.{self._tasks[0].step}.execution.{name}",
                    next=f"--set steps.{self._tasks[0].step}.execution.{name}=..., or --address of a larger cluster",
                )
        return have

    def run(self, chunks: Sequence[pa.Table]) -> Iterator[dict[str, Any]]:
        """Records as they come; rows of a worker that died are silently missing."""
        import ray
        from ray.exceptions import RayError

        context = ray.data.DataContext.get_current()
        context.max_errored_blocks = -1
        context.actor_init_retry_on_errors = False
        context.print_on_execution_start = False
        context.execution_options.verbose_progress = False
        size = min(self._size, len(chunks))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray 2.60 has no other way yet to bound restarts than these two
            data = ray.data.from_arrow(list(chunks)).map_batches(
                Worker,
                batch_size=None if not self._gpus else max(c.num_rows for c in chunks),
                batch_format="pyarrow",
                fn_constructor_args=(self._tasks, self._rows),
                compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
                num_cpus=self._cpus,
                num_gpus=self._gpus or None,
                max_restarts=RESTARTS,
                max_task_retries=0,
            )
        try:
            for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from batch.to_pylist()
        except RayError as error:
            log.warning("the worker pool ended early: %s", str(error).strip().splitlines()[-1])

    def run_apart(
        self, chunks: Sequence[pa.Table], dead_rows: Callable[[Task, Sequence[int], str], pa.Table]
    ) -> Iterator[dict[str, Any]]:
        """Records of chunks run in tasks of their own; a lone row that kills its worker twice becomes an error row.

        Raises:
            UserError: a model cannot be loaded.
        """
        if not chunks:
            return
        gc.collect()  # Ray's executor is a cycle of references; until it goes, a restarted worker keeps its GPU
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

        shared, key = ray.put((list(self._tasks), self._rows)), uuid.uuid4().hex
        remote = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)(run_chunk)
        self._probe(remote, key, shared, chunks[0].slice(0, 0))
        queue = deque((chunk, 0) for chunk in chunks)
        buried = 0
        running: dict[Any, tuple[pa.Table, int]] = {}
        while queue or running:
            while queue and len(running) < self._size:
                chunk, deaths = queue.popleft()
                running[remote.remote(key, shared, chunk)] = (chunk, deaths)
            (done,), _ = ray.wait(list(running), num_returns=1)
            chunk, deaths = running.pop(done)
            try:
                records = ray.get(done).to_pylist()
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
                parts = _halves(chunk)
                if len(parts) > 1:
                    queue.extend((part, 0) for part in parts)
                elif deaths + 1 < DEATHS:
                    queue.append((chunk, deaths + 1))
                else:
                    yield self._bury(chunk, f"killed its worker {DEATHS} times ({type(error).__name__})", dead_rows)
                    buried += 1
                    if buried == MOST_BURIED:
                        raise UserError(
                            f"{buried} rows in a row of runs killed their worker; that is the op, not the rows",
                            where="steps",
                            next="mend the op, then nextloom run RECIPE --retry-errors",
                        ) from None
                continue
            except RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, UserError) else error from None
            yield from records

    def _probe(self, remote: Any, key: str, shared: Any, nothing: pa.Table) -> None:
        """Load the models once without a row: a process that dies here would die for every row."""
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

        for attempt in range(DEATHS):
            try:
                ray.get(remote.remote(key, shared, nothing))
                return
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
                if attempt + 1 == DEATHS:
                    names = ", ".join(task.step for task in self._tasks)
                    raise UserError(
                        f"the process dies while the ops are set up ({type(error).__name__})",
                        where=f"steps.{names}",
                        next="try less memory per worker: --set run.workers=1",
                    ) from None
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError) else error from None

    def _bury(
        self, chunk: pa.Table, message: str, dead_rows: Callable[[Task, Sequence[int], str], pa.Table]
    ) -> dict[str, Any]:
        task = next(t for t in self._tasks if chunk[t.step][0].as_py())
        log.warning("%s: row %d %s", task.step, chunk["id"][0].as_py(), message)
        file = write_file(task.table_uri, dead_rows(task, chunk["id"].to_pylist(), message))
        return {"step": task.step, **file.as_dict(), "done": 1, "seconds": 0.0, "waited": 0.0, "busy": 0.0}


def run_chunk(key: str, shared: tuple[list[Task], Source], chunk: pa.Table) -> pa.Table:
    """One chunk in a task; the process keeps its `Worker` (and the weights in it) for the next of this `key`."""
    if key not in _workers:
        _workers.clear()
        _workers[key] = Worker(*shared)
    return _workers[key](chunk)


def _halves(chunk: pa.Table) -> list[pa.Table]:
    """Two halves of the rows; of a single row, one chunk per step that wants it; a single step cannot be split."""
    if chunk.num_rows > 1:
        middle = chunk.num_rows // 2
        return [chunk.slice(0, middle), chunk.slice(middle)]
    steps = [name for name in chunk.column_names if name != "id" and chunk[name][0].as_py()]
    flags = [{name: pa.array([name == step]) for name in chunk.column_names if name != "id"} for step in steps]
    return [pa.table({"id": chunk["id"], **flag}) for flag in flags]
