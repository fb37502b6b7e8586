"""One way from file bytes to pixels, and one way from pixels to a model's input.

Curation, tokenizer training and extraction all come through here, so they see the same picture. Pillow does
the decoding: it refuses truncated files, where OpenCV returns a half-grey picture without a word.

Rules, in order: header checked before any pixel is decoded (format, pixels, scans, size of the profile); first frame
unless asked; EXIF orientation applied; more than 8 bits scaled to 8 (`depth`); colours of an ICC profile brought to
sRGB (`colour`); palette, alpha and transparency composited on white; CMYK and others converted to RGB. Changing a rule
bumps the version, which is in every fingerprint. `docs/pictures.md` tells users the same. Price paid: a frame of an
animation is decoded from the first one on; a picture with a profile other than sRGB costs about 20 ms more per million
pixels.
"""

from __future__ import annotations

import io
import warnings
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from nextloom.colour import MAX_PROFILE, in_srgb
from nextloom.depth import eight_bit, unknown_range
from nextloom.magic import kind_of

DECODE_VERSION = "decode3"
RESIZE_VERSION = "resize1"
RESAMPLING = "lanczos"
"""How `cover` resamples; part of `RESIZE_VERSION`."""
MAX_PIXELS = 2**27
"""Largest picture decoded, in pixels: 134 million, such as 11,585 x 11,585. One with alpha takes 1.5 GB on its way."""
MAX_SCANS = 100
"""Most scans of a JPEG: each is as much work as a plain file of its size. Encoders write up to about 20."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is tried, whatever the file is called, and HEIC. Others stay out: some (EPS) start programs of their own."""
READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000, PPM"
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
"""Formats whose frames are moments of one picture; pages of a TIFF and parts of an MPO or HEIC are not."""
_IMAGES = {"JPEG", "PNG", "GIF", "WebP", "TIFF", "AVIF", "HEIC", "HEIC or AVIF", "JPEG 2000", "BMP", "PPM"}
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
    """The bytes give no pixels. The message is the same for all files of one fault, `detail` for the same bytes.

    Neither holds any of the bytes.
    """

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail


class NotAPicture(PictureError):
    """Empty, or of no format that is read."""


class PictureTooLarge(PictureError):
    """The header announces more than `MAX_PIXELS`, `MAX_SCANS` or `MAX_PROFILE`."""


class BrokenPicture(PictureError):
    """It begins as a picture does; header or data are truncated or damaged."""


def open_picture(raw: bytes) -> Image.Image:
    """The picture with its header read and no pixel decoded.

    Raises:
        NotAPicture: the file is empty or of no known format.
        BrokenPicture: its header is damaged.
        PictureTooLarge: it announces too many pixels.
    """
    if not raw:
        raise NotAPicture("the file is empty")
    kind = kind_of(raw)
    try:
        image = Image.open(io.BytesIO(raw), formats=(*FORMATS, _heif()) if raw[4:8] == b"ftyp" else FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureTooLarge(_TOO_MANY, str(error).split(",", maxsplit=1)[0]) from None
    except UnidentifiedImageError:
        if kind in _IMAGES:
            raise BrokenPicture(f"the header of this {kind} is damaged, or of a variety that is not read") from None
        raise NotAPicture(f"{_named(kind)} is not read; what is read: {READ}") from None
    except Exception as error:
        raise BrokenPicture(f"the header of this {kind} is damaged", str(error)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureTooLarge(_TOO_MANY, f"{width} x {height}, {width * height} pixels")
    if len(image.info.get("icc_profile") or b"") > MAX_PROFILE:
        raise PictureTooLarge(f"its colour profile has more than {MAX_PROFILE:,} bytes")
    if image.format in ("JPEG", "MPO") and (scans := raw.count(b"\xff\xda")) > MAX_SCANS:
        raise PictureTooLarge(f"it has more than {MAX_SCANS} scans", f"{scans}")
    return image


_TOO_MANY = f"it announces more than {MAX_PIXELS:,} pixels"


def _named(kind: str) -> str:
    return {"unknown": "a file of unknown kind", "zeros": "a file of zeros"}.get(kind, kind)


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
        problem = unknown_range(image)
    except EOFError:
        raise BrokenPicture("there is no such frame", f"frame {frame}") from None
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenPicture(f"the data of this {kind_of(raw)} are damaged or cut off", str(error)) from error
    if problem:
        raise PictureError(f"its samples are {problem}, whose range is unknown; convert it to 8 or 16 bits")
    profile = image.info.get("icc_profile")
    if image.format == "PNG":
        image.info["depth"] = raw[24]
    image = eight_bit(_upright(image))
    if profile:
        image = in_srgb(image, profile)
    return np.asarray(_on_white(image).convert("RGB"))


@lru_cache(maxsize=1)
def _heif() -> str:
    """Makes Pillow read HEIC, once in a process, and says what it calls it; one thread, since workers share."""
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    return "HEIF"


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF that cannot be parsed says nothing about the pixels
        return image
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND):  # in bands, so that a large picture is not held four times
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        flat.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return flat


_BAND = 512


def crop_box(height: int, width: int, to_height: int, to_width: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in source pixels of the largest centred box of the wanted shape."""
    scale = min(height / to_height, width / to_width)
    box_h, box_w = to_height * scale, to_width * scale
    top, left = max(0.0, (height - box_h) / 2), max(0.0, (width - box_w) / 2)
    return left, top, min(left + box_w, width), min(top + box_h, height)  # Pillow refuses a rounding error past it


def cover(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: `crop_box` of the picture, resampled by Lanczos with antialias.

    Deterministic on the CPU: training and extraction get bitwise the same picture.
    """
    box = crop_box(rgb.shape[0], rgb.shape[1], height, width)
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS, box=box))


def to_model(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """(3, height, width) float32 in [-1, 1]: `cover`, then x / 127.5 - 1. The tokenizer's only way in."""
    small = cover(rgb, height, width)
    return np.ascontiguousarray(small.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(1)


def from_model(x: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 from (3, height, width) float in [-1, 1]; values outside are clipped."""
    return ((np.clip(x, -1, 1) + 1) * 127.5 + 0.5).astype(np.uint8).transpose(1, 2, 0)
