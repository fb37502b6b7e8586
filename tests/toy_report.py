"""Pictures and ops for tests of the report: values that a test can work out from a key alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from nextloom.curation.sources.source import Item, Source, item_table
from nextloom.op import Annotate, Row, RowFailure

SUBJECTS = ("cat", "dog", "tea")
FOLDERS = ("camera", "web")
EMPTY = "web/empty.png"


def write(folder: Path, count: int = 120) -> None:
    """`count` grey pictures of widths 20, 21, ... and brightness by a fixed order, one empty file, two copies."""
    for number in range(count):
        path = folder / FOLDERS[number % 2] / f"{SUBJECTS[number % 3]}{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 40, (20, 20 + number), np.uint8)
        Image.fromarray(noise + np.uint8(number * 37 % 200)).save(path)
    (folder / EMPTY).write_bytes(b"")
    for name in ("camera/cat000.png", "camera/dog004.png"):
        (folder / "web" / f"copy-{Path(name).name}").write_bytes((folder / name).read_bytes())


class Subject(Annotate):
    """The subject in a key, below `animal` or `drink`."""

    name: ClassVar[str] = "subject"
    code_version: ClassVar[int] = 1

    def columns(self) -> pa.Schema:
        return pa.schema([("primary", pa.string()), ("label", pa.string())])

    def measure(self, row: Row) -> dict:
        label = next(s for s in SUBJECTS if s in row.key) if row.key != EMPTY else None
        return {"primary": None if label is None else "drink" if label == "tea" else "animal", "label": label}


class Urls(Source):
    """Rows that are URLs."""

    name: ClassVar[str] = "urls"
    count: int = 4

    def items(self, unit: str, known: Mapping[str, str]) -> pa.Table:
        places = [f"http://pictures.invalid/{i}.png" for i in range(self.count)]
        return item_table(Item(key=str(i), uri=uri, size=0, version="1") for i, uri in enumerate(places))


class Fetched(Annotate):
    """Bytes of a row that is a URL: a flat picture of the shade that its number gives."""

    name: ClassVar[str] = "fetched"
    code_version: ClassVar[int] = 1
    content: ClassVar[str] = "bytes"

    def columns(self) -> pa.Schema:
        return pa.schema([("bytes", pa.binary())])

    def measure(self, row: Row) -> dict:
        buffer = io.BytesIO()
        Image.new("RGB", (30, 20), (int(row.key) * 50,) * 3).save(buffer, "PNG")
        return {"bytes": buffer.getvalue()}


class Odd(Annotate):
    """Fails rows wider than 25 pixels, each with a detail of its own."""

    name: ClassVar[str] = "odd"
    code_version: ClassVar[int] = 1
    needs: ClassVar[Literal["nothing", "bytes", "pixels"]] = "pixels"

    def columns(self) -> pa.Schema:
        return pa.schema([("width", pa.int64())])

    def measure(self, row: Row) -> dict:
        assert row.pixels is not None
        width = row.pixels.shape[1]
        if width > 25:
            raise RowFailure("TooWide", "wider than 25 pixels", detail=f"{width} pixels<i>")
        return {"width": width}
