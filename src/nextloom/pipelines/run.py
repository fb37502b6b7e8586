"""Executing a plan on Ray: passes over the rows, commits as the work goes, nothing lost with a dead worker.

1. the listing's changes become rows
2. steps that are ready and live in one row domain share a pass: one fetch and one decode per row
3. file records stream back; the driver commits them every few seconds, so a kill costs that much work
4. a row that hangs, fills the memory or kills its worker becomes an error row; what it took along is run again
5. Select and Reduce follow as soon as their inputs are complete; each finished step leaves a receipt
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.cluster.connect import connect
from nextloom.errors import Damaged, UserError
from nextloom.op import ERROR, INPUT_FAILED, MAX_CHILDREN, Annotate, Expand, Reduce, Select, child_id, digest
from nextloom.pipelines.ledger import Ledger, StepResult, judge_errors
from nextloom.pipelines.plan import FRESH, Planner, StepPlan
from nextloom.pipelines.pool import WorkerPool, search_paths
from nextloom.pipelines.progress import Progress
from nextloom.pipelines.recipe import SOURCE, Recipe, Step
from nextloom.pipelines.worker import Source, Task
from nextloom.printable import printable
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files, take_ids, write_file
from nextloom.store.rowset import files_digest, missing

log = logging.getLogger(__name__)


class Run:
    """One run of a recipe. The caller holds the dataset's lease."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        *,
        to: str | None = None,
        retry_errors: bool = False,
        address: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.dataset, self.address = recipe, dataset, address
        self.retry_errors = retry_errors
        self.planner = Planner(recipe, dataset)
        self.steps = self.planner.graph.upto(to)
        self.progress = progress or Progress()
        self.results = {step.name: StepResult(step.name, step.kind) for step in self.steps}

    def execute(self) -> list[StepResult]:
        """Do what is to do; returns a result per step.

        Raises:
            Damaged: a column that steps need is damaged; all others are done.
            UserError: a step is blocked, its model cannot load, or more rows fail than `max_error_rate` allows.
        """
        for step in self.steps:
            self.planner.identify(step)
        changed = self.planner.sync()
        if changed:
            self.progress.say(f"source: {changed} rows")
        for notice in self.planner.notices:
            self.progress.say(f"source: {notice}")
        if not self.planner.source().wanted:
            log.warning("source: there are no rows: %s", printable(self.planner.nothing))
        if self.retry_errors:
            self._drop_errors()
        left = {step.name: step for step in self.steps}
        while left:
            ready = [s for s in left.values() if not ({s.rows, s.domain, *s.reads} & left.keys())]
            together = [s for s in ready if isinstance(s.op, Annotate | Expand)]
            batch = _one_pass(together) or ready[:1]
            plans = {s.name: self.planner.judge(s) for s in batch}
            for step in batch:
                del left[step.name]
            sound = [s for s in batch if s.name not in self.planner.damaged]
            try:
                self._pass([(s, plans[s.name]) for s in sound if isinstance(s.op, Annotate | Expand)])
                for step in sound:
                    if isinstance(step.op, Select | Reduce):
                        self._whole(step, plans[step.name])
            except Damaged as damage:  # met while a column was read: the steps that do not need it go on
                self.planner.damaged |= dict.fromkeys([s.name for s in sound], damage)
        if hurt := self.planner.damaged:
            first = next(iter(hurt.values()))
            names = ", ".join(sorted(hurt))
            raise Damaged(f"{first.what}; not done for that: {names}", where=first.where, next=first.next)
        return list(self.results.values())

    # ---- Annotate and Expand: passes over rows

    def _pass(self, steps: list[tuple[Step, StepPlan]]) -> None:
        """Bring the columns of `steps`, all of one domain, up to date in one pass over the rows."""
        stale = [step for step, plan in steps if plan.todo]
        planned = {step.name: self.planner.identities[step.name] for step, _ in steps}
        for step, plan in steps:
            done = (plan.wanted or 0) - (plan.todo or 0)
            self.progress.start(step.name, done, plan.wanted or 0)
        if stale:
            tasks = [self._task(step) for step in stale]
            chunk_rows = min(step.op.execution.chunk_rows for step in stale)
            tables = {step.name: self.planner.table(step.name) for step in stale}
            ledger = Ledger(tasks, tables, self.results, self.recipe.run)
            cpus = connect(self.address)
            rows, limit = self._rows_of(stale[0]), self.recipe.run.workers
            pool = WorkerPool(tasks, rows, cpus, limit, self.progress.tick)
            self._collect(pool.run(self._chunks(stale, chunk_rows)), ledger)
        for step, plan in steps:
            self._finish_rows(step, plan, planned[step.name])

    def _collect(self, records: Generator[dict[str, Any]], ledger: Ledger) -> None:
        """Book records as they come; what has come is committed whatever ends the loop, Ctrl-C included."""
        try:
            with closing(records):  # what the pool says last, it says now and not when memory is tidied up
                for record in records:
                    ledger.take(record)
                    self.progress.advance(record["step"], record["done"], record["errors"])
        finally:
            ledger.flush()

    def _task(self, step: Step) -> Task:
        reads = {n: Source(t.uri, tuple(t.files())) for n in step.reads for t in [self.planner.table(n)]}
        assert isinstance(step.op, Annotate | Expand)
        weights = {name: self.planner.identities[step.name][name] for name in step.op.weights}
        weights = {name: planned for name, planned in weights.items() if planned is not None}
        content = None
        if step.content:
            content = (step.content, self.planner.graph[step.content].op.content)  # pyrefly: ignore[missing-attribute]
        return Task(step.name, step.op, self.planner.table(step.name).uri, reads, weights, content)

    def _rows_of(self, step: Step) -> Source:
        table = self.dataset.rows if step.domain == SOURCE else self.planner.table(step.domain)
        return Source(table.uri, tuple(table.files()), self.recipe.source.door())

    def _chunks(self, steps: list[Step], size: int) -> Iterator[pa.Table]:
        """Work in chunks of at most `size` ids: a column `id`, and per step whether it wants the row."""
        todo = {}
        for step in steps:
            rows = self.planner.wanted(step)
            parts = list(missing(rows, self.planner.table(step.name), expand=isinstance(step.op, Expand)))
            todo[step.name] = np.concatenate(parts) if parts else np.empty(0, np.int64)
        ids = np.unique(np.concatenate(list(todo.values())))
        flags = {name: np.isin(ids, mine, assume_unique=True) for name, mine in todo.items()}
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            yield pa.table({"id": ids[part], **{name: flag[part] for name, flag in flags.items()}})

    def _check_unchanged(self, step: Step, plan: StepPlan, planned: dict[str, Any]) -> None:
        """Raise a `UserError` when weights were replaced during the pass: its values are of the old ones."""
        if self.planner.fingerprints.get(step.name) == plan.fingerprint:
            return
        now = self.planner.identities[step.name] if step.name in self.planner.fingerprints else {}
        changed = [step.op.spelled(name) for name in step.op.weights if now.get(name) != planned.get(name)]
        raise UserError(
            f"{' and '.join(changed) or 'what it reads'} changed while the run went on; the "
            f"{self.results[step.name].done:,} rows that were done before are kept, as values of the old one",
            where=f"steps.{step.name}",
            next="run again: all rows are done with the new one; with the old one back in place, those rows are fresh",
        )

    def _finish_rows(self, step: Step, plan: StepPlan, planned: dict[str, Any]) -> None:
        """Check the accounting, leave a receipt, and tell the planner."""
        result, rows = self.results[step.name], self.planner.wanted(step)
        after = self.planner.judge(step)
        self._check_unchanged(step, plan, planned)
        if after.state != FRESH:
            raise UserError(
                f"{after.todo} rows of {after.wanted} have neither value nor error: {after.cause or after.state}",
                where=f"steps.{step.name}",
                next="run again: only those rows are done",
            )
        receipt = self.dataset.receipt(step.name)
        if plan.todo or not receipt or not self.planner.matches(step, receipt, rows.digest):
            table = self.planner.table(step.name)
            if not table.exists():  # no row was wanted: an empty table, so that its schema is known
                table.commit(step.op.table_schema(), [])
                self.planner.judge(step)
            counts = self._count(step)
            judge_errors(step.name, counts["errors"], counts["rows"], step.op.execution.max_error_rate)
            extra = {"cpu_seconds_per_row": result.cpu_seconds / result.done} if result.done else {}
            if result.waited + result.busy:
                extra["waiting"] = result.waited / (result.waited + result.busy)
            self._receipt(step, rows.digest, self.planner.results[step.name], counts, receipt, **extra)
        else:
            counts = receipt["counts"]
            judge_errors(step.name, counts["errors"], counts["rows"], step.op.execution.max_error_rate)
        result.counts = counts
        self.progress.finish(step.name, counts)

    def _count(self, step: Step) -> dict[str, int]:
        """rows = values + errors on the rows wanted, counted from what is stored."""
        table, rows = self.planner.table(step.name), self.planner.wanted(step)
        files, errors, wanted, children = table.files(), 0, 0, 0
        for low, high in rows.windows():
            ids = rows.ids(low, high)
            wanted += len(ids)
            if not len(ids):
                continue
            if isinstance(step.op, Expand):
                marks = np.array([child_id(int(i), MAX_CHILDREN) for i in ids])
                data = take_ids(table.uri, files, marks, ["children", "error"])
                children += pc.sum(data["children"]).as_py() or 0
            else:
                data = take_ids(table.uri, files, ids, ["error"])
            errors += len(ids) - data["error"].null_count
        counts = {"rows": wanted, "values": wanted - errors, "errors": errors}
        return {**counts, "children": children} if isinstance(step.op, Expand) else counts

    def _drop_errors(self) -> None:
        """Take error rows away, so that they are missing and will be done again.

        Of the steps of this run all errors; of the steps that read a column, anywhere in the recipe, those rows that
        failed with their input, since it may have a value now.
        """
        mine = {step.name for step in self.steps}
        for step in self.planner.graph:
            if not isinstance(step.op, Annotate | Expand) or not (step.name in mine or step.reads):
                continue
            try:
                self.planner.identify(step)
            except UserError:
                continue  # blocked, and not of this run
            table = self.planner.table(step.name)
            try:
                bad = [f for f in table.files() if f.errors]
            except Damaged:
                continue  # told when the step is judged
            keep = pc.field("error").is_null()
            if step.name not in mine:
                keep = keep | (pc.field("error", "type") != INPUT_FAILED)
            kept = [read_files(table.uri, [f]).filter(keep) for f in bad]
            if sum(f.rows for f in bad) > sum(t.num_rows for t in kept):
                files = [write_file(table.uri, t) for t in kept if t.num_rows]
                table.commit(step.op.table_schema(), files, bad, note="retry errors")

    # ---- Select and Reduce: whole columns

    def _whole(self, step: Step, plan: StepPlan) -> None:
        """Compute a column from whole columns and put it in place of the old one in one commit."""
        result = self.results[step.name]
        self.progress.start(step.name, (plan.wanted or 0) - (plan.todo or 0), plan.wanted or 0)
        if plan.state != FRESH:
            start = time.process_time()
            inputs, table = self.planner.inputs(step), self.planner.table(step.name)
            if isinstance(step.op, Select):
                data = _with_errors(self.planner.decide(step), None)
                data = data.set_column(data.num_columns - 1, pa.field("error", ERROR), _failures(data))
            else:
                data = self._reduce(step, self.planner.columns(step))
            schema = step.op.table_schema()
            data = data.select(schema.names).cast(schema)
            wanted = plan.wanted or 0
            if data.num_rows != wanted:
                raise AssertionError(f"{step.name}: {data.num_rows} results for {wanted} rows")
            new = [write_file(table.uri, data)] if data.num_rows else []
            table.commit(schema, new, table.files(), note="replace")
            result.done, result.cpu_seconds = wanted, time.process_time() - start
            counts = _whole_counts(step, data)
            rate: dict[str, Any] = {"cpu_seconds_per_row": result.cpu_seconds / wanted} if wanted else {}
            content = digest([plan.fingerprint, _content_digest(data)])
            if isinstance(step.op, Select):
                kept = data.filter(pc.equal(data["verdict"], "kept")).select(["id"])
                rate["kept"] = digest([step.domain, _content_digest(kept)])
            self._receipt(step, inputs, content, counts, self.dataset.receipt(step.name), **rate)
            self.planner.judge(step)
        result.counts = (self.dataset.receipt(step.name) or {}).get("counts", {})
        self.progress.finish(step.name, result.counts)

    def _reduce(self, step: Step, columns: dict[str, pa.Table]) -> pa.Table:
        """Run a Reduce in a Ray task on rows without an input error, and carry the errors over."""
        import ray

        connect(self.address)
        first = next(iter(columns.values()))
        bad = pa.concat_tables(
            [c.filter(pc.field("error").is_valid()).select(["id", "error"]) for c in columns.values()]
        )
        good = (
            pc.invert(pc.is_in(first["id"], bad["id"]))
            if bad.num_rows
            else pa.array([True] * first.num_rows, pa.bool_())
        )
        clean = {name: table.filter(good) for name, table in columns.items()}
        try:
            op = ray.cloudpickle.dumps(step.op)
            values = ray.get(ray.remote(max_retries=2)(_reduce_task).remote(op, search_paths(), clean))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            what = cause.what if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
            raise UserError(what, where=f"steps.{step.name}") from error
        if not values["id"].equals(next(iter(clean.values()))["id"]):
            raise AssertionError(f"{step.op.name} must return one row per id, in order")
        firsts = np.unique(bad["id"].to_numpy(), return_index=True)[1]
        failed = bad.take(pa.array(firsts, pa.int64()))
        return pa.concat_tables([_with_errors(values, None), failed], promote_options="default").sort_by("id")

    def _receipt(
        self, step: Step, inputs: str | None, result: str | None, counts: dict, old: dict | None, **extra: Any
    ) -> None:
        kept = {name: old[name] for name in ("cpu_seconds_per_row", "waiting") if old and name in old}
        commit, files = self.planner.table(step.name).snapshot()
        self.dataset.write_receipt(
            step.name,
            {
                "step": step.name,
                "op": step.op.label(),
                "kind": step.kind,
                "version": step.op.version(),
                "config": self.planner.identities[step.name],
                "fingerprint": self.planner.fingerprints[step.name],
                "reads": {name: self.planner.fingerprints[name] for name in step.reads},
                "rows": step.rows,
                "domain": step.domain,
                "inputs": inputs,
                "result": result,
                "files": files_digest(files),
                "commit": commit,
                "counts": counts,
                "errors": counts.get("errors", counts.get("failed", 0)),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                **kept,
                **extra,
            },
        )


