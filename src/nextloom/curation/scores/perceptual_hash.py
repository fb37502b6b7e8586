"""Annotate `perceptual_hash`: 64 bits that stay nearly the same when a picture is resized or re-encoded.

pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): grey, brought to 32 x 32
by area averaging, two-dimensional DCT-II, the 8 x 8 lowest frequencies; a bit says whether a coefficient is above
their median. Coefficients are rounded to 1/1000 first, so that those which are zero in exact arithmetic (half of
them in a symmetric picture) give the same bit on every machine. Price paid: colour is not
seen (a red and a blue heart are near duplicates, so are many striped flags); flat pictures have nothing but zeros,
so all of them hash alike; mirrored or turned copies hash apart.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nextloom.op import Annotate, Row

SIDE, LOW = 32, 8


def _dct_rows() -> np.ndarray:
    """(8, 32) the 8 lowest rows of the orthonormal DCT-II of 32 samples."""
    k, n = np.arange(LOW)[:, None], np.arange(SIDE)[None, :]
    rows = np.cos(np.pi * k * (2 * n + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return rows


DCT = _dct_rows()


class PerceptualHash(Annotate):
    """A 64-bit pHash."""

    name: ClassVar[str] = "perceptual_hash"
    code_version: ClassVar[int] = 1
    needs: ClassVar = "pixels"

    def columns(self) -> pa.Schema:
        return pa.schema([("hash", pa.int64())])

    def setup(self) -> None:
        """One OpenCV thread: workers share the machine."""
        import cv2

        cv2.setNumThreads(1)

    def measure(self, row: Row) -> dict[str, Any]:
        """`hash`: the 64 bits, row by row from the constant term as the highest, as an int64."""
        import cv2

        assert row.pixels is not None
        grey = cv2.cvtColor(row.pixels, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
        low = np.round(DCT @ small @ DCT.T, 3)
        bits = (low > np.median(low)).ravel()
        return {"hash": int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)}
