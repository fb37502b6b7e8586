"""What is stale, why, and what it will cost: a pure function of the recipe, the listing and the store's log.

Each step is judged in order. Where its receipt matches (same fingerprint, same inputs) it is fresh and no row is
read. Else the cause is named, and the rows to do are counted by ``wanted - present``. A Select whose inputs are
complete is evaluated in memory, so a plan can say what a new threshold would send on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.errors import UserError
from nextloom.op import Annotate, Expand, Op, Select, digest
from nextloom.pipelines.recipe import SOURCE, Graph, Recipe, Step
from nextloom.store.dataset import ITEM, Changes, Dataset
from nextloom.store.files import read_files, take_ids
from nextloom.store.rowset import Guess, RowSet, files_digest, missing, source_rows
from nextloom.store.table import Table

FRESH, STALE, MISSING, BLOCKED = "fresh", "stale", "missing", "blocked"


@dataclass
class StepPlan:
    """The state of one step."""

    step: str
    op: str
    kind: str
    state: str
    cause: str = ""
    wanted: int | None = None
    """Rows it is wanted on; None while an earlier step has not decided."""
    todo: int | None = 0
    """Rows to do; None while an earlier step has not decided."""
    after: str = ""
    """The step that must decide first, where `todo` is None."""
    cpu_seconds: float | None = None
    """Expected work, from the recorded throughput of the step's last run; None before the first."""
    fingerprint: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Planner:
    """Judges the steps of a recipe in order; `run` uses it too, and asks again after each step it has finished."""

    def __init__(self, recipe: Recipe, dataset: Dataset, *, retry_errors: bool = False) -> None:
        self.recipe, self.dataset, self.graph = recipe, dataset, Graph(recipe)
        self.retry_errors = retry_errors
        self.changes = Changes(dataset, listing_table(recipe))
        self.fingerprints: dict[str, str] = {}
        self.identities: dict[str, dict[str, Any]] = {}
        self.results: dict[str, str | None] = {}
        """step -> digest of its result; None while it is not known."""
        self.rowsets: dict[str, RowSet | Guess | None] = {}
        self._tables: dict[str, Table] = {}
        self.refresh_source()

    def refresh_source(self) -> None:
        """The source's rows as they are, or as the listing says they will be."""
        rows = source_rows(self.dataset)
        if self.changes:
            known = np.concatenate([rows.ids(*w) for w in rows.windows()] or [np.empty(0, np.int64)])
            known = np.setdiff1d(known, self.changes.gone, assume_unique=True)
            self.rowsets[SOURCE], self.results[SOURCE] = Guess(known, self.changes.new.num_rows), None
        else:
            self.rowsets[SOURCE], self.results[SOURCE] = rows, rows.digest

    def sync(self) -> None:
        """Write the listing's changes to the rows table."""
        self.changes.apply()
        self.changes = Changes(self.dataset, listing_table(self.recipe))
        self.refresh_source()

    def table(self, step: str) -> Table:
        """The column of `step` at its present fingerprint."""
        return self.dataset.column(step, self.fingerprints[step])

    def judge(self, step: Step) -> StepPlan:
        """State of one step; the steps it needs must have been judged before."""
        plan = StepPlan(step.name, step.op.name, step.kind, FRESH)
        try:
            self._identify(step)
        except UserError as error:
            plan.state, plan.cause, plan.todo = BLOCKED, str(error).replace("\n  next:", ";"), None
            self._forget(step)
            return plan
        plan.fingerprint = self.fingerprints[step.name]
        rows = self.rowsets[step.rows]
        plan.wanted = None if rows is None else rows.count()
        receipt = self.dataset.receipt(step.name)
        if isinstance(step.op, Annotate | Expand):
            self._judge_rows(step, plan, rows, receipt)
        else:
            self._judge_whole(step, plan, rows, receipt)
        rate = (receipt or {}).get("cpu_seconds_per_row")
        if plan.todo and rate is not None:
            plan.cpu_seconds = round(rate * plan.todo, 3)
        return plan

    def wanted(self, step: Step) -> RowSet | Guess:
        """The rows a step is wanted on; what chooses them must have been judged and be known."""
        rows = self.rowsets[step.rows]
        assert rows is not None, f"{step.rows} has not decided"
        return rows

    def inputs(self, step: Step) -> str | None:
        """Digest of everything a Reduce or Select is computed from; None while part of it is unknown."""
        parts = [self.results[step.rows], *(self.results[name] for name in step.reads)]
        return None if None in parts else digest(parts)

    def columns(self, step: Step) -> dict[str, pa.Table]:
        """The tables that a Reduce or Select reads, on exactly the rows it is wanted on, sorted by id."""
        rows = self.wanted(step)
        ids = np.concatenate([rows.ids(*window) for window in rows.windows()] or [np.empty(0, np.int64)])
        out = {name: _take(self.table(name), ids) for name in step.reads}
        if isinstance(step.op, Select):
            if step.domain == SOURCE:
                out[SOURCE] = _take(self.dataset.rows, ids)
            else:
                out[SOURCE] = _take(self.table(step.domain), ids).drop_columns(["error"])
        return out

    def _identify(self, step: Step) -> None:
        identity = op_identity(step.op, f"steps.{step.name}")
        reads = {name: self.fingerprints[name] for name in step.reads if name in self.fingerprints}
        if len(reads) < len(step.reads):
            absent = next(name for name in step.reads if name not in reads)
            raise UserError(f"needs {absent}, which is blocked")
        self.identities[step.name] = identity
        self.fingerprints[step.name] = digest(
            {
                "op": step.op.name,
                "version": step.op.version(),
                "config": identity,
                "reads": reads if isinstance(step.op, Select) else list(reads.values()),
                "domain": self.fingerprints.get(step.domain),
            }
        )

    def _forget(self, step: Step) -> None:
        self.fingerprints.pop(step.name, None)
        self.results[step.name] = self.rowsets[step.name] = None

    def _judge_rows(self, step: Step, plan: StepPlan, rows: RowSet | Guess | None, receipt: dict | None) -> None:
        table = self.table(step.name)
        expand = isinstance(step.op, Expand)
        same = receipt if receipt and receipt["fingerprint"] == plan.fingerprint else None
        retry = bool(self.retry_errors and same and same["errors"])
        if not retry and isinstance(rows, RowSet) and self.matches(step, receipt, rows.digest):
            self._know(step, table)
            return
        if rows is None:
            plan.state, plan.todo, plan.after = STALE if receipt else MISSING, None, step.rows
        else:
            plan.todo = sum(len(ids) for ids in missing(rows, table, expand=expand, retry=retry))
            plan.todo += rows.extra if isinstance(rows, Guess) else 0
            plan.state = (STALE if receipt else MISSING) if plan.todo else FRESH
        if plan.state == STALE:
            plan.cause = self._cause(step, receipt) or ("RETRY ERRORS" if retry else "NEW ROWS")
        if plan.state == FRESH and isinstance(rows, RowSet):
            self._know(step, table)
        else:
            self.results[step.name] = None
            self.rowsets[step.name] = None

    def matches(self, step: Step, receipt: dict | None, inputs: str | None) -> bool:
        """True when `receipt` is about this fingerprint, these inputs, and the files that the table has now."""
        if receipt is None or (receipt["fingerprint"], receipt["inputs"]) != (self.fingerprints[step.name], inputs):
            return False
        return receipt["files"] == files_digest(self.table(step.name).files())

    def _know(self, step: Step, table: Table) -> None:
        files = table.files()
        self.results[step.name] = files_digest(files)
        if isinstance(step.op, Expand):
            self.rowsets[step.name] = RowSet(table.uri, tuple(files), files_digest(files), "children")

    def _judge_whole(self, step: Step, plan: StepPlan, rows: RowSet | Guess | None, receipt: dict | None) -> None:
        inputs = self.inputs(step)
        if receipt and self.matches(step, receipt, inputs):
            self.results[step.name] = receipt["result"]
            if isinstance(step.op, Select):
                files = self.table(step.name).files()
                self.rowsets[step.name] = RowSet(self.table(step.name).uri, tuple(files), receipt["kept"], "kept")
            return
        plan.state = STALE if receipt else MISSING
        plan.todo = plan.wanted
        if plan.todo is None:
            plan.after = step.rows
        if receipt:
            plan.cause = self._cause(step, receipt) or "INPUT"
        self.results[step.name] = self.rowsets[step.name] = None
        if isinstance(step.op, Select) and inputs is not None:
            verdicts = step.op.decide(self.columns(step))
            kept = verdicts.filter(pc.equal(verdicts["verdict"], "kept"))["id"].to_numpy()
            self.rowsets[step.name] = Guess(kept)

    def _cause(self, step: Step, receipt: dict | None) -> str:
        """CODE, CONFIG or INPUT with what changed; "" when the fingerprint is the same."""
        if receipt is None or receipt["fingerprint"] == self.fingerprints[step.name]:
            return ""
        if receipt["op"] != step.op.name:
            return f"CONFIG op {receipt['op']} -> {step.op.name}"
        if receipt["version"] != step.op.version():
            return f"CODE {receipt['version']} -> {step.op.version()}"
        old, new = receipt["config"], self.identities[step.name]
        changed = [key for key in new if old.get(key) != new[key]]
        if changed:
            return "CONFIG " + ", ".join(f"{key} {_short(old.get(key))} -> {_short(new[key])}" for key in changed)
        return "INPUT"


