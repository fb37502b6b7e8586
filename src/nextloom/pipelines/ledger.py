"""The ledger of a pass: books every written file, commits as the work goes, and stops when too much fails."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nextloom.errors import UserError
from nextloom.pipelines.recipe import RunOptions
from nextloom.pipelines.worker import Task
from nextloom.store.files import File
from nextloom.store.table import Table

JUDGE_ERRORS_AFTER = 1000


@dataclass
class StepResult:
    """What a run did to one step."""

    step: str
    kind: str
    done: int = 0
    """Rows settled in this run."""
    errors: int = 0
    cpu_seconds: float = 0.0
    waited: float = 0.0
    """Wall seconds in which workers waited for inputs of this step: reading and decoding."""
    busy: float = 0.0
    """Wall seconds in which they ran its op."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of the whole column on the rows it is wanted on: rows, values, errors, and of a Select kept, rejected, failed."""


class Ledger:
    """Collects file records and commits them every `commit_seconds` or `commit_files`."""

    def __init__(
        self, tasks: Sequence[Task], tables: Mapping[str, Table], results: Mapping[str, StepResult], options: RunOptions
    ) -> None:
        self._tasks = {task.step: task for task in tasks}
        self._tables, self._results, self._options = tables, results, options
        self._waiting: dict[str, list[File]] = defaultdict(list)
        self._last = time.monotonic()

    def take(self, record: dict[str, Any]) -> None:
        """Book one written file."""
        step, done, seconds = record["step"], record["done"], record["seconds"]
        names = File.__dataclass_fields__
        self._waiting[step].append(File(**{name: record[name] for name in names}))
        result = self._results[step]
        result.done += done
        result.errors += record["errors"]
        result.cpu_seconds += seconds
        result.waited += record["waited"]
        result.busy += record["busy"]
        options = self._options
        many = sum(map(len, self._waiting.values())) >= options.commit_files
        if many or time.monotonic() - self._last >= options.commit_seconds:
            self.flush()
            self.judge()

    def flush(self) -> None:
        """Commit what is waiting: from here on it exists."""
        for name, files in self._waiting.items():
            if files:
                self._tables[name].commit(self._tasks[name].op.table_schema(), files, note="run")
        self._waiting.clear()
        self._last = time.monotonic()

    def judge(self) -> None:
        """Stop a step in which too much fails; judged once it has done enough rows."""
        for name, task in self._tasks.items():
            result = self._results[name]
            if result.done >= JUDGE_ERRORS_AFTER:
                judge_errors(name, result.errors, result.done, task.op.execution.max_error_rate)


def judge_errors(step: str, errors: int, rows: int, limit: float) -> None:
    """Raise a `UserError` when more than the share `limit` of `rows` failed."""
    if errors > limit * rows:
        raise UserError(
            f"{errors} of {rows} rows failed, more than max_error_rate {limit:g} allows; what was done is kept",
            where=f"steps.{step}",
            next="nextloom report RECIPE shows the reasons; then nextloom run RECIPE --retry-errors",
        )
