"""From the samples that a file stores to 8 bits, with what is transparent: odd depths and white that is zero.

What has a known range is scaled; what has none (floats, 32-bit and signed integers) is refused with its name, since a
guess would come out black or wrapped. Sources: TIFF 6.0 (BitsPerSample, PhotometricInterpretation), PNG 1.2 (tRNS
holds a value of the file's own depth).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from nextloom.tiff import Directory


@dataclass(frozen=True, slots=True)
class Depth:
    """How the samples of an image become 8 bits."""

    top: int
    """The sample that is white, of grey with more than 8 bits."""
    inverted: bool
    """0 is white instead."""
    key: Any
    """The transparent value of grey with more than 8 bits, or None."""

    @classmethod
    def of(cls, image: Image.Image, raw: bytes, tiff: Directory | None) -> Depth:
        """For a loaded image; a transparent value of less or more than 8 bits is brought to the depth of its pixels."""
        key = image.info.get("transparency")
        if image.format == "PNG" and key is not None:
            key = _of_png(image, key, raw)
        if tiff is None:
            return cls(65535, False, key if isinstance(key, int) else None)
        return cls(2**tiff.bits - 1, tiff.photometric == 0, None)

    def eight_bit(self, band: Image.Image) -> Image.Image:
        """`band` of the image, with its grey of more than 8 bits scaled and rounded; others as they are."""
        if not band.mode.startswith("I"):
            return band
        wide = np.asarray(band).astype(np.int64)
        if self.inverted:
            wide = self.top - wide
        grey = Image.fromarray(((np.clip(wide, 0, self.top) * 510 + self.top) // (2 * self.top)).astype(np.uint8))
        if self.key is not None:
            grey.putalpha(Image.fromarray(np.where(wide == self.key, 0, 255).astype(np.uint8)))
        return grey


def _of_png(image: Image.Image, key: Any, raw: bytes) -> Any:
    """The transparent value at the depth of the loaded pixels; it is of the file's: 1, 2 or 4 bits of grey, or 16.

    Pillow drops the low byte of 16-bit colours, and 256 neighbours of the value with it. OpenCV tells which is which.
    """
    depth = raw[24]
    if isinstance(key, int) and depth < 8 and image.mode in ("1", "L"):
        key = key * 255 // (2**depth - 1)
    elif isinstance(key, tuple) and depth == 16:
        import cv2

        key = tuple(value >> 8 for value in key)
        wide = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
        if wide is not None and wide.ndim == 3 and wide.shape == (image.height, image.width, 4):
            seen = np.where(wide[..., 3] == 0, 0, 255).astype(np.uint8)
            image.putalpha(Image.fromarray(seen))
            image.info.pop("transparency")
            return None
    image.info["transparency"] = key
    return key
