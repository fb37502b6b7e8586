"""Compaction: the small files that many small runs leave become few large ones; values, ids and states stay.

Every run that finds new rows to do appends files, so ten loosened thresholds leave ten small files per column.
`compact` merges neighbours by id up to a size, in one commit per table, and then writes the receipts of the steps
that were fresh anew, since a receipt names files. Price paid: a kill between a commit and the receipts makes the
decisions over that column run once more, to the same result. Releases keep listing the old files, which stay on disk
until `nextloom vacuum` finds them in no release.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nextloom.op import Annotate, Expand
from nextloom.pipelines.plan import FRESH, Planner
from nextloom.pipelines.recipe import SOURCE, Recipe
from nextloom.store.dataset import GONE, ROWS, Dataset
from nextloom.store.files import File, read_files, write_file
from nextloom.store.rowset import RowSet, files_digest
from nextloom.store.table import Table

TARGET_BYTES = 128 * 2**20
"""Size of a merged file; a larger file is left as it is. What is merged at once lies in memory."""
TARGET_ROWS = 1_000_000


@dataclass(frozen=True)
class Compacted:
    """Files of one table before and after."""

    table: str
    before: int
    after: int


def compact(recipe: Recipe, dataset: Dataset) -> list[Compacted]:
    """Merge the small files of the rows and of every column of the recipe; the caller holds the lease."""
    planner = Planner(recipe, dataset)
    states = {step.name: planner.judge(step).state for step in planner.graph}
    out = [
        _compact(SOURCE, dataset.rows, ROWS),
        _compact("gone", dataset.gone, GONE),
        *(
            _compact(step.name, planner.table(step.name), step.op.table_schema())
            for step in planner.graph
            if step.name in planner.fingerprints
        ),
    ]
    if not planner.changes:
        _renew_receipts(recipe, dataset, {name for name, state in states.items() if state == FRESH})
    return out


def _compact(name: str, table: Table, schema) -> Compacted:
    files = table.files()
    merged: list[File] = []
    replaced: list[File] = []
    for group in groups(files):
        merged.append(write_file(table.uri, read_files(table.uri, group).cast(schema)))
        replaced += group
    if merged:
        table.commit(schema, merged, replaced, note="compact")
    return Compacted(name, len(files), len(files) - len(replaced) + len(merged))


def groups(files: Sequence[File]) -> Iterator[list[File]]:
    """Runs of two or more neighbours by id whose sum stays below the targets."""
    group: list[File] = []
    size = rows = 0
    for file in sorted(files, key=lambda f: (f.min_id, f.path)):
        if group and (size + file.size > TARGET_BYTES or rows + file.rows > TARGET_ROWS):
            if len(group) > 1:
                yield group
            group, size, rows = [], 0, 0
        group.append(file)
        size, rows = size + file.size, rows + file.rows
    if len(group) > 1:
        yield group


def _renew_receipts(recipe: Recipe, dataset: Dataset, fresh: set[str]) -> None:
    """Bring the receipts of fresh steps to the files that their tables have now, in the order of the graph."""
    planner = Planner(recipe, dataset)
    for step in planner.graph:
        receipt = dataset.receipt(step.name)
        if step.name in fresh and receipt:
            planner.identify(step)
            rows = planner.rowsets[step.rows]
            assert isinstance(rows, RowSet), f"{step.rows} of a fresh step is known"
            commit, found = planner.table(step.name).snapshot()
            files = files_digest(found)
            if isinstance(step.op, Annotate | Expand):
                renewed = {**receipt, "inputs": rows.digest, "result": files, "files": files, "commit": commit}
            else:
                renewed = {**receipt, "inputs": planner.inputs(step), "files": files, "commit": commit}
            if renewed != receipt:
                dataset.write_receipt(step.name, renewed)
        planner.judge(step)