def _one_pass(ready: list[Step]) -> list[Step]:
    """Those of the ready steps that share a pass with the first: same row domain, none that wants one of its own."""
    if not ready or getattr(ready[0].op, "apart", False):
        return ready[:1]
    return [s for s in ready if s.domain == ready[0].domain and not getattr(s.op, "apart", False)]


def _reduce_task(op: bytes, paths: list[str], columns: dict[str, pa.Table]) -> pa.Table:
    sys.path.extend(path for path in paths if path not in sys.path)  # last: they replace no module
    return pickle.loads(op).reduce(columns)


def _with_errors(data: pa.Table, errors: pa.ChunkedArray | None) -> pa.Table:
    column = pa.nulls(data.num_rows, ERROR) if errors is None else errors
    return data.append_column(pa.field("error", ERROR), column)


def _failures(verdicts: pa.Table) -> pa.Array:
    """Errors of a Select's failed rows, so that what reads its verdict fails too instead of rejecting them."""
    rows = zip(verdicts["verdict"].to_pylist(), verdicts["reason"].to_pylist(), strict=True)
    return pa.array(
        [
            {"stage": "select", "type": INPUT_FAILED, "message": reason, "transient": False}
            if verdict == "failed"
            else None
            for verdict, reason in rows
        ],
        ERROR,
    )


def _whole_counts(step: Step, data: pa.Table) -> dict[str, int]:
    if isinstance(step.op, Select):
        verdicts = data["verdict"].to_pylist()
        return {"rows": len(verdicts), **{v: verdicts.count(v) for v in ("kept", "rejected", "failed")}}
    errors = data.num_rows - data["error"].null_count
    return {"rows": data.num_rows, "values": data.num_rows - errors, "errors": errors}


def _content_digest(data: pa.Table) -> str:
    """Digest of the values themselves: a Select that decides the same again leaves its readers fresh."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]
