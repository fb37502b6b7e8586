"""What runs in a worker process: one fetch and one decode per row, then every op that wants the row.

A chunk of ids comes in; one Parquet file per step goes out, uncommitted, with a small record of it. A row that
cannot be fetched, decoded or measured becomes a row with an `error`; nothing a row does can lose another.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from nextloom import pixels
from nextloom.content import Content
from nextloom.errors import UserError
from nextloom.op import (
    INPUT_FAILED,
    MAX_CHILDREN,
    Annotate,
    Expand,
    Row,
    RowFailure,
    attempt,
    batched,
    child_id,
    error_value,
)
from nextloom.pipelines.desk import DECODE, FETCH, Desk, load_code
from nextloom.store.files import File, take_ids, write_file
from nextloom.untrusted import Door

AHEAD = 2
"""Batches, and rows per reading thread, that are read and decoded while a GPU works on others."""


@dataclass(frozen=True)
class Source:
    """Files of one table that a worker reads by id: the rows, or a column an op reads."""

    uri: str
    files: tuple[File, ...]
    door: Door | None = None
    """Of the rows: what opens their bytes."""


@dataclass(frozen=True)
class Task:
    """One step of a pass."""

    step: str
    op: Annotate | Expand
    table_uri: str
    reads: Mapping[str, Source] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    """Field -> digest of the weights that the fingerprint was made with."""
    content: tuple[str, str] | None = None
    """(step in `reads`, its column) that holds the bytes of a row; None: the row itself says where they are."""

    @property
    def needs(self) -> str:
        """nothing, bytes or pixels."""
        return self.op.needs if isinstance(self.op, Annotate) else "bytes"

    def setup(self) -> None:
        """Load the op's weights.

        Raises:
            UserError: they cannot be loaded, or are no longer those that the plan saw.
        """
        where = f"steps.{self.step}"
        try:
            self.op.setup()
            for name, planned in self.weights.items():
                if self.op.digest_weights(name) != planned:
                    raise UserError(
                        "these weights changed after the run had begun; nothing was stored with the new ones",
                        where=f"{where}.{self.op.spelled(name)}",
                        next="run again",
                    )
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"cannot set up {self.op.name}: {type(error).__name__}: {error}", where=where) from error


class RowError(Exception):
    """An error that already knows its stage, type and message."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        super().__init__(value["message"])


@dataclass(slots=True)
class _Loaded:
    """One row of a chunk with what its tasks asked for, by where the bytes come from (see `Task.content`)."""

    id: int
    item: dict[str, Any]
    reads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each task's step, its reads."""
    raw: dict[tuple[str, str] | None, bytes] = field(default_factory=dict)
    pixels: dict[tuple[str, str] | None, np.ndarray] = field(default_factory=dict)
    errors: dict[tuple[str, str] | None, RowError] = field(default_factory=dict)
    prepared: dict[str, Any] = field(default_factory=dict)
    """Of each step whose op prepares: what came of it, or the exception."""

    def of(self, task: Task) -> Row:
        """The row as the op of `task` sees it."""
        raw, rgb = self.raw.get(task.content), self.pixels.get(task.content)
        return Row(self.id, self.item["key"], self.item, raw, rgb, self.reads[task.step], self.prepared.get(task.step))


