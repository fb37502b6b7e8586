"""Datasets for tests of packing and training: token columns written straight into a real store, no op is run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from nextloom.io import digest_path
from nextloom.op import ERROR
from nextloom.store import release as releases
from nextloom.store.dataset import ROWS, Dataset
from nextloom.store.files import write_file
from nextloom.store.release import Release
from nextloom.store.rowset import describe, source_rows
from nextloom.tokenize.documents import Grid
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule, tokens

SQUARE, WIDE = 20, 0
CODES = 32

TEXT = pa.schema([("id", pa.int64()), ("ids", pa.binary()), ("n_tokens", pa.int32()), ("error", ERROR)])
IMAGES = pa.schema(
    [
        ("id", pa.int64()),
        ("schedule", pa.int32()),
        ("scales", pa.int32()),
        ("n_tokens", pa.int32()),
        ("target", pa.binary()),
        ("input", pa.binary()),
        ("clean", pa.binary()),
        ("error", ERROR),
    ]
)
FAILED = {"stage": "test", "type": "ValueError", "message": "broken", "transient": False}


def build(
    uri: str,
    captions: Sequence[str],
    *,
    scales: int = 4,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    failed: Sequence[int] = (),
    tokenizer: str | None = None,
    name: str = "tokens",
) -> Release:
    """Write one row per caption with random codes, and publish a release of both token columns.

    Args:
        scales: of every picture.
        rows: schedule id of each picture; square by default.
        seed: of the codes; another seed gives another fingerprint, as a retrained tokenizer would.
        failed: ids whose picture has an error instead of codes.
        tokenizer: folder whose digest the picture column records.
    """
    dataset, rng = Dataset(uri), np.random.default_rng(seed)
    shapes = list(rows) if rows is not None else [SQUARE] * len(captions)
    ids = list(range(len(captions)))
    with dataset.lease("test"):
        if not dataset.rows.exists():
            table = pa.table({n: [f"{n}{i}" for i in ids] for n in ROWS.names if n not in ("id", "size")})
            table = table.append_column("size", pa.array([1] * len(ids))).append_column("id", pa.array(ids))
            dataset.rows.commit(ROWS, [write_file(dataset.rows.uri, table.select(ROWS.names).cast(ROWS))])
        text = [
            {"id": i, "ids": np.frombuffer(c.encode(), np.uint8).astype("<i4").tobytes(), "n_tokens": len(c.encode())}
            for i, c in enumerate(captions)
        ]
        pictures = [_picture(i, grids_of(shapes[i], scales), shapes[i], rng, i in failed) for i in ids]
        columns = {}
        for step, schema, data, version in (("text", TEXT, text, "t"), ("tokens", IMAGES, pictures, f"i{seed}")):
            column = dataset.column(step, version)
            if not column.exists():
                column.commit(schema, [write_file(column.uri, pa.Table.from_pylist(data, schema))])
            columns[step] = {
                "op": step,
                "version": "1",
                "config": {"tokenizer": digest_path(tokenizer) if tokenizer and step == "tokens" else None},
                "fingerprint": version,
                "failed": str(failed),
                **describe(column.uri, uri, column.files()),
            }
        content = {
            "dataset": dataset.name,
            "content": str(captions),
            "rows_count": len(ids),
            "selection": source_rows(dataset).as_dict(uri),
            "rows": describe(dataset.rows.uri, uri, dataset.rows.files()),
            "columns": columns,
        }
        return releases.publish(dataset, name, content)[0]


def grids_of(row: int, scales: int) -> tuple[Grid, ...]:
    """The grids of a picture of schedule id `row`."""
    return schedule(FINAL_GRIDS[row], scales)


def _picture(number: int, grids: tuple[Grid, ...], row: int, rng: np.random.Generator, failed: bool) -> dict:
    codes = rng.integers(0, CODES, tokens(grids)).astype("<u2").tobytes()
    if failed:
        return {"id": number, "error": FAILED}
    return {
        "id": number,
        "schedule": row,
        "scales": len(grids),
        "n_tokens": tokens(grids),
        "target": codes,
        "input": codes,
    }
