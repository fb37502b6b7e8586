"""One way from file bytes to pixels, and one way from pixels to a model's input.

Curation, tokenizer training and extraction all come through here, so they see the same picture. Pillow does
the decoding: it refuses truncated files, where OpenCV returns a half-grey picture without a word.

Rules, in order: header checked before any pixel is decoded (format, size limit); first frame unless asked; EXIF
orientation applied; 16-bit scaled to 8; palette, alpha and transparency composited on white; CMYK and others
converted to RGB. ICC profiles are ignored. Changing a rule bumps the version, which is in every fingerprint.
`docs/pictures.md` tells users the same. Price paid: a frame of an animation is decoded from the first one on.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

DECODE_VERSION = "decode1"
RESIZE_VERSION = "resize1"
MAX_PIXELS = 178_956_970
"""Largest picture decoded, in pixels (Pillow's own limit for decompression bombs); more is an error row."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is tried, whatever the file is called. Others stay out: some (EPS) start programs of their own."""
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
"""Formats whose frames are moments of one picture; the pages of a TIFF and the parts of an MPO are not."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow warns of what is checked here (size) or does not matter (odd EXIF). A filter set once is safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PictureError(ValueError):
    """The bytes give no pixels; the message is the same for the same bytes."""


class NotAPicture(PictureError):
    """Empty, or of no format that is read."""


class PictureTooLarge(PictureError):
    """The header announces more pixels than `MAX_PIXELS`."""


class BrokenPicture(PictureError):
    """The header is fine, the data is truncated or damaged."""


def open_picture(raw: bytes) -> Image.Image:
    """The picture with its header read and no pixel decoded.

    Raises:
        NotAPicture: the file is empty or of no known format.
        PictureTooLarge: it announces too many pixels.
    """
    if not raw:
        raise NotAPicture("the file is empty")
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureTooLarge(str(error).split(",", maxsplit=1)[0]) from None
    except UnidentifiedImageError:
        if raw[4:8] == b"ftyp" and raw[8:12] in _HEIC_BRANDS:
            raise NotAPicture("HEIC is not read; convert it to AVIF or JPEG") from None
        raise NotAPicture(f"no picture in a format that is read; it begins with {raw[:16]!r}") from None
    except Exception as error:
        raise BrokenPicture(f"damaged header: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureTooLarge(f"Image size ({width * height} pixels) exceeds limit of {MAX_PIXELS} pixels")
    return image


def frame_count(raw: bytes) -> int:
    """Number of frames of an animation; 1 for a still picture, a multi-page TIFF and an MPO.

    Raises:
        PictureError: as `open_picture`.
    """
    image = open_picture(raw)
    return getattr(image, "n_frames", 1) if image.format in ANIMATED else 1


def channels(raw: bytes) -> int:
    """Channels that the file stores: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha, or CMYK.

    A palette counts as the colours it stands for. Only the header is read.

    Raises:
        PictureError: as `open_picture`.
    """
    image = open_picture(raw)
    bands = 3 if image.mode == "P" else len(image.getbands())
    return bands + (1 if "transparency" in image.info and image.mode not in ("LA", "PA", "RGBA") else 0)


def decode(raw: bytes, frame: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 sRGB pixels, upright, transparency on white; read-only.

    Args:
        raw: bytes of one picture file.
        frame: which frame of an animated picture.

    Raises:
        PictureError: empty, too large, truncated, damaged, or no picture.
    """
    image = open_picture(raw)
    try:
        if frame:
            image.seek(frame)
        image.load()
    except EOFError:
        raise BrokenPicture(f"there is no frame {frame}") from None
    except Exception as error:
        raise BrokenPicture(str(error)) from error
    return np.asarray(_on_white(_eight_bit(_upright(image))).convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF that cannot be parsed says nothing about the pixels
        return image
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8; values that have no known range are refused."""
    if image.mode == "F":
        raise PictureError("pixels are floats, whose range is unknown; convert it to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    wide = np.asarray(image).astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise PictureError("pixels are 32-bit integers, whose range is unknown; convert it to 8 or 16 bits")
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)


def cover(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: the largest centred box of the wanted shape, resampled by Lanczos with antialias.

    Deterministic on the CPU: training and extraction get bitwise the same picture.
    """
    h, w = rgb.shape[:2]
    scale = min(h / height, w / width)
    box_h, box_w = height * scale, width * scale
    top, left = max(0.0, (h - box_h) / 2), max(0.0, (w - box_w) / 2)  # Pillow refuses a rounding error past the edge
    box = (left, top, min(left + box_w, w), min(top + box_h, h))
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS, box=box))


def to_model(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """(3, height, width) float32 in [-1, 1]: `cover`, then x / 127.5 - 1. The tokenizer's only way in."""
    small = cover(rgb, height, width)
    return np.ascontiguousarray(small.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(1)


def from_model(x: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 from (3, height, width) float in [-1, 1]; values outside are clipped."""
    return ((np.clip(x, -1, 1) + 1) * 127.5 + 0.5).astype(np.uint8).transpose(1, 2, 0)
