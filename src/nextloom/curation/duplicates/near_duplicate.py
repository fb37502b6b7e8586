"""Reduce `near_duplicate`: rows whose hashes differ in few bits share a group.

    phash:     {op: perceptual_hash}
    duplicate: {op: near_duplicate, reads: [phash], max_distance: 6}

Two rows are linked when their hashes differ in at most `max_distance` bits; a group is what links connect. All
links are found, by the banded index of `hamming.py`, which runs on Ray when Ray is up and the work is worth it.

Price paid: links chain, so members of a group may be further apart than `max_distance`. `distance` says how far from
the representative, so `not duplicate.hit or duplicate.distance > 6` keeps those that only a chain brought in. Flat
pictures, whatever their colour, hash alike and fall into one group. Time for 10 million random hashes on one core:
half a minute at 4 bits, some minutes at 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from nextloom.curation.duplicates.duplicates import Duplicates
from nextloom.curation.duplicates.hamming import groups
from nextloom.errors import UserError
from nextloom.op import Scale


class NearDuplicate(Duplicates):
    """Groups of rows whose hashes differ in at most `max_distance` bits."""

    name: ClassVar[str] = "near_duplicate"
    code_version: ClassVar[int] = 2

    max_distance: int = Field(default=6, ge=0, le=8)
    """Bits in which linked hashes may differ. On 64-bit perceptual hashes 6 links re-encoded and resized copies."""
    column: str = "hash"
    """Column of the first step in `reads` that holds the hash, an int64 bit pattern."""

    def columns(self) -> pa.Schema:
        return super().columns().append(pa.field("distance", pa.int32()))

    def score_scales(self) -> Mapping[str, Scale]:
        return {"distance": Scale("hamming-64", 0, 64)}

    def reduce(self, columns: Mapping[str, pa.Table]) -> pa.Table:
        """Group, hit, size and distance of each row; null where the hash is.

        Args:
            columns: step -> table(id, values, error) for the steps in `reads`.

        Returns:
            table(id, group, hit, size, distance) sorted by id. `group` is the id of the group's representative,
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
        stays = self.elected(groups(hashes, self.max_distance, self.execution.workers), hashed)
        distance = np.bitwise_count(hashes ^ hashes[stays])
        return self.table(data, hashed, stays, distance=pa.array(distance, pa.int32()))