class Worker:
    """Runs the steps of one pass over chunks of ids. Built once per process: loads weights.

    Args:
        tasks: the steps.
        rows: the table of rows.
        desk: where it notes what it is at, for who watches it.
    """

    def __init__(self, tasks: Sequence[Task], rows: Source, desk: Desk | None = None) -> None:
        self._tasks, self._rows, self._desk = tasks, rows, desk or Desk()
        self._places = {origin: place for place, origin in enumerate(origins(tasks))}
        self._numbers = {task.step: number for number, task in enumerate(tasks)}
        self._names = {t.step: set(t.op.columns().names) for t in tasks if isinstance(t.op, Annotate)}
        for task in tasks:
            task.setup()
        self._batch = max((t.op.batch for t in tasks if isinstance(t.op, Annotate)), default=1)
        self._content = Content(rows.door) if rows.door else None
        on_gpu = any(t.op.execution.num_gpus for t in tasks)
        self._readers = max(1, int(max(t.op.execution.num_cpus for t in tasks))) if on_gpu else 0
        """Threads that read and decode ahead of a GPU; 0: the worker's own thread does it between batches."""
        self._ahead = AHEAD * max(1, -(-self._readers // self._batch))
        self._preparing = [
            t for t in tasks if isinstance(t.op, Annotate) and type(t.op).prepare is not Annotate.prepare
        ]
        looking = {t.content for t in tasks if t.needs == "pixels" and t not in self._preparing}
        self._let_go = {t.content for t in self._preparing} - looking
        order = ("nothing", "bytes", "pixels")
        self._needs: dict[tuple[str, str] | None, str] = {}
        for task in tasks:
            known = self._needs.get(task.content, "nothing")
            self._needs[task.content] = max(known, task.needs, key=order.index)

    def __call__(self, chunk: pa.Table) -> pa.Table:
        """`chunk`: id, and per step a bool column that says whether it wants the row. Returns file records."""
        ids = chunk["id"].to_numpy()
        if not len(ids):
            return RECORD.empty_table()
        wanted = {t.step: set(ids[chunk[t.step].to_numpy()].tolist()) for t in self._tasks}
        values: dict[str, list[dict[str, Any]]] = defaultdict(list)
        seconds: dict[str, float] = defaultdict(float)
        waited: dict[str, float] = defaultdict(float)
        busy: dict[str, float] = defaultdict(float)
        shared, clock, sharing = time.process_time(), time.perf_counter(), max(1, sum(map(bool, wanted.values())))
        for rows in self._load(ids, wanted):
            load, wait = (time.process_time() - shared) / sharing, (time.perf_counter() - clock) / sharing
            for task in self._tasks:
                mine = [row for row in rows if row.id in wanted[task.step]]
                start, began = time.process_time(), time.perf_counter()
                values[task.step] += self._run(task, mine)
                seconds[task.step] += time.process_time() - start + (load if mine else 0)
                waited[task.step] += wait if mine else 0
                busy[task.step] += time.perf_counter() - began
            shared, clock = time.process_time(), time.perf_counter()
        records = []
        for task in self._tasks:
            if values[task.step]:
                file = write_file(task.table_uri, _to_table(task, values[task.step]))
                done = len(wanted[task.step])
                spent = {"seconds": seconds[task.step], "waited": waited[task.step], "busy": busy[task.step]}
                records.append({"step": task.step, **file.as_dict(), "done": done, **spent})
        return pa.Table.from_pylist(records, schema=RECORD)

    def _load(self, ids: np.ndarray, wanted: Mapping[str, set[int]]) -> Iterator[list[_Loaded]]:
        """Rows with their inputs, a batch at a time; bytes and pixels are read once for all tasks that share them."""
        table = take_ids(self._rows.uri, self._rows.files, ids).to_pylist()
        reads = {t.step: {n: take_by_id(s, ids) for n, s in t.reads.items()} for t in self._tasks}
        starts = range(0, len(table), self._batch)
        if not self._readers:
            for start in starts:
                yield [self._inputs(item, reads, wanted) for item in table[start : start + self._batch]]
            return
        with ThreadPoolExecutor(self._readers) as pool:  # a decoder does its work outside of Python's lock
            coming: deque[list[Future[_Loaded]]] = deque()
            for start in starts:
                batch = table[start : start + self._batch]
                coming.append([pool.submit(self._inputs, item, reads, wanted) for item in batch])
                if len(coming) > self._ahead:
                    yield [future.result() for future in coming.popleft()]
            while coming:
                yield [future.result() for future in coming.popleft()]

    def _inputs(
        self,
        item: dict[str, Any],
        reads: Mapping[str, Mapping[str, Mapping[int, Any]]],
        wanted: Mapping[str, set[int]],
    ) -> _Loaded:
        row = _Loaded(item["id"], item)
        row.reads = {t: {n: by_id.get(row.id) for n, by_id in columns.items()} for t, columns in reads.items()}
        for origin, needs in self._needs.items():
            if needs == "nothing":
                continue
            place = self._places[origin]
            try:
                with self._desk.at(load_code(place, FETCH), row.id, row.id):
                    row.raw[origin] = self._bytes(row, origin)
            except Exception as error:
                row.errors[origin] = RowError(error_value("fetch", error))
                continue
            if needs == "pixels":
                try:
                    with self._desk.at(load_code(place, DECODE), row.id, row.id):
                        row.pixels[origin] = pixels.decode(row.raw[origin], item.get("frame") or 0)
                except Exception as error:
                    row.errors[origin] = RowError(error_value("decode", error))
        for task in self._preparing:
            own = row.of(task)
            if row.id in wanted[task.step] and not _input_error(task, own, row.errors.get(task.content)):
                assert isinstance(task.op, Annotate)
                with self._desk.at(self._numbers[task.step], row.id, row.id):
                    row.prepared[task.step] = attempt(task.op.prepare, own)
        for origin in self._let_go:
            row.pixels.pop(origin, None)
        return row

    def _bytes(self, row: _Loaded, origin: tuple[str, str] | None) -> bytes:
        if origin is None:
            assert self._content is not None
            return self._content.fetch(row.item)
        step, column = origin
        values = next(reads[step] for reads in row.reads.values() if step in reads)
        if values is None or values.get("error") or values[column] is None:
            message = values["error"]["message"] if values and values.get("error") else f"no {column}"
            raise RowFailure(INPUT_FAILED, f"{step}: {message}")
        return values[column]

    def _run(self, task: Task, rows: list[_Loaded]) -> list[dict[str, Any]]:
        """Value or error of each row, in order; of an Expand, children and markers."""
        out: dict[int, dict[str, Any] | Exception] = {}
        good = []
        for row in rows:
            own = row.of(task)
            failed = _input_error(task, own, row.errors.get(task.content))
            if failed:
                out[row.id] = failed
            elif isinstance(own.prepared, Exception):
                out[row.id] = own.prepared
            else:
                good.append(own)
        if isinstance(task.op, Expand):
            return [value for row in rows for value in self._expand(task, row.of(task), out.get(row.id))]
        for batch in batched(good, task.op.batch):
            out.update(zip([r.id for r in batch], self._process(task, batch), strict=True))
        return [_value(task, self._names[task.step], row.id, out[row.id]) for row in rows]

    def _expand(self, task: Task, row: Row, failed: dict[str, Any] | Exception | None) -> list[dict[str, Any]]:
        with self._desk.at(self._numbers[task.step], row.id, row.id):
            return _expand(task, row, failed)

    def _process(self, task: Task, batch: list[Row]) -> Sequence[dict[str, Any] | Exception]:
        """`process` of the op; if it raises for a batch, row by row, so that one bad row costs one row."""
        op = task.op
        assert isinstance(op, Annotate)
        try:
            with self._desk.at(self._numbers[task.step], batch[0].id, batch[-1].id):
                results = op.process(batch)
            if len(results) != len(batch):
                raise ValueError(f"{op.name} returned {len(results)} values for {len(batch)} rows")
            return results
        except Exception as error:
            return [error] if len(batch) == 1 else [self._process(task, [row])[0] for row in batch]


RECORD = pa.schema(
    [
        ("step", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("rows", pa.int64()),
        ("errors", pa.int64()),
        ("min_id", pa.int64()),
        ("max_id", pa.int64()),
        ("done", pa.int64()),
        ("seconds", pa.float64()),
        ("waited", pa.float64()),
        ("busy", pa.float64()),
    ]
)
"""One written file: a `store.files.File`, the number of wanted rows it settles, CPU seconds spent on the step, and wall
seconds in which the op waited for its inputs and in which it worked."""


def origins(tasks: Sequence[Task]) -> list[tuple[str, str] | None]:
    """The places that bytes come from in a pass, see `Task.content`; their order is that of `load_code`."""
    return list(dict.fromkeys(task.content for task in tasks))


def take_by_id(source: Source, ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """id -> column values of a step that an op reads."""
    return {row["id"]: row for row in take_ids(source.uri, source.files, ids).to_pylist()}


def _input_error(task: Task, row: Row, load: RowError | None) -> RowError | None:
    stage = load.value["stage"] if load else None
    if load and (stage == "fetch" or task.needs == "pixels") and task.needs != "nothing":
        return load
    for name, values in row.reads.items():
        if values is None or values.get("error"):
            why = values["error"]["message"] if values else "no value"
            return RowError({"stage": name, "type": INPUT_FAILED, "message": why, "detail": None, "transient": False})
    return None


def _value(task: Task, names: set[str], row_id: int, result: dict[str, Any] | Exception) -> dict[str, Any]:
    if isinstance(result, RowError):
        return {"id": row_id, "error": result.value}
    if isinstance(result, Exception):
        kept = result.values if isinstance(result, RowFailure) else {}
        return {**kept, "id": row_id, "error": error_value(task.step, result)}
    problem = _problem(result, names)
    if problem:
        return {"id": row_id, "error": error_value(task.step, problem)}
    return {**result, "id": row_id, "error": None}


def _problem(result: Any, names: set[str]) -> Exception | None:
    """What is wrong with the values of one row: other columns than the op announced, or a number that is none."""
    if not isinstance(result, Mapping) or result.keys() != names:
        got = sorted(result) if isinstance(result, Mapping) else type(result).__name__
        return TypeError(f"the op announces {sorted(names)} and returned {got}")
    for name, value in result.items():
        if isinstance(value, float) and not math.isfinite(value):
            return ArithmeticError(f"{name} is {value}")
    return None


def _expand(task: Task, row: Row, failed: dict[str, Any] | Exception | None) -> list[dict[str, Any]]:
    """Children of one row and its marker; a row that fails half-way has no children."""
    children: list[dict[str, Any]] = []
    place = {name: row.source.get(name) for name in ("uri", "offset", "size", "member", "version")}
    error = failed.value if isinstance(failed, RowError) else None
    if error is None:
        try:
            assert isinstance(task.op, Expand)
            for ordinal, child in enumerate(task.op.expand(row)):
                if ordinal >= MAX_CHILDREN:
                    raise OverflowError(f"more than {MAX_CHILDREN} children")
                children.append(
                    {
                        "id": child_id(row.id, ordinal),
                        "parent": row.id,
                        "ordinal": ordinal,
                        "key": str(child.key),
                        **place,
                        "frame": int(child.frame),
                    }
                )
        except Exception as problem:
            error, children = error_value(task.step, problem), []
    marker = {"id": child_id(row.id, MAX_CHILDREN), "parent": row.id, "ordinal": MAX_CHILDREN, "key": row.key}
    return [*children, {**marker, **place, "children": len(children), "error": error}]


def _to_table(task: Task, values: list[dict[str, Any]]) -> pa.Table:
    """Arrow table of the step's schema; a value that does not fit it makes its own row an error row."""
    schema = task.op.table_schema()
    try:
        return pa.Table.from_pylist(values, schema=schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.Table.from_pylist([_fit(task, value, schema) for value in values], schema=schema)


def _fit(task: Task, value: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    try:
        pa.Table.from_pylist([value], schema=schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        return {"id": value["id"], "error": error_value(task.step, error)}
    return value


def lost_row(task: Task, row_id: int, stage: str, kind: str, message: str, detail: str) -> pa.Table:
    """The error row of a row that was lost with its worker; of an Expand, its marker."""
    error = {"stage": stage, "type": kind, "message": message, "detail": detail, "transient": False}
    row: dict[str, Any] = {"id": row_id, "error": error}
    if isinstance(task.op, Expand):
        row |= {"id": child_id(row_id, MAX_CHILDREN), "parent": row_id, "ordinal": MAX_CHILDREN}
    return pa.Table.from_pylist([row], schema=task.op.table_schema())
