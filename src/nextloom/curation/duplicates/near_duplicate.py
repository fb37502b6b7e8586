"""Reduce `near_duplicate`: rows whose hashes differ in few bits share a group.

    phash:     {op: perceptual_hash}
    duplicate: {op: near_duplicate, reads: [phash], max_distance: 6}

Two rows are linked when their hashes differ in at most `max_distance` bits and their colours nowhere by more than
`max_colour` (a quarter of it where both images are flat); a group is what links connect. All links are found, by the
banded index of `hamming.py`, which runs on Ray when Ray is up and the work is worth it.

Trade-off: links chain, so members of a group may be further apart than `max_distance`. `distance` says how far from
the representative, so `not duplicate.hit or duplicate.distance > 6` keeps those that only a chain brought in. Images
that differ in small strokes alone (drawn faces) are copies to it at 6 bits; 2 bits tell most of them apart and still
find 95 % of resized and re-encoded copies. Time for 10 million random hashes on one core: half a minute at 4 bits,
some minutes at 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from nextloom.curation.duplicates.duplicates import Duplicates
from nextloom.curation.duplicates.hamming import groups
from nextloom.curation.scores.perceptual_hash import SIGNATURE
from nextloom.errors import UserError
from nextloom.op import Scale

COLOUR = "colour"
LUMA = 3
"""How many times as far as colour brightness may differ: a cut moves edges, which are of light more than of colour."""


class NearDuplicate(Duplicates):
    """Groups of rows whose hashes differ in at most `max_distance` bits."""

    name: ClassVar[str] = "near_duplicate"
    code_version: ClassVar[int] = 4

    max_distance: int = Field(default=6, ge=0, le=8)
    """Bits in which linked hashes may differ. On 64-bit perceptual hashes 6 links re-encoded and resized copies."""
    column: str = "hash"
    """Column of the first step in `reads` that holds the hash, an int64 bit pattern."""
    max_colour: int | None = Field(default=8, ge=0, le=255)
    """Largest difference of colour (Cr, Cb; brightness: three times as much), of 255, in any of the nine cells of
    `colour`; down to a quarter of it as contrast falls (`items.py`). Null: colours are not compared, as for hashes that
    a source brought."""

    def columns(self) -> pa.Schema:
        return super().columns().append(pa.field("distance", pa.int32()))

    def score_scales(self) -> Mapping[str, Scale]:
        return {"distance": Scale("hamming-64", 0, 64)}

    def check(self, known: Mapping[str, Iterable[str]], where: str) -> None:
        """As in `Duplicates`; refuse a step that brings no colours where they are to be compared."""
        super().check(known, where)
        if self.max_colour is not None and COLOUR not in known[self.reads[0]]:
            raise UserError(
                f"{self.reads[0]!r} has no column {COLOUR!r}: hashes alone do not tell a red heart from a blue one",
                where=f"{where}.max_colour",
                next=f"--set {where}.max_colour=null compares hashes alone",
            )

    def reduce(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """Group, hit, size and distance of each row; null where the hash is.

        Args:
            columns: step -> table(id, values, error) for the steps in `reads`.

        Returns:
            table(id, group, hit, size, distance) sorted by id. `group` is the smallest id of the group,
            `hit` is true for every other member, `size` counts the members, `distance` the bits between a row's
            hash and the representative's (0 to 64).

        Raises:
            UserError: no such column of int64, or a score without an order.
        """
        data = self.inputs(columns)
        if data.schema.field("value").type != pa.int64():
            raise UserError(f"{self.reads[0]}.{self.column} is no int64 hash", where="column")
        hashed = data.filter(data["value"].is_valid())
        hashes = hashed["value"].to_numpy().view(np.uint64)
        colours, tolerance = self._colours(columns[self.reads[0]], hashed["id"])
        stays = self.elected(groups(hashes, self.max_distance, self.execution.workers, colours, tolerance), hashed)
        distance = np.bitwise_count(hashes ^ hashes[stays])
        return self.table(data, hashed, stays, distance=pa.array(distance, pa.int32()))

    def _colours(self, table: pa.Table, ids: pa.ChunkedArray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(rows, 28) uint8 signatures of the rows `ids`, and the tolerance of each byte but the last, the contrast."""
        if self.max_colour is None:
            return None, None
        values = table[COLOUR].take(pc.index_in(ids, table["id"])).combine_chunks()
        if pc.any(pc.not_equal(pc.fill_null(pc.binary_length(values), 0), SIGNATURE)).as_py():
            raise UserError(f"{self.reads[0]}.{COLOUR} holds no colours of {SIGNATURE} bytes", where="reads")
        rows = np.frombuffer(b"".join(values.to_pylist()), np.uint8).reshape(-1, SIGNATURE)
        return rows, np.tile([LUMA * self.max_colour, self.max_colour, self.max_colour], SIGNATURE // 3)
