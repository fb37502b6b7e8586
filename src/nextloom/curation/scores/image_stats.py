"""Annotate `image_stats`: size, sharpness, light, colour, borders and plain background of a picture.

    stats: {op: image_stats}     then: where: "stats.short_side >= 256 and stats.entropy > 0.3"

Measured on the decoded picture (`docs/pictures.md`): upright, so an EXIF-rotated photograph has the width that one
sees. Brightness and entropy are of all pixels; the others are of a copy whose short side was brought down to
`sharpness_side` by area averaging, once for all of them. Sharpness is the variance of the Laplacian
(Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000), which grows with resolution;
colourfulness is M3 of Hasler and Suesstrunk, "Measuring colourfulness in natural images", 2003. Price paid: a
picture smaller than that is measured as it is, since enlarging would only blur it; its values compare with others
of its size, so pair a threshold with one on `short_side`. Borders are known to one pixel of the copy, and in a JPEG
to the block of pixels (8 or 16) at their edge.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from nextloom import pixels
from nextloom.op import Annotate, Row

BIN = 16  # colours are counted in boxes of 16 x 16 x 16 to find the most frequent


class ImageStats(Annotate):
    """Plain measurements, one decode."""

    name: ClassVar[str] = "image_stats"
    code_version: ClassVar[int] = 2
    needs: ClassVar = "pixels"

    sharpness_side: int = Field(default=256, ge=16)
    """Short side in pixels of the copy that is measured; thresholds on sharpness hold for one value of it."""
    tolerance: int = Field(default=4, ge=0, le=127)
    """How far a channel (0..255) of a border or a plain background may lie from its colour."""

    def columns(self) -> pa.Schema:
        sizes = [(name, pa.int32()) for name in ("width", "height", "channels", "short_side")]
        scores = ("aspect", "sharpness", "brightness", "entropy", "colourfulness", "border", "plain")
        return pa.schema(sizes + [(name, pa.float64()) for name in scores])

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
            colourfulness: M3 on 8-bit sRGB, 0 grey to about 110 extremely colourful.
            border: share of the area that uniform strips at the four sides take (letterbox, frame, the empty
                margin of a drawing), 0..1; 1 for a picture of one colour.
            plain: share of the area in the most frequent colour, give or take `tolerance`, 0..1.
        """
        import cv2

        assert row.pixels is not None and row.raw is not None
        height, width = row.pixels.shape[:2]
        grey = cv2.cvtColor(row.pixels, cv2.COLOR_RGB2GRAY)
        share = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel().astype(np.float64) / grey.size
        seen = share[share > 0]
        small = self._small(row.pixels)
        small_grey = grey if small is row.pixels else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        return {
            "width": width,
            "height": height,
            "channels": pixels.channels(row.raw),
            "short_side": min(width, height),
            "aspect": width / height,
            "sharpness": float(cv2.meanStdDev(cv2.Laplacian(small_grey, cv2.CV_16S))[1].item() ** 2),
            "brightness": float(share @ np.arange(256) / 255),
            "entropy": max(0.0, float(-(seen * np.log2(seen)).sum())),
            "colourfulness": _colourfulness(small),
            "border": _border(small, self.tolerance),
            "plain": _plain(small, self.tolerance),
        }

    def _small(self, rgb: np.ndarray) -> np.ndarray:
        import cv2

        height, width = rgb.shape[:2]
        scale = self.sharpness_side / min(height, width)
        if scale >= 1:
            return rgb
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def _colourfulness(rgb: np.ndarray) -> float:
    """M3: how far the two opponent colours red - green and (red + green) / 2 - blue spread and lie from grey."""
    import cv2

    red, green, blue = cv2.split(rgb)
    red_green = cv2.subtract(red, green, dtype=cv2.CV_16S)
    yellow_blue = cv2.addWeighted(cv2.add(red, green, dtype=cv2.CV_16S), 1, blue.astype(np.int16), -2, 0)  # doubled
    (a, b), (c, d) = (np.ravel(cv2.meanStdDev(channel)) for channel in (red_green, yellow_blue))
    return float(np.hypot(b, d / 2) + 0.3 * np.hypot(a, c / 2))


def _border(rgb: np.ndarray, tolerance: int) -> float:
    """Share of the area that goes when uniform strips are peeled off the four sides, until no side has one."""
    height, width = rgb.shape[:2]
    inner = rgb
    while inner.size:
        top, bottom = _strip(inner, 0, tolerance)
        if top or bottom:
            inner = inner[top : max(top, len(inner) - bottom)]
            continue
        left, right = _strip(inner, 1, tolerance)
        if not (left or right):
            break
        inner = inner[:, left : max(left, inner.shape[1] - right)]
    return 1 - inner.shape[0] * inner.shape[1] / (height * width)


def _strip(rgb: np.ndarray, axis: int, tolerance: int) -> tuple[int, int]:
    """Numbers of lines at both ends of `axis` whose every pixel has the one colour of the outermost line."""
    import cv2

    found = []
    for end in (0, -1):
        line = rgb.take(end, axis)
        low, high = line.min(axis=0).astype(int), line.max(axis=0).astype(int)
        if (high - low).max() > 2 * tolerance:
            found.append(0)
            continue
        inside = cv2.inRange(rgb, *_around((low + high) // 2, tolerance))
        uniform = cv2.reduce(inside, 1 - axis, cv2.REDUCE_MIN).ravel()[:: end or 1] > 0
        found.append(len(uniform) if uniform.all() else int(uniform.argmin()))
    return found[0], found[1]


def _plain(rgb: np.ndarray, tolerance: int) -> float:
    """Share of pixels near the mean colour of the fullest of 16 x 16 x 16 boxes of colours."""
    import cv2

    counts = cv2.calcHist([rgb], [0, 1, 2], None, [256 // BIN] * 3, [0, 256] * 3)
    low = np.array(np.unravel_index(counts.argmax(), counts.shape)) * BIN
    colour = np.rint(cv2.mean(rgb, mask=cv2.inRange(rgb, low, low + BIN - 1))[:3])
    near = cv2.inRange(rgb, *_around(colour, tolerance))
    return cv2.countNonZero(near) / near.size


def _around(colour: np.ndarray, tolerance: int) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(colour - tolerance, 0), np.minimum(colour + tolerance, 255)
