"""Parquet files of a table: written by workers, listed with their id range, read by file list and id range.

A file is sorted by `id`, and its row count, error count and id range travel with it, so that planning touches
the log and never a row. Both a live table and a release are read from such lists.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from nextloom.io import filesystem, join

ROW_GROUP = 256
WINDOW_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class File:
    """One Parquet file of a table: `path` is relative to the table, ids are inclusive."""

    path: str
    size: int
    rows: int
    errors: int
    min_id: int
    max_id: int

    def as_dict(self) -> dict:
        return asdict(self)


def write_file(table_uri: str, data: pa.Table) -> File:
    """Write `data` (sorted here by `id`, unique ids) as one new file below `table_uri`; nothing is committed."""
    if data.num_rows == 0:
        raise ValueError("a file needs at least one row")
    data = _sorted(data)
    system, base = filesystem(table_uri)
    system.create_dir(base, recursive=True)
    name = f"part-{uuid.uuid4().hex}.parquet"
    path = join(base, name)
    binary = [field.name for field in data.schema if pa.types.is_binary(field.type)]
    plain = [field.name for field in data.schema if field.name not in binary]
    pq.write_table(
        data,
        path,
        filesystem=system,
        compression="zstd",
        compression_level=1,
        row_group_size=ROW_GROUP if binary else 16384,
        use_dictionary=plain,
        write_page_checksum=True,
    )
    errors = data.num_rows - data["error"].null_count if "error" in data.column_names else 0
    ids = data["id"]
    return File(
        name,
        system.get_file_info(path).size,
        data.num_rows,
        errors,
        ids[0].as_py(),
        ids[data.num_rows - 1].as_py(),
    )


def read_files(
    table_uri: str,
    files: Iterable[File],
    columns: Sequence[str] | None = None,
    *,
    low: int | None = None,
    high: int | None = None,
) -> pa.Table:
    """Rows with low <= id <= high out of `files`, sorted by id. Only files and row groups in the range are read."""
    chosen = [f for f in files if (high is None or f.min_id <= high) and (low is None or f.max_id >= low)]
    if not chosen:
        raise LookupError("no file holds an id of this range")
    system, base = filesystem(table_uri)
    data = pads.dataset([join(base, f.path) for f in chosen], format="parquet", filesystem=system)
    condition = None
    if low is not None:
        condition = pc.field("id") >= low
    if high is not None:
        upper = pc.field("id") <= high
        condition = upper if condition is None else condition & upper
    return _sorted(data.to_table(columns=list(columns) if columns else None, filter=condition))


def _sorted(data: pa.Table) -> pa.Table:
    """`data` by id. Arrow cannot sort a column of more than 2 GB of bytes, and need not when it is in order."""
    ids = data["id"].to_numpy()
    return data if (ids[1:] > ids[:-1]).all() else data.sort_by("id")


def read_ids(table_uri: str, files: Iterable[File], low: int, high: int) -> np.ndarray:
    """Sorted ids in [low, high], int64."""
    try:
        return read_files(table_uri, files, ["id"], low=low, high=high)["id"].to_numpy()
    except LookupError:
        return np.empty(0, np.int64)


def take_ids(table_uri: str, files: Iterable[File], ids: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of `ids` (int64, any order) in the order of `ids`.

    Raises:
        LookupError: an id is absent.
    """
    wanted = np.asarray(ids, np.int64)
    names = None if columns is None else ["id", *[c for c in columns if c != "id"]]
    data = read_files(table_uri, files, names, low=int(wanted.min()), high=int(wanted.max()))
    have = data["id"].to_numpy()
    at = np.searchsorted(have, wanted)
    found = at < len(have)
    found[found] = have[at[found]] == wanted[found]
    if not found.all():
        raise LookupError(f"{int((~found).sum())} of {len(wanted)} ids are absent, the first is {wanted[~found][0]}")
    return data if len(at) == len(have) and (at[1:] > at[:-1]).all() else data.take(pa.array(at))


def windows(files: Sequence[File], rows: int = WINDOW_ROWS) -> Iterator[tuple[int, int]]:
    """Id ranges that cover `files` without overlap, each of about `rows` rows: memory stays flat at any size."""
    ordered = sorted(files, key=lambda f: f.min_id)
    span: tuple[int, int] | None = None
    count = 0
    for file in ordered:
        if span and count >= rows and file.min_id > span[1]:
            yield span
            span, count = None, 0
        span = (span[0], max(span[1], file.max_id)) if span else (file.min_id, file.max_id)
        count += file.rows
    if span:
        yield span
