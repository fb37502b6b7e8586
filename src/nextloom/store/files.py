"""Parquet files of a table: written by workers, listed with their id range, read by file list and id range.

A file is sorted by `id`, and its row count, error count and id range travel with it, so that planning touches
the log and never a row. Both a live table and a release are read from such lists. The name of a file ends in the
digest of its bytes: whoever lists a file knows what has to be in it. Every read checks the pages it reads by their
checksums, and names the file that is lost or damaged.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from nextloom.errors import Damaged
from nextloom.inside import linked
from nextloom.io import filesystem, is_uri, join

ROW_GROUP = 256
WINDOW_ROWS = 1_000_000
SPARSE = 4
"""Of `take_ids`: below one wanted row in so many, single row groups are read instead of the whole range."""
FILE_NAME = re.compile(r"^part-[0-9a-f]{32}-([0-9a-f]{32})\.parquet$")
_CHECKED = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True)
)


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
    binary = [field.name for field in data.schema if pa.types.is_binary(field.type)]
    plain = [field.name for field in data.schema if field.name not in binary]
    sink = pa.BufferOutputStream()
    pq.write_table(
        data,
        sink,
        compression="zstd",
        compression_level=1,
        row_group_size=ROW_GROUP if binary else 16384,
        use_dictionary=plain,
        write_page_checksum=True,
    )
    raw = sink.getvalue()
    name = f"part-{uuid.uuid4().hex}-{_digest(raw)}.parquet"
    put_file(table_uri, name, raw)
    errors = data.num_rows - data["error"].null_count if "error" in data.column_names else 0
    ids = data["id"]
    return File(
        name,
        raw.size,
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
    condition = None
    if low is not None:
        condition = pc.field("id") >= low
    if high is not None:
        upper = pc.field("id") <= high
        condition = upper if condition is None else condition & upper

    def read() -> pa.Table:
        system, base = filesystem(table_uri)
        data = pads.dataset([join(base, f.path) for f in chosen], format=_CHECKED, filesystem=system)
        return data.to_table(columns=list(columns) if columns else None, filter=condition)

    return _sorted(_checked(table_uri, chosen, read))


def put_file(table_uri: str, name: str, raw: pa.Buffer | bytes) -> None:
    """Write a new file below `table_uri`; on a local disk it outlives a power cut when this returns.

    Raises:
        FileExistsError: there is one of this name.
    """
    if is_uri(table_uri):
        system, base = filesystem(table_uri)
        system.create_dir(base, recursive=True)
        with system.open_output_stream(join(base, name)) as stream:
            stream.write(raw)
        return
    os.makedirs(table_uri, exist_ok=True)
    folder = os.open(table_uri, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
        try:
            with open(file, "wb") as stream:
                stream.write(raw)
                stream.flush()
                os.fsync(file)
        except OSError as error:
            os.unlink(name, dir_fd=folder)
            raise type(error)(error.errno, os.strerror(error.errno or 0), join(table_uri, name)) from None
        os.fsync(folder)
    finally:
        os.close(folder)


def get_file(table_uri: str, name: str) -> bytes:
    """All bytes of one file of a table.

    Raises:
        FileNotFoundError: it is lost.
        Outside: it is a link.
    """
    if not is_uri(table_uri) and os.path.islink(join(table_uri, name)):
        raise linked(join(table_uri, name))
    system, base = filesystem(table_uri)
    with system.open_input_stream(join(base, name)) as stream:
        return stream.read()


def file_problem(table_uri: str, file: File) -> str:
    """What is wrong with a file, read whole; "" when it holds the bytes that were written.

    Raises:
        OSError: it cannot be told, as when a right to read is lacking or a server does not answer.
    """
    named = FILE_NAME.match(file.path)
    if named is None:
        return "has a name that no writer of ours gives"
    try:
        raw = get_file(table_uri, file.path)
    except FileNotFoundError:
        return "is lost"
    except IsADirectoryError:
        return "is a folder"
    if len(raw) != file.size:
        return f"has {len(raw):,} bytes of {file.size:,}"
    return "" if _digest(raw) == named[1] else "does not hold the bytes that were written"


def stored_file(table_uri: str, name: str) -> File:
    """What a log has to say of a file, read out of the file itself.

    Raises:
        OSError, pa.ArrowException: it is lost or no Parquet file.
    """
    raw = get_file(table_uri, name)
    reader = pq.ParquetFile(pa.BufferReader(raw))
    with_errors = "error" in reader.schema_arrow.names
    data = reader.read(columns=["id", "error"] if with_errors else ["id"])
    ids = data["id"].to_numpy()
    errors = data.num_rows - data["error"].null_count if with_errors else 0
    return File(name, len(raw), data.num_rows, errors, int(ids.min()), int(ids.max()))


def repair_command(table_uri: str) -> str:
    """The next command when a file or the log of this table is damaged."""
    kind, name = table_uri.rstrip("/").split("/")[-3:-1]
    return f"nextloom rebuild RECIPE {name if kind in ('columns', 'packs') else 'source'}"


def _digest(raw: Any) -> str:
    return hashlib.sha256(raw).hexdigest()[:32]


def _checked(table_uri: str, files: Sequence[File], read: Callable[[], Any]) -> Any:
    """`read()`; where it fails, the file that is lost or damaged is named."""
    try:
        if not is_uri(table_uri):
            for file in files:
                if os.path.islink(join(table_uri, file.path)):
                    raise linked(join(table_uri, file.path))
        return read()
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        for file in files:
            if problem := file_problem(table_uri, file):
                raise Damaged(problem, where=join(table_uri, file.path), next=repair_command(table_uri)) from None
        raise


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
    low, high = int(wanted.min()), int(wanted.max())
    chosen = [f for f in files if f.min_id <= high and f.max_id >= low]
    if len(wanted) * SPARSE < sum(f.rows for f in chosen):
        data = read_sparse(table_uri, chosen, np.unique(wanted), names)
    else:
        data = read_files(table_uri, chosen, names, low=low, high=high)
    have = data["id"].to_numpy()
    at = np.searchsorted(have, wanted)
    found = at < len(have)
    found[found] = have[at[found]] == wanted[found]
    if not found.all():
        raise LookupError(f"{int((~found).sum())} of {len(wanted)} ids are absent, the first is {wanted[~found][0]}")
    return data if len(at) == len(have) and (at[1:] > at[:-1]).all() else data.take(pa.array(at))


def read_sparse(table_uri: str, files: Sequence[File], wanted: np.ndarray, columns: Sequence[str] | None) -> pa.Table:
    """The rows of `wanted` (sorted, unique) that `files` hold, sorted by id; one row group is in memory at a time.

    Raises:
        LookupError: none is there.
    """
    parts: list[pa.Table] = []
    system, base = filesystem(table_uri)
    for file in files:
        mine = wanted[np.searchsorted(wanted, file.min_id) : np.searchsorted(wanted, file.max_id, "right")]
        if not len(mine):
            continue

        def read(file: File = file, mine: np.ndarray = mine) -> None:
            with system.open_input_file(join(base, file.path)) as handle:
                reader = pq.ParquetFile(handle, page_checksum_verification=True)
                for group in range(reader.num_row_groups):
                    if not _may_hold(reader.metadata.row_group(group), mine):
                        continue
                    ids = reader.read_row_group(group, columns=["id"])["id"].to_numpy()
                    if (hit := np.isin(ids, mine)).any():
                        rows = reader.read_row_group(group, columns=list(columns) if columns else None)
                        parts.append(rows.take(pa.array(np.flatnonzero(hit))))

        _checked(table_uri, [file], read)
    if not parts:
        raise LookupError(f"{len(wanted)} ids are absent, the first is {wanted[0]}")
    return _sorted(pa.concat_tables(parts))


def _may_hold(group: Any, ids: np.ndarray) -> bool:
    """Whether one of `ids` (sorted) lies in the id range that a row group's footer tells."""
    columns = (group.column(number) for number in range(group.num_columns))
    told = next((c.statistics for c in columns if c.path_in_schema == "id"), None)
    if told is None or not told.has_min_max:
        return True
    at = np.searchsorted(ids, told.min)
    return bool(at < len(ids) and ids[at] <= told.max)


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
