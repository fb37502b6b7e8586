"""Binary PPM and PGM whose white is not 255: Pillow scales them sample by sample in Python, a second a megapixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

BAND = 2**18


def scaled(image: Image.Image, raw: bytes) -> np.ndarray | None:
    """(height, width, 3) uint8 of an image that was opened and not loaded; None where Pillow does as well.

    Raises:
        EOFError: samples are missing.
    """
    tiles: Any = getattr(image, "tile", None)
    tile = tiles[0] if image.format == "PPM" and tiles else None
    if tile is None or tile.codec_name != "ppm" or len(image.getbands()) not in (1, 3):
        return None
    white = int(tile.args[-1])
    channels = len(image.getbands())
    kind = np.dtype(">u2" if white > 255 else "u1")
    count = image.width * image.height * channels
    if len(raw) - tile.offset < count * kind.itemsize:
        raise EOFError
    samples = np.frombuffer(raw, kind, count, tile.offset).reshape(-1, channels)
    rgb = np.empty((len(samples), 3), np.uint8)
    for begin in range(0, len(samples), BAND):
        wide = np.minimum(samples[begin : begin + BAND].astype(np.uint32), white)
        rgb[begin : begin + BAND] = (wide * 510 + white) // (2 * white)
    return rgb.reshape(image.height, image.width, 3)
