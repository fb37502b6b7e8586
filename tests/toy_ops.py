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
