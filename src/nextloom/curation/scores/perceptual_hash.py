"""Annotate `perceptual_hash`: what an image looks like, in 64 bits of shapes and 28 bytes of paint.

    phash:     {op: perceptual_hash}
    duplicate: {op: near_duplicate, reads: [phash], max_distance: 6}

Both stay nearly the same when an image is resized, re-encoded or cut by a little.

`hash` is a pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): grey, brought to
32 x 32 by area averaging, two-dimensional DCT-II, the 8 x 8 lowest frequencies; a bit says whether a coefficient is
above their median by more than a fifth of their root mean square, and than a wave of 3/4 of a grey level. Without that
margin half of the bits of a symmetric or flat image are the sign of rounding noise, or of a cut by a line: of 638
drawings saved as JPEG at quality 40, 85 % stayed within 6 bits, of those cut by 2 % at one side 58 %; with it 100 % and
98 % do (docs/log.md).

`colour` is brightness and colour (Y, Cr, Cb of ITU-R BT.601, 0 to 255) of 3 x 3 cells, row by row, then the contrast:
the deviation of the 32 x 32 from their mean. Flags of one pattern and hearts of one shape differ there, and so do flat
images, whose hashes are all alike. Mirrored or turned copies are not recognised, nor is another colour of what covers
less than a twentieth of every cell.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nextloom.op import Annotate, Row

SIDE, LOW = 32, 8
MARGIN = 12.0
"""Of an orthonormal coefficient: the wave it stands for has an amplitude of three quarters of a grey level."""
SHARE = 0.2
"""Of the coefficients' root mean square, the constant term left out."""
CELLS = 3
SIGNATURE = CELLS * CELLS * 3 + 1
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
    code_version: ClassVar[int] = 3
    needs: ClassVar = "pixels"

    def columns(self) -> pa.Schema:
        return pa.schema([("hash", pa.int64()), ("colour", pa.binary())])

    def setup(self) -> None:
        """One OpenCV thread: workers share the machine."""
        import cv2

        cv2.setNumThreads(1)

    def measure(self, row: Row) -> dict[str, Any]:
        """`hash`: the 64 bits, row by row from the constant term as the highest, as an int64; `colour`: 28 bytes."""
        import cv2

        assert row.pixels is not None
        small = cv2.resize(row.pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float64)
        low = np.round(DCT @ grey @ DCT.T, 3)
        wave = np.sqrt(np.mean(np.square(low.ravel()[1:])))
        bits = (low > max(np.median(low), 0.0) + max(MARGIN, SHARE * wave)).ravel()
        cells = cv2.resize(row.pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        paint = cv2.cvtColor(cells, cv2.COLOR_RGB2YCrCb).ravel()
        deviation = np.rint(np.sqrt(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb).reshape(-1, 3).var(axis=0).sum()))
        return {
            "hash": int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True),
            "colour": bytes([*paint.tolist(), min(255, int(deviation))]),
        }
