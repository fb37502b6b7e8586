"""One way from file bytes to pixels, and one way from pixels to a model's input.

Curation, tokenizer training and extraction all come through here, so they see the same picture. Pillow does
the decoding: it refuses truncated files, where OpenCV returns a half-grey picture without a word.

Rules, in order: header checked before any pixel is decoded (size limit); first frame unless asked; EXIF
orientation applied; 16-bit scaled to 8; palette, alpha and transparency composited on white; CMYK and others
converted to RGB. ICC profiles are ignored. Changing a rule bumps the version, which is in every fingerprint.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps

DECODE_VERSION = "decode1"
RESIZE_VERSION = "resize1"
MAX_PIXELS = 178_956_970
"""Largest picture decoded, in pixels (Pillow's own limit for decompression bombs); more is an error row."""

ImageFile.LOAD_TRUNCATED_IMAGES = False


class PictureTooLarge(ValueError):
    """The header announces more pixels than `MAX_PIXELS`."""


def open_picture(raw: bytes) -> Image.Image:
    """The picture with its header read and no pixel decoded.

    Raises:
        ValueError: the file is empty or announces too many pixels.
        PIL.UnidentifiedImageError: the bytes are no picture.
    """
    if not raw:
        raise ValueError("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns at half its limit, then raises: the check below is ours
        try:
            image = Image.open(io.BytesIO(raw))
        except Image.DecompressionBombError as error:
            raise PictureTooLarge(str(error)) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureTooLarge(f"{width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")
    return image


def frame_count(raw: bytes) -> int:
    """Number of frames: 1 for a still picture."""
    return getattr(open_picture(raw), "n_frames", 1)


def decode(raw: bytes, frame: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 sRGB pixels, upright, transparency on white.

    Args:
        raw: bytes of one picture file.
        frame: which frame of an animated picture.

    Raises:
        ValueError, OSError: empty, too large, truncated, or no picture.
    """
    image = open_picture(raw)
    if frame:
        image.seek(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide.clip(0, 65535) // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def cover(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: the largest centred box of the wanted shape, resampled by Lanczos with antialias.

    Deterministic on the CPU: training and extraction get bitwise the same picture.
    """
    h, w = rgb.shape[:2]
    scale = min(h / height, w / width)
    box_h, box_w = height * scale, width * scale
    top, left = (h - box_h) / 2, (w - box_w) / 2
    box = (left, top, left + box_w, top + box_h)
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS, box=box))


def to_model(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """(3, height, width) float32 in [-1, 1]: `cover`, then x / 127.5 - 1. The tokenizer's only way in."""
    small = cover(rgb, height, width)
    return np.ascontiguousarray(small.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(1)


def from_model(x: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 from (3, height, width) float in [-1, 1]; values outside are clipped."""
    return ((np.clip(x, -1, 1) + 1) * 127.5 + 0.5).astype(np.uint8).transpose(1, 2, 0)
