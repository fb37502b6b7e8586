"""Annotate `image_stats`: size, sharpness, brightness and entropy of a picture.

Measured on the decoded picture (`docs/pictures.md`): upright, so an EXIF-rotated photograph has the width that one
sees. Sharpness is the variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield
microscopy", ICPR 2000). That grows with resolution, so it is taken on grey whose short side was brought down to
`sharpness_side` by area averaging. Price paid: a picture smaller than that is measured as it is, since enlarging
would only blur it; its value compares with others of its size, so pair a threshold with one on `short_side`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from nextloom import pixels
from nextloom.op import Annotate, Row


class ImageStats(Annotate):
    """Plain measurements, one decode."""

    name: ClassVar[str] = "image_stats"
    code_version: ClassVar[int] = 1
    needs: ClassVar = "pixels"

    sharpness_side: int = Field(default=256, ge=16)
    """Short side in pixels at which sharpness is measured; thresholds hold for one value of it."""

    def columns(self) -> pa.Schema:
        sizes = [(name, pa.int32()) for name in ("width", "height", "channels", "short_side")]
        scores = [(name, pa.float64()) for name in ("aspect", "sharpness", "brightness", "entropy")]
        return pa.schema(sizes + scores)

    def setup(self) -> None:
        """One OpenCV thread: workers share the machine."""
        import cv2

        cv2.setNumThreads(1)

    def measure(self, row: Row) -> dict[str, Any]:
        """Measurements of `row.pixels`; `row.raw` tells the channels of the file.

        Returns:
            width, height, short_side: pixels of the upright picture.
            channels: 1 to 4, of the file before it became RGB (see `pixels.channels`).
            aspect: width / height.
            sharpness: variance of the Laplacian, from 0; about 100 and more looks sharp on photographs.
            brightness: mean of grey, 0 black to 1 white.
            entropy: bits of the 256-bin histogram of grey, 0 flat to 8.
        """
        import cv2

        assert row.pixels is not None and row.raw is not None
        height, width = row.pixels.shape[:2]
        grey = cv2.cvtColor(row.pixels, cv2.COLOR_RGB2GRAY)
        share = np.bincount(grey.ravel(), minlength=256) / grey.size
        seen = share[share > 0]
        return {
            "width": width,
            "height": height,
            "channels": pixels.channels(row.raw),
            "short_side": min(width, height),
            "aspect": width / height,
            "sharpness": float(cv2.Laplacian(self._small(grey), cv2.CV_64F).var()),
            "brightness": float(share @ np.arange(256) / 255),
            "entropy": max(0.0, float(-(seen * np.log2(seen)).sum())),
        }

    def _small(self, grey: np.ndarray) -> np.ndarray:
        import cv2

        height, width = grey.shape
        scale = self.sharpness_side / min(height, width)
        if scale >= 1:
            return grey
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
