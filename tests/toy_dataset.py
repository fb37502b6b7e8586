"""Datasets for tests of packing and training: token columns written straight into a real store, no op is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from nextloom.op import ERROR
from nextloom.store import release as releases
from nextloom.store.dataset import ROWS, Dataset
from nextloom.store.files import write_file
from nextloom.store.release import Release
from nextloom.store.rowset import describe, source_rows
from nextloom.tokenize.documents import Grid
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule, tokens
from nextloom.tokenize.text_tokens import BYTES
from nextloom.tokenize.tokenizer_config import digest
from nextloom.untrusted import Door

SQUARE, WIDE = 20, 0
CODES = 32

TEXT = pa.schema([("id", pa.int64()), ("ids", pa.binary()), ("n_tokens", pa.int32()), ("error", ERROR)])
IMAGES = pa.schema(
    [
        ("id", pa.int64()),
        ("schedule", pa.int32()),
        ("scales", pa.int32()),
        ("n_tokens", pa.int32()),
        ("draws", pa.int32()),
        ("target", pa.binary()),
        ("input", pa.binary()),
        ("clean", pa.binary()),
        ("tokenizer", pa.string()),
        ("error", ERROR),
    ]
)
FAILED = {"stage": "test", "type": "ValueError", "message": "broken", "detail": None, "transient": False}


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
    correction: float = 0.0,
    paint: Callable[[np.ndarray, tuple[Grid, ...]], np.ndarray] | None = None,
    vocabulary: str = BYTES,
) -> Release:
    """Write one row per caption with random codes, and publish a release of both token columns.

    Args:
        scales: of every picture.
        rows: schedule id of each picture; square by default.
        seed: of the codes; another seed gives another fingerprint, as a retrained tokenizer would.
        failed: ids whose picture has an error instead of codes.
        tokenizer: folder whose digest the picture column records.
        correction: share of codes whose input is another one than their target.
        paint: makes the pixels of a picture from its target codes and grids; the rows then name real PNG files.
        vocabulary: what the text column records as its tokenizer.
    """
    dataset, rng = Dataset(uri), np.random.default_rng(seed)
    shapes = list(rows) if rows is not None else [SQUARE] * len(captions)
    ids = list(range(len(captions)))
    pictures = [_picture(i, grids_of(shapes[i], scales), shapes[i], rng, i in failed) for i in ids]
    _correct(pictures, correction, np.random.default_rng([seed, 1]))
    with dataset.lease("test"):
        if not dataset.rows.exists():
            rows_table = pa.Table.from_pylist(
                [_row(uri, p, captions, grids_of(shapes[p["id"]], scales), paint) for p in pictures], ROWS
            )
            dataset.rows.commit(ROWS, [write_file(dataset.rows.uri, rows_table)])
        text = [
            {"id": i, "ids": np.frombuffer(c.encode(), np.uint8).astype("<i4").tobytes(), "n_tokens": len(c.encode())}
            for i, c in enumerate(captions)
        ]
        configs = {
            "text": {"tokenizer": vocabulary, "column": "caption", "empty": "refuse"},
            "tokens": {"tokenizer": digest(tokenizer) if tokenizer else None, "scales": scales},
        }
        for picture in pictures:
            picture["tokenizer"] = configs["tokens"]["tokenizer"]
        columns = {}
        for step, schema, data, version in (("text", TEXT, text, "t"), ("tokens", IMAGES, pictures, f"i{seed}")):
            column = dataset.column(step, version)
            if not column.exists():
                column.commit(schema, [write_file(column.uri, pa.Table.from_pylist(data, schema))])
            columns[step] = {
                "op": step,
                "version": "1",
                "config": configs[step],
                "fingerprint": version,
                "failed": str(failed),
                **describe(column.uri, uri, column.files()),
            }
        content = {
            "dataset": dataset.name,
            "content": str(captions),
            "rows_count": len(ids),
            "door": Door([f"{uri}-pictures"]).as_dict(),
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
        "draws": 1,
        "target": codes,
        "input": codes,
    }


def _correct(pictures: list[dict], share: float, rng: np.random.Generator) -> None:
    for picture in pictures:
        if share and "target" in picture:
            codes = np.frombuffer(picture["target"], "<u2")
            moved = (codes + rng.integers(1, CODES, len(codes))) % CODES
            picture["input"] = np.where(rng.random(len(codes)) < share, moved, codes).astype("<u2").tobytes()


def _row(uri: str, picture: dict, captions: Sequence[str], grids: tuple[Grid, ...], paint: Callable | None) -> dict:
    number = picture["id"]
    row = {"id": number, "key": f"key{number}", "uri": f"uri{number}", "size": 1, "version": "1"}
    if paint is not None:
        path = Path(f"{uri}-pictures", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        codes = np.frombuffer(picture.get("target", bytes(2 * tokens(grids))), "<u2").astype(np.int64)
        Image.fromarray(paint(codes, grids)).save(path)
        row |= {"uri": str(path), "size": path.stat().st_size}
    return {**row, "caption": captions[number]}
