"""Small ops for tests of the engine; recipes name them as ``toy_ops:Name``."""

from __future__ import annotations

import os
import signal
from typing import ClassVar, Literal

import pyarrow as pa

from nextloom.op import Annotate, Row


class Mean(Annotate):
    """Mean pixel value; refuses pictures darker than `refuse_below`."""

    name: ClassVar[str] = "mean"
    code_version: ClassVar[int] = 1
    needs: ClassVar[Literal["pixels"]] = "pixels"
    refuse_below: float = -1.0

    def columns(self) -> pa.Schema:
        return pa.schema([("value", pa.float64())])

    def measure(self, row: Row) -> dict:
        value = float(row.pixels.mean())
        if value < self.refuse_below:
            raise ValueError(f"too dark: {value:.1f}")
        return {"value": value}


class KeyLength(Annotate):
    """Length of the key; kills its own process, every time, on the keys in `deadly`."""

    name: ClassVar[str] = "key_length"
    code_version: ClassVar[int] = 1
    deadly: tuple[str, ...] = ()

    def columns(self) -> pa.Schema:
        return pa.schema([("value", pa.int64())])

    def measure(self, row: Row) -> dict:
        if row.key in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"value": len(row.key)}


class NoModel(KeyLength):
    """An op whose weights cannot be loaded."""

    name: ClassVar[str] = "no_model"

    def setup(self) -> None:
        raise OSError("weights are corrupt")


class Odd(KeyLength):
    """Values that are none: NaN, no mapping, another column, a message that is no text, a text for a number."""

    name: ClassVar[str] = "odd"

    def columns(self) -> pa.Schema:
        return pa.schema([("value", pa.float64())])

    def measure(self, row: Row) -> dict:
        number = int(row.key[1:4])
        if number == 3:
            raise ValueError("a lone surrogate: \ud83d")
        return [{"value": float("nan")}, None, {"valeu": 1.0}, {}, {"value": "text"}, {"value": 1.0}][number]


class WhileUp(KeyLength):
    """Fails while the file `flag` exists."""

    name: ClassVar[str] = "while_up"
    flag: str

    def measure(self, row: Row) -> dict:
        if os.path.exists(self.flag):
            raise ConnectionError("down")
        return super().measure(row)


class Doubled(KeyLength):
    """Twice what it reads."""

    name: ClassVar[str] = "doubled"

    def measure(self, row: Row) -> dict:
        return {"value": 2 * row.reads[self.reads[0]]["value"]}


class Swapped(KeyLength):
    """Weights that someone replaces while a worker loads them."""

    name: ClassVar[str] = "swapped"
    weights: ClassVar[dict[str, str]] = {"path": "make them"}
    path: str

    def setup(self) -> None:
        with open(self.path, "wb") as file:
            file.write(os.urandom(8))


class Bring(Annotate):
    """Brings the bytes of pictures whose files hold them backwards."""

    name: ClassVar[str] = "bring"
    code_version: ClassVar[int] = 1
    needs: ClassVar[Literal["bytes"]] = "bytes"
    content: ClassVar[str] = "raw"

    def columns(self) -> pa.Schema:
        return pa.schema([("raw", pa.binary())])

    def measure(self, row: Row) -> dict:
        return {"raw": row.raw[::-1]}
