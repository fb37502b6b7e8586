"""Annotate `source_hash`: a 64-bit perceptual hash that the source brought, as `near_duplicate` reads it.

    phash:     {op: source_hash, column: image_phash}
    duplicate: {op: near_duplicate, reads: [phash], max_colour: null}

COYO-700M writes it as 16 hex digits. Price paid: hashes of two programs do not compare, so rows hashed here
and rows hashed by `perceptual_hash` must not share a step; and a hash says what the picture was, not what it is.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import pyarrow as pa

from nextloom.curation.scores import sidecar
from nextloom.op import Annotate, Row, RowFailure

_HEX = re.compile(r"[0-9a-fA-F]{16}")


class SourceHash(Annotate):
    """16 hex digits of the row's sidecar record, as an int64 bit pattern."""

    name: ClassVar[str] = "source_hash"
    code_version: ClassVar[int] = 2

    column: str = "image_phash"
    """Its name in the record; names inside of names are joined by dots."""

    def columns(self) -> pa.Schema:
        return pa.schema([("hash", pa.int64())])

    def measure(self, row: Row) -> dict[str, Any]:
        """`hash`: the first digit holds the highest bits; null where the record says null.

        Raises:
            RowFailure: ``NoSidecar`` or ``NoColumn``; ``NoHash`` for anything else than 16 hex digits.
        """
        found = sidecar.value(row, self.column)
        if found is None:
            return {"hash": None}
        if not isinstance(found, str) or not _HEX.fullmatch(found):
            raise RowFailure("NoHash", f"{self.column} is not 16 hex digits", detail=f"{found!r:.80}")
        return {"hash": int.from_bytes(bytes.fromhex(found), "big", signed=True)}