def plan(recipe: Recipe, dataset: Dataset, *, to: str | None = None, retry_errors: bool = False) -> list[StepPlan]:
    """State of every step (up to `to`), in order. Writes nothing."""
    planner = Planner(recipe, dataset, retry_errors=retry_errors)
    return [planner.judge(step) for step in planner.graph.upto(to)]


def listing_table(recipe: Recipe) -> pa.Table:
    """What the source lists now, schema `ITEM`."""
    items = recipe.source.listing()
    columns = {name: [getattr(item, name) for item in items] for name in ITEM.names}
    return pa.table(columns, schema=ITEM)


def op_identity(op: Op, where: str) -> dict[str, Any]:
    """Fields of `op` that change its result, with weights replaced by the digest of their content."""
    identity = op.identity()
    identity.pop("reads", None)
    for name, make in op.weights.items():
        if identity[name] is None:
            continue
        try:
            identity[name] = op.digest_weights(name)
        except FileNotFoundError:
            raise UserError(f"no weights at {identity[name]}", where=f"{where}.{name}", next=make) from None
    return identity


def _take(table: Table, ids: np.ndarray) -> pa.Table:
    files = table.files()
    if not len(ids):
        return read_files(table.uri, files[:1]).slice(0, 0)
    return take_ids(table.uri, files, ids)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
