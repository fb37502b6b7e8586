"""The op contract: five kinds of op and no more.

An op is a frozen config object with a little code. Its fields are identity: two ops of equal fields,
`code_version` and inputs give equal columns. Only `rows` (which rows it runs on) and `execution` (how it
runs) stay out of its identity. Heavy imports and weights belong in `setup()`, which runs once in each worker.

    Expand     row -> child rows        (animated picture -> frames)
    Annotate   row -> values            (score, embed, caption, tokenize)
    Reduce     whole columns -> column  (near-duplicates, quantiles)
    Select     columns -> verdicts      (SQL, balance; kept, rejected, failed)
    Pack       a release -> packs

Price paid: an Annotate sees one row at a time (or a batch of constant shape) and nothing of its neighbours,
which is what makes its column reusable whichever rows are selected later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from nextloom import pixels
from nextloom.config import Model
from nextloom.io import digest_path
from nextloom.printable import printable, redacted

ERROR = pa.struct(
    [
        ("stage", pa.string()),
        ("type", pa.string()),
        ("message", pa.string()),
        ("detail", pa.string()),
        ("transient", pa.bool_()),
    ]
)
"""Arrow type of the `error` column: null where the row has a value.

`message` is short and the same for every row of one kind of fault, so that failures group by it; `detail` is what
this row adds (numbers, names, a decoder's own words), or null.
"""

CHILDREN = pa.schema(
    [
        ("id", pa.int64()),
        ("parent", pa.int64()),
        ("ordinal", pa.int32()),
        ("key", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("member", pa.string()),
        ("version", pa.string()),
        ("frame", pa.int32()),
        ("children", pa.int32()),
        ("error", ERROR),
    ]
)
"""Rows of an Expand: its children, and one marker per parent (ordinal 4,095) with their number or its error."""

INPUT_FAILED = "InputFailed"
"""Type of the error of a row whose input has an error: done again when the input is."""
CHILD_BITS = 12
MAX_CHILDREN = 2**CHILD_BITS - 1  # the last ordinal marks the parent itself as expanded


@dataclass(slots=True)
class Row:
    """What a worker hands to an op: one row with exactly the inputs that the op asked for."""

    id: int
    key: str
    source: Mapping[str, Any] = field(default_factory=dict)
    """Columns that the source brought: caption, sidecar."""
    raw: bytes | None = None
    """Original file bytes, when `needs` is "bytes"."""
    pixels: np.ndarray | None = None
    """(height, width, 3) uint8 sRGB, upright, alpha on white, when `needs` is "pixels"; read-only by convention."""
    reads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """step name -> {column: value} for every step in the op's `reads`."""
    prepared: Any = None
    """What `Annotate.prepare` made of it; None when the op is called without a worker."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What the numbers of a score mean. Two scores compare, and a threshold holds, on one scale alone."""

    name: str
    """Model and version, with the resolution where the number depends on it: ``laion-aesthetic-v2``."""
    low: float
    high: float
    """The range that real pictures cover; a threshold outside of it is refused as one of another scale."""


class RowFailure(Exception):
    """An error that keeps what was measured before it: a row with an `error` and some values.

    Args:
        kind: the `type` in the row's error, such as ``HttpStatus``.
        message: what happened, in a sentence that is the same for all rows of this fault.
        detail: what this row adds to it.
        transient: whether trying again could help.
        values: column -> value, of those the op announces; the others are null.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        detail: str | None = None,
        transient: bool = False,
        values: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.kind, self.detail, self.transient, self.values = kind, detail, transient, dict(values or {})


@dataclass(slots=True)
class Child:
    """One child row of an `Expand`: `frame` is what the decoder needs to find it inside the parent's bytes."""

    key: str
    frame: int


class Execution(Model):
    """How an op runs; changing it never makes a column stale."""

    num_cpus: float = Field(1.0, gt=0)
    """CPUs per worker."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs per worker."""
    chunk_rows: int = Field(256, gt=0)
    """Rows per written file and per unit of retry."""
    max_error_rate: float = Field(1.0, ge=0, le=1)
    """Largest share of failed rows, 0..1; beyond it the step stops. Judged after 1,000 rows or at the end."""
    row_seconds: float = Field(120.0, gt=0)
    """Longest time to fetch, decode or measure one row, or one batch of an op that takes batches; then it is ended."""
    row_memory: float = Field(4.0, gt=0)
    """GiB by which a worker may grow while it is at one row (or batch); then it is ended."""
    workers: int | None = Field(None, gt=0)
    """Worker processes of a pass with this op; default: as many as CPUs and GPUs allow."""


class Op(Model):
    """Base of all ops. Subclasses are one class in one file, listed once in `pipelines/registry.py`."""

    name: ClassVar[str]
    code_version: ClassVar[int]
    """Bumped by hand when the same input would give another output; each op has a golden test that says when."""
    weights: ClassVar[Mapping[str, str]] = {}
    """Fields that name files or folders of weights -> the command that makes them. Identity is their digest."""

    execution: Execution = Execution()
    """How it runs; changes no value."""

    @classmethod
    def label(cls) -> str:
        """The op as fingerprints know it: its name, or ``module:Class`` for an op from outside the package."""
        own = cls.__module__.partition(".")[0] == "nextloom"
        return cls.name if own else f"{cls.__module__}:{cls.__qualname__}"

    def identity(self) -> dict[str, Any]:
        """The fields that change the result, as plain data."""
        return self.model_dump(mode="json", exclude={"execution", "rows"})

    def digest_weights(self, field: str) -> str:
        """Digest of the weights that `field` names; FileNotFoundError when there are none."""
        return digest_path(getattr(self, field))

    @classmethod
    def spelled(cls, field: str) -> str:
        """A field as recipes write it."""
        known = cls.model_fields.get(field)
        return known.alias if known and known.alias else field

    def version(self) -> str:
        """`code_version`, with that of any shared code the op's values depend on."""
        return str(self.code_version)


class RowOp(Op):
    """An op of a step: it runs on rows. The four kinds below are its only subclasses."""

    rows: str | None = None
    """The step that chooses the rows: a Select, or an Expand for its children. Default: every row of the source."""
    reads: tuple[str, ...] = ()
    """Steps of the same rows whose columns this op reads."""

    def columns(self) -> pa.Schema:
        """Arrow schema of the values, without `id` and `error`; no unsigned types (Delta has none)."""
        raise NotImplementedError

    def table_schema(self) -> pa.Schema:
        """Arrow schema of the step's table: id, values, error."""
        return pa.schema([("id", pa.int64()), *self.columns(), ("error", ERROR)])

    def score_scales(self) -> Mapping[str, Scale]:
        """Column -> scale of the scores among `columns()` whose numbers mean something on one scale alone."""
        return {}

    def check(self, known: Mapping[str, Iterable[str]], where: str) -> None:
        """Raise a `UserError` when a step this op reads lacks a column it needs; `known`: step -> columns."""

    def check_scales(self, scales: Mapping[str, Mapping[str, Scale]], where: str) -> None:
        """Raise a `UserError` when a threshold is on another scale than its column.

        `scales`: step -> column -> its scale.
        """


class Annotate(RowOp):
    """row -> values. Implement `measure`, or `process` when a model wants batches."""

    needs: ClassVar[Literal["nothing", "bytes", "pixels"]] = "nothing"
    batch: ClassVar[int] = 1
    """Rows handed to `process` at a time."""
    content: ClassVar[str] = ""
    """A column with file bytes, of an op that fetches them: what reads this step looks at those pictures."""
    apart: ClassVar[bool] = False
    """Runs in a pass of its own, as what waits for a service should."""

    def version(self) -> str:
        shared = f"+{pixels.DECODE_VERSION}" if self.needs == "pixels" else ""
        return f"{self.code_version}{shared}"

    def setup(self) -> None:
        """Load weights and heavy modules, once per worker. A failure here stops the step at once."""

    def prepare(self, row: Row) -> Any:
        """What the op works on, such as a resized picture; raise to turn this row into an error row.

        Of an op that has it, the worker calls it where rows are read and decoded: in a pass with a GPU that is in
        threads ahead of it. The result is `row.prepared`; the pixels are let go of when no other op wants them.
        """

    def measure(self, row: Row) -> dict[str, Any]:
        """Values of one row; raise to turn this row into an error row."""
        raise NotImplementedError

    def process(self, rows: Sequence[Row]) -> Sequence[dict[str, Any] | Exception]:
        """Values or an exception for each of at most `batch` rows, in order."""
        return [attempt(self.measure, row) for row in rows]


class Expand(RowOp):
    """row -> child rows, at most 4,095 of them. `columns()` is not used: children carry key and frame."""

    def setup(self) -> None:
        """As in `Annotate`."""

    def expand(self, row: Row) -> Iterable[Child]:
        """Children of one row in a stable order; `row.raw` is given."""
        raise NotImplementedError

    def table_schema(self) -> pa.Schema:
        return CHILDREN


class Reduce(RowOp):
    """Whole columns -> one column, replaced whole whenever any input differs."""

    def reduce(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """`columns`: step -> table(id, values..., error) over the same rows, sorted by id.

        Returns a table(id, values...) for rows without an input error; the caller carries the errors over.
        """
        raise NotImplementedError


class Select(RowOp):
    """Columns -> a verdict per row. `decide` is pure, so that a plan can ask what a new threshold would keep."""

    def used(self) -> tuple[str, ...]:
        """Names of the steps that the rule reads, as written in it (`source` is the rows table)."""
        raise NotImplementedError

    def decide(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """table(id, verdict, reason, rules): verdict is kept, rejected or failed."""
        raise NotImplementedError

    def check_types(self, schemas: Mapping[str, pa.Schema], where: str) -> None:
        """Raise a `UserError` when the rule does not fit the types of its columns; `schemas`: step -> its table's."""

    def columns(self) -> pa.Schema:
        return pa.schema([("verdict", pa.string()), ("reason", pa.string()), ("rules", pa.string())])


class Pack(Op):
    """A release -> packs: which samples share one training sequence."""

    release: str
    """Name of a release in the same recipe."""


def attempt(function: Callable[[Any], Any], row: Any) -> Any:
    """`function(row)`, with an exception returned instead of raised."""
    try:
        return function(row)
    except Exception as error:
        return error


def error_value(stage: str, error: BaseException) -> dict[str, Any]:
    """The `error` struct of a row: where it failed, why, and whether trying again could help."""
    transient = isinstance(error, (ConnectionError, TimeoutError)) or getattr(error, "transient", False)
    detail = getattr(error, "detail", None)
    kind = error.kind if isinstance(error, RowFailure) else type(error).__name__
    return {
        "stage": stage,
        "type": kind,
        "message": _short(str(error)),
        "detail": None if detail is None else _short(str(detail)),
        "transient": bool(transient),
    }


def _short(text: str) -> str:
    return printable(redacted(text))[:500]


def canonical(data: Any) -> str:
    """JSON text that is equal for equal data: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: Any, length: int = 16) -> str:
    """Hex digest of plain data: the identity used for fingerprints and receipts."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:length]


def child_id(parent: int, ordinal: int) -> int:
    """Id of child `ordinal` of row `parent`: parent << 12 | ordinal, at most 63 bits; overflow is refused.

    Ordinal 4,095 marks the parent as expanded, so a row has at most 4,095 children.
    """
    if not 0 <= ordinal <= MAX_CHILDREN:
        raise OverflowError(f"child {ordinal}: a row has at most {MAX_CHILDREN} children")
    value = (parent << CHILD_BITS) | ordinal
    if value >= 2**63:
        raise OverflowError(f"row id {parent} is too large to have children in 63 bits")
    return value


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of at most `size` rows."""
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
