"""Annotate `perceptual_hash`: what an image looks like, in 64 bits of shapes and 27 bytes of paint.

    phash:     {op: perceptual_hash}
    duplicate: {op: near_duplicate, reads: [phash], max_distance: 6}

Both stay nearly the same when an image is resized or re-encoded.

`hash` is a pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): grey, brought to
32 x 32 by area averaging, two-dimensional DCT-II, the 8 x 8 lowest frequencies; a bit says whether a coefficient is
above their median by more than a wave of half a grey level. Without that margin half of the bits of a symmetric or flat
image are the sign of rounding noise: of 280 drawings and photographs saved as JPEG at quality 40, 84 % stayed within 6
bits; with it all do (docs/log.md).

`colour` is brightness and colour (Y, Cr, Cb of ITU-R BT.601, 0 to 255) of 3 x 3 cells, row by row: flags of one pattern
and hearts of one shape differ there, and so do flat images, whose hashes are all alike. Mirrored or turned copies are
not recognised.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nextloom.op import Annotate, Row

SIDE, LOW = 32, 8
MARGIN = 8.0
"""Of an orthonormal coefficient: the wave it stands for has an amplitude of half a grey level."""
CELLS = 3
SIGNATURE = CELLS * CELLS * 3
"""Bytes of `colour`."""


def _dct_rows() -> np.ndarray:
    """(8, 32) the 8 lowest rows of the orthonormal DCT-II of 32 samples."""
    k, n = np.arange(LOW)[:, None], np.arange(SIDE)[None, :]
    rows = np.cos(np.pi * k * (2 * n + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return rows


DCT = _dct_rows()


class PerceptualHash(Annotate):
    """A 64-bit pHash, and the colours of nine cells."""

    name: ClassVar[str] = "perceptual_hash"
    code_version: ClassVar[int] = 2
    needs: ClassVar = "pixels"

    def columns(self) -> pa.Schema:
        return pa.schema([("hash", pa.int64()), ("colour", pa.binary())])

    def setup(self) -> None:
        """One OpenCV thread: workers share the machine."""
        import cv2

        cv2.setNumThreads(1)

    def measure(self, row: Row) -> dict[str, Any]:
        """`hash`: the 64 bits, row by row from the constant term as the highest, as an int64; `colour`: 27 bytes."""
        import cv2

        assert row.pixels is not None
        grey = cv2.cvtColor(row.pixels, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
        low = np.round(DCT @ small @ DCT.T, 3)
        bits = (low > np.median(low) + MARGIN).ravel()
        cells = cv2.resize(row.pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        colour = cv2.cvtColor(cells, cv2.COLOR_RGB2YCrCb)
        return {"hash": int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True), "colour": colour.tobytes()}
