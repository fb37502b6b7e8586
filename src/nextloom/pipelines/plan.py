"""What is stale, why, and what it will cost: a pure function of the recipe, the listing and the store's log.

Each step is judged in order. Where its receipt matches (same fingerprint, same inputs) it is fresh and no row is
read. Else the cause is named, and the rows to do are counted by ``wanted - present``. A Select whose inputs are
complete is evaluated in memory, so a plan can say what a new threshold would send on.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.errors import Damaged, UserError
from nextloom.op import CHILDREN, Annotate, Expand, Op, Reduce, Select, digest
from nextloom.pipelines.recipe import SOURCE, Graph, Recipe, Step
from nextloom.pipelines.uses import check_environment, code_of, environment_of
from nextloom.pipelines.vanishing import warning
from nextloom.store.dataset import ROWS, Dataset
from nextloom.store.files import take_ids
from nextloom.store.listing import Changes
from nextloom.store.rowset import Guess, RowSet, child_rows, files_digest, missing, source_rows
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
    code: str = ""
    """Class and file of an op from outside of the package."""
    environment: tuple[str, ...] = ()
    """Environment variables that the op reads."""
    next: str = ""
    """The command that helps where it is blocked, if one does."""
    warning: str = ""
    """What a rule may lose that its author did not mean to, and what to write instead."""
    notes: tuple[str, ...] = ()
    """What the listing of the source passed over."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Planner:
    """Judges the steps of a recipe in order; `run` uses it too, and asks again after each step it has finished."""

    def __init__(self, recipe: Recipe, dataset: Dataset, *, retry_errors: bool = False, listing: bool = True) -> None:
        """List the source and read the rows; without `listing`, only fingerprints can be asked for."""
        self.recipe, self.dataset, self.graph = recipe, dataset, Graph(recipe)
        self.retry_errors = retry_errors
        self.changes: Changes | None = Changes(dataset, recipe.source) if listing else None
        self.notices = self.changes.notices if self.changes is not None else []
        self.nothing = self.changes.nothing if self.changes is not None else ""
        self.fingerprints: dict[str, str] = {}
        self.identities: dict[str, dict[str, Any]] = {}
        self.results: dict[str, str | None] = {}
        """step -> digest of its result; None while it is not known."""
        self.rowsets: dict[str, RowSet | Guess | None] = {}
        self.damaged: dict[str, Damaged] = {}
        """Steps whose column is damaged, or that of a step they need; and by what."""
        if listing:
            self.refresh_source()

    def refresh_source(self) -> None:
        """The source's rows as they are, or as the listing says they will be."""
        if self.changes:
            self.rowsets[SOURCE] = Guess(self.changes.kept, self.changes.new.num_rows)
            self.results[SOURCE] = None
        else:
            rows = source_rows(self.dataset)
            self.rowsets[SOURCE], self.results[SOURCE] = rows, rows.digest

    def source(self) -> StepPlan:
        """What the listing would change in the rows."""
        rows = self.rowsets[SOURCE]
        assert rows is not None
        plan = StepPlan(SOURCE, self.recipe.source.name, SOURCE, FRESH, wanted=rows.count())
        plan.code = code_of(self.recipe.source)
        if self.changes:
            plan.state, plan.cause, plan.todo = STALE, self.changes.describe(), self.changes.new.num_rows
            plan.state = STALE if len(self.changes.kept) or len(self.changes.gone) else MISSING
        plan.notes = tuple(self.notices)
        if not plan.wanted:
            plan.cause = f"{plan.cause} NO ROWS: {self.nothing}".strip()
        return plan

    def sync(self) -> str:
        """Write the listing's changes to the rows table; returns what changed, such as ``+200 -1``.

        Raises:
            UserError: nothing is listed where rows are known, which is more often a missing mount than a wish.
        """
        if not self.changes:
            if self.changes is not None:
                self.changes.note()
            return ""
        buried = len(self.changes.gone)
        if buried and not self.changes.new.num_rows and not len(self.changes.kept) and not self.recipe.run.allow_empty:
            raise UserError(
                f"the source lists nothing, but {buried:,} rows are known",
                where="source",
                next="mount it or mend its path; to bury all rows: --set run.allow_empty=true",
            )
        told = self.changes.describe()
        self.changes.apply()
        self.changes = None
        self.refresh_source()
        return told

    def table(self, step: str) -> Table:
        """The column of `step` at its present fingerprint."""
        return self.dataset.column(step, self.fingerprints[step])

    def judge(self, step: Step) -> StepPlan:
        """State of one step; the steps it needs must have been judged before."""
        plan = StepPlan(step.name, step.op.name, step.kind, FRESH)
        plan.code, plan.environment = code_of(step.op), environment_of(step.op)
        self.damaged.pop(step.name, None)
        if lost := {step.rows, step.domain, *step.reads} & self.damaged.keys():
            return self._hurt(step, plan, self.damaged[min(lost)])
        plan.warning = warning(self.graph, step)
        try:
            self.identify(step)
        except UserError as error:
            return self._blocked(step, plan, error)
        plan.fingerprint = self.fingerprints[step.name]
        receipt = self.dataset.receipt(step.name)
        try:
            self._judge(step, plan, self.rowsets[step.rows], receipt)
        except Damaged as damage:
            return self._hurt(step, plan, damage)
        rate = (receipt or {}).get("cpu_seconds_per_row")
        if plan.todo and rate is not None:
            plan.cpu_seconds = round(rate * plan.todo, 3)
        return plan

    def _judge(self, step: Step, plan: StepPlan, rows: RowSet | Guess | None, receipt: dict | None) -> None:
        if receipt and receipt["fingerprint"] == plan.fingerprint:
            self.table(step.name).require(receipt["commit"])
        if isinstance(step.op, Annotate | Expand):
            self._judge_rows(step, plan, rows, receipt)
        else:
            self._judge_whole(step, plan, rows, receipt)

    def _hurt(self, step: Step, plan: StepPlan, damage: Damaged) -> StepPlan:
        self.damaged[step.name] = damage
        return self._blocked(step, plan, damage)

    def _blocked(self, step: Step, plan: StepPlan, error: UserError) -> StepPlan:
        plan.state, plan.cause, plan.todo = BLOCKED, str(error).replace("\n  next:", ";"), None
        plan.next = error.next or ""
        self._forget(step)
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
        ids = rows.all_ids()
        whole = isinstance(step.op, Reduce)
        out = {name: _take(self.table(name), self.graph[name].op.table_schema(), ids, whole) for name in step.reads}
        if isinstance(step.op, Select):
            out[SOURCE] = self.domain_rows(step, ids)
        return out

    def domain_rows(self, step: Step, ids: np.ndarray) -> pa.Table:
        """The rows that `step` is about: of the source, or children of an Expand."""
        if step.domain == SOURCE:
            return _take(self.dataset.rows, ROWS, ids, True)
        return _take(self.table(step.domain), CHILDREN, ids, True).drop_columns(["error"])

    def decide(self, step: Step) -> pa.Table:
        """Verdicts of a Select on the rows it is wanted on; a `UserError` names the step."""
        assert isinstance(step.op, Select)
        columns = self.columns(step)
        try:
            return step.op.decide(columns)
        except UserError as error:
            raise UserError(error.what, where=f"steps.{step.name}.{error.where or 'where'}", next=error.next) from None

    def identify(self, step: Step) -> None:
        """Work out fingerprint and identity of a step; a `UserError` when weights are absent or an input has none."""
        check_environment(step.op, f"steps.{step.name}", self.recipe.allowed_environment)
        identity = op_identity(step.op, f"steps.{step.name}")
        reads = {name: self.fingerprints[name] for name in step.reads if name in self.fingerprints}
        if len(reads) < len(step.reads):
            absent = next(name for name in step.reads if name not in reads)
            raise UserError(f"needs {absent}, which is blocked")
        self.identities[step.name] = identity
        self.fingerprints[step.name] = digest(
            {
                "op": step.op.label(),
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
        if receipt and not retry and isinstance(rows, RowSet) and self.matches(step, receipt, rows.digest):
            plan.wanted = receipt["counts"]["rows"]
            self._know(step, table, rows)
            return
        plan.wanted = None if rows is None else rows.count()
        if rows is None:
            plan.state, plan.todo, plan.after = STALE if receipt else MISSING, None, step.rows
        else:
            plan.todo = sum(len(ids) for ids in missing(rows, table, expand=expand, retry=retry))
            plan.todo += rows.extra if isinstance(rows, Guess) else 0
            plan.state = (STALE if receipt else MISSING) if plan.todo else FRESH
        if plan.state == STALE:
            plan.cause = self._cause(step, receipt) or ("RETRY ERRORS" if retry else "NEW ROWS")
        if plan.state == FRESH and isinstance(rows, RowSet):
            self._know(step, table, rows)
        else:
            self.results[step.name] = None
            self.rowsets[step.name] = None

    def matches(self, step: Step, receipt: dict | None, inputs: str | None) -> bool:
        """True when `receipt` is about this fingerprint, these inputs, and the files that the table has now."""
        if receipt is None or inputs is None or receipt["inputs"] != inputs:
            return False
        if receipt["fingerprint"] != self.fingerprints[step.name]:
            return False
        return receipt["files"] == files_digest(self.table(step.name).files())

    def _know(self, step: Step, table: Table, rows: RowSet) -> None:
        self.results[step.name] = files_digest(table.files())
        if isinstance(step.op, Expand):
            self.rowsets[step.name] = child_rows(table, rows)

    def _judge_whole(self, step: Step, plan: StepPlan, rows: RowSet | Guess | None, receipt: dict | None) -> None:
        inputs = self.inputs(step)
        if receipt and self.matches(step, receipt, inputs):
            plan.wanted = receipt["counts"]["rows"]
            self.results[step.name] = receipt["result"]
            if isinstance(step.op, Select):
                files = self.table(step.name).files()
                self.rowsets[step.name] = RowSet(self.table(step.name).uri, tuple(files), receipt["kept"], "kept")
            return
        plan.state = STALE if receipt else MISSING
        plan.wanted = plan.todo = None if rows is None else rows.count()
        if plan.todo is None:
            plan.after = step.rows
        if receipt:
            plan.cause = self._cause(step, receipt) or "INPUT"
        self.results[step.name] = self.rowsets[step.name] = None
        listed = rows is not None and not (isinstance(rows, Guess) and rows.extra)
        if isinstance(step.op, Select) and listed and None not in [self.results[name] for name in step.reads]:
            verdicts = self.decide(step)
            kept = verdicts.filter(pc.equal(verdicts["verdict"], "kept"))["id"].to_numpy()
            self.rowsets[step.name] = Guess(kept)

    def _cause(self, step: Step, receipt: dict | None) -> str:
        """CODE, CONFIG or INPUT with what changed; "" when the fingerprint is the same."""
        if receipt is None or receipt["fingerprint"] == self.fingerprints[step.name]:
            return ""
        if receipt["op"] != step.op.label():
            return f"CONFIG op {receipt['op']} -> {step.op.label()}"
        if receipt["version"] != step.op.version():
            return f"CODE {receipt['version']} -> {step.op.version()}"
        old, new = receipt["config"], self.identities[step.name]
        changed = [key for key in new if old.get(key) != new[key]]
        if changed:
            told = [f"{step.op.spelled(key)} {_change(str(old.get(key)), str(new[key]))}" for key in changed]
            return f"CONFIG {', '.join(told)}"
        return "INPUT"


def plan(recipe: Recipe, dataset: Dataset, *, to: str | None = None, retry_errors: bool = False) -> list[StepPlan]:
    """State of the source and of every step (up to `to`), in order. Writes nothing."""
    planner = Planner(recipe, dataset, retry_errors=retry_errors)
    return [planner.source(), *(planner.judge(step) for step in planner.graph.upto(to))]


def wanted_fingerprints(recipe: Recipe, dataset: Dataset) -> dict[str, str]:
    """step -> its fingerprint under this recipe, as far as it can be told: not without weights, or a source to list."""
    try:
        planner = Planner(recipe, dataset)
    except Damaged:  # of the rows: no fingerprint depends on them
        return fingerprints_of(recipe, dataset)
    except UserError:  # no source; what the dataset holds can be said all the same
        return {}
    return _identified(planner)


def fingerprints_of(recipe: Recipe, dataset: Dataset) -> dict[str, str]:
    """The same without a look at source and rows."""
    return _identified(Planner(recipe, dataset, listing=False))


def _identified(planner: Planner) -> dict[str, str]:
    for step in planner.graph:
        with suppress(UserError):  # its weights are absent
            planner.identify(step)
    return planner.fingerprints


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
            raise UserError(f"no weights at {identity[name]}", where=f"{where}.{op.spelled(name)}", next=make) from None
    return identity


def _take(table: Table, schema: pa.Schema, ids: np.ndarray, whole: bool) -> pa.Table:
    """Rows of `ids`; unless `whole`, without binary columns, since no rule looks into tokens or embeddings."""
    names = [field.name for field in schema if whole or not pa.types.is_binary(field.type)]
    if not len(ids):
        return schema.empty_table().select(names)
    return take_ids(table.uri, table.files(), ids, names)


def _same(a: str, b: str) -> int:
    """How many characters two texts share from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _change(old: str, new: str, around: int = 12) -> str:
    """``old -> new``; of long texts the part that differs, with the words that stand around it."""
    if max(len(old), len(new)) <= 40:
        return f"{old} -> {new}"
    start = _same(old, new)
    end = _same(old[start:][::-1], new[start:][::-1])
    first = old.rfind(" ", 0, max(0, start - around)) + 1

    def part(text: str) -> str:
        stop = text.find(" ", len(text) - end + around)
        last = len(text) if stop < 0 else stop
        shown = ("... " if first else "") + text[first:last] + (" ..." if last < len(text) else "")
        return shown if len(shown) <= 80 else shown[:77] + "..."

    return f"{part(old)} -> {part(new)}"
