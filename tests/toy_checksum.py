"""An op that tells which bytes a worker got."""

from __future__ import annotations

import hashlib
from typing import ClassVar, Literal

import pyarrow as pa

from nextloom.op import Annotate, Row


class Checksum(Annotate):
    """sha256 of the original bytes."""

    name: ClassVar[str] = "checksum"
    code_version: ClassVar[int] = 1
    needs: ClassVar[Literal["bytes"]] = "bytes"

    def columns(self) -> pa.Schema:
        return pa.schema([("sha256", pa.string())])

    def measure(self, row: Row) -> dict:
        return {"sha256": hashlib.sha256(row.raw).hexdigest()}
