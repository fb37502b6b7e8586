"""Annotate `embed`: a picture as a vector of length 1, computed once and read by topics, balance and duplicates.

    look: {op: embed, model: siglip2, weights: models/siglip2}

Which encoders there are, see `encoders/`. The vector is the one that is compared with texts (CLIP's projection,
SigLIP's pooled output). On a CPU each picture is encoded alone with one thread, which makes its value the same in
any company (a batch of eight is no faster there); on a GPU in batches, whose last bits differ with the batch: count
on cosines to 1e-3. Price paid: 4 bytes per dimension and row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import PrivateAttr

from nextloom.curation.encoders.choice import WithEncoder
from nextloom.curation.encoders.encoder import Encoder, Strip, unit
from nextloom.op import Row, Scale

GPU_BATCH = 32


class Embed(WithEncoder):
    """The vector of one picture."""

    name: ClassVar[str] = "embed"
    code_version: ClassVar[int] = 2
    needs: ClassVar[Literal["nothing", "bytes", "pixels"]] = "pixels"

    _encoder: Encoder | None = PrivateAttr(None)

    @property
    def batch(self) -> int:  # type: ignore[override]
        """Pictures per call of the network: one on a CPU, where a batch would change last bits."""
        return GPU_BATCH if self.execution.num_gpus else 1

    def columns(self) -> pa.Schema:
        """`embedding`: `dim` float32, little-endian, of length 1; null where `not_measured` says why."""
        return pa.schema([("embedding", pa.binary()), ("dim", pa.int32()), ("not_measured", pa.string())])

    def score_scales(self) -> Mapping[str, Scale]:
        """The space of the vectors: what is compared with them must live in it."""
        return {"embedding": Scale(self.space(), -1, 1)}

    def setup(self) -> None:
        """Load the image side of the encoder."""
        self._encoder = self.load("image")

    def measure(self, row: Row) -> dict[str, Any]:
        """The vector; null for a strip that the encoder cannot take, and so is what is computed from it.

        Raises:
            ArithmeticError: the vector has no direction.
        """
        return self._vectors([row])[0]

    def process(self, rows: Sequence[Row]) -> Sequence[dict[str, Any] | Exception]:
        """On a GPU one call of the network (when it fails, the caller asks row by row); on a CPU one per row."""
        return self._vectors(rows) if self.execution.num_gpus else super().process(rows)

    def _vectors(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        assert self._encoder is not None, "setup() comes first"
        pictures = [row.pixels for row in rows if row.pixels is not None]
        try:
            vectors = [unit(vector) for vector in self._encoder.images(pictures)]
        except Strip as why:
            if len(rows) > 1:
                raise  # the caller asks row by row
            return [{"embedding": None, "dim": None, "not_measured": str(why)}]
        raw = [vector.astype("<f4").tobytes() for vector in vectors]
        return [{"embedding": data, "dim": len(data) // 4, "not_measured": None} for data in raw]


def vector_of(values: Mapping[str, Any]) -> np.ndarray | None:
    """(dim,) float32 of the columns of an `embed` step; None where it has no vector."""
    if values["embedding"] is None:
        return None
    return np.frombuffer(values["embedding"], "<f4")
