"""One way from file bytes to pixels, and one way from pixels to a model's input.

Curation, tokenizer training and extraction all come through here, so they see the same picture. Pillow does
the decoding: it refuses truncated files, where OpenCV returns a half-grey picture without a word.

Rules, in order: header checked before any pixel is decoded (format, pixels, scans, strips, kind of samples, size of the
profile); first frame unless asked; more than 8 bits scaled to 8 (`depth`); colours of an ICC profile brought to sRGB
(`colour`); palette, alpha and transparency composited on white; CMYK and others converted to RGB; EXIF orientation
applied. Changing a rule bumps the version, which is in every fingerprint. `docs/pictures.md` tells users the same.

Pillow's image is turned into an array in bands, so that beside it (2 to 4 bytes a pixel) there is the result (3) and no
more. Trade-off: a frame of an animation is decoded from the first one on; an image with a profile other than sRGB costs
about 20 ms more per million pixels.
"""

from __future__ import annotations

import io
import warnings
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from nextloom import jpeg, pnm, tiff
from nextloom.colour import MAX_PROFILE, in_srgb
from nextloom.depth import Depth
from nextloom.magic import kind_of

DECODE_VERSION = "decode4"
RESIZE_VERSION = "resize1"
RESAMPLING = "lanczos"
"""How `cover` resamples; part of `RESIZE_VERSION`."""
MAX_PIXELS = 2**27
"""Largest image decoded, in pixels: 134 million, such as 11,585 x 11,585. It takes at most 1.4 GB on its way (measured:
5 to 10 bytes a pixel, 11 to 20 in the formats below), beside the file."""
COSTLY = {"WEBP": 2, "JPEG2000": 2, "AVIF": 2, "HEIF": 2}
"""Formats of which so many times fewer are decoded, since their decoders take more."""
MAX_SCANS = 100
"""Most scans of a JPEG: each is as much work as a plain file of its size. Encoders write up to about 20."""
MAX_WORK = 2**31
"""Most pixels times scans of a JPEG, and times frames up to the one wanted of an animation: some ten seconds."""
MAX_PIECES = 100_000
"""Most strips or tiles of a TIFF: Pillow makes 300 bytes of each before it decodes one."""
BAND = 2**18
"""Pixels that are brought to 8-bit sRGB at once."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is tried, whatever the file is called, and HEIC. Others stay out: some (EPS) start programs of their own."""
READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000, PPM"
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
"""Formats whose frames are moments of one picture; pages of a TIFF and parts of an MPO or HEIC are not."""
_IMAGES = {"JPEG", "PNG", "GIF", "WebP", "TIFF", "BigTIFF", "AVIF", "HEIC", "HEIC or AVIF", "JPEG 2000", "BMP", "PPM"}
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
    """The header announces more than `MAX_PIXELS`, `MAX_SCANS`, `MAX_WORK`, `MAX_PIECES` or `MAX_PROFILE`."""


class BrokenPicture(PictureError):
    """It begins as a picture does; header or data are truncated or damaged."""


def open_picture(raw: bytes) -> Image.Image:
    """The picture with its header read and no pixel decoded.

    Raises:
        NotAPicture: the file is empty or of no known format.
        BrokenPicture: its header is damaged.
        PictureTooLarge: it announces more than the limits above.
        PictureError: its samples are of a kind that is not read.
    """
    if not raw:
        raise NotAPicture("the file is empty")
    kind = kind_of(raw)
    fields = tiff.directory(raw) if "TIFF" in kind else None
    if fields:
        _check_tiff(fields)
    try:
        image = Image.open(io.BytesIO(raw), formats=(*FORMATS, _heif()) if raw[4:8] == b"ftyp" else FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureTooLarge(_TOO_MANY, str(error).split(",", maxsplit=1)[0]) from None
    except UnidentifiedImageError:
        if kind in _IMAGES:
            which = f"{kind} of {fields.spoken()}" if fields else kind
            more = f"{fields.samples} samples a pixel, photometric {fields.photometric}" if fields else None
            raise BrokenPicture(
                f"the header of this {which} is damaged, or of a variety that is not read", more
            ) from None
        raise NotAPicture(f"{_named(kind)} is not read; what is read: {READ}") from None
    except Exception as error:
        raise BrokenPicture(f"the header of this {kind} is damaged", str(error)) from error
    _check_size(image, raw)
    return image


def _check_size(image: Image.Image, raw: bytes) -> None:
    count = image.width * image.height
    if count > MAX_PIXELS:
        raise PictureTooLarge(_TOO_MANY, f"{image.width} x {image.height}, {count} pixels")
    if count > (most := MAX_PIXELS // COSTLY.get(image.format or "", 1)):
        message = f"it announces more than {most:,} pixels, the limit of {image.format}"
        raise PictureTooLarge(message, f"{image.width} x {image.height}, {count} pixels")
    if len(image.info.get("icc_profile") or b"") > MAX_PROFILE:
        raise PictureTooLarge(f"its colour profile has more than {MAX_PROFILE:,} bytes")
    if image.format in ("JPEG", "MPO"):
        scans = jpeg.scans(raw, MAX_SCANS)
        if scans > MAX_SCANS:
            raise PictureTooLarge(f"it has more than {MAX_SCANS} scans")
        if scans * count > MAX_WORK:
            raise PictureTooLarge(
                f"its scans have more than {MAX_WORK:,} pixels together", f"{scans} scans, {count} pixels"
            )


def _check_tiff(fields: tiff.Directory) -> None:
    if not fields.has_range():
        raise PictureError(f"its samples are {fields.spoken()}, whose range is unknown; convert it to 8 or 16 bits")
    if fields.bits not in (1, 2, 4, 8, 12, 16):
        raise PictureError(f"its samples are {fields.spoken()}, which are not read; convert it to 8 or 16 bits")
    if fields.planar and fields.bits > 8 and fields.samples > 1 and not fields.compressed:
        raise PictureError("its 16-bit colours lie in planes, uncompressed: not read; store them pixel by pixel")
    if fields.pieces > MAX_PIECES:
        raise PictureTooLarge(f"it has more than {MAX_PIECES:,} strips or tiles", f"{fields.pieces}")


def _check_range(image: Image.Image) -> None:
    if image.mode == "F":
        raise PictureError("its samples are floats, whose range is unknown; convert it to 8 or 16 bits")


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
    if frame and (frame + 1) * image.width * image.height > MAX_WORK:
        raise PictureTooLarge(f"its frames up to this one have more than {MAX_WORK:,} pixels", f"frame {frame}")
    try:
        if frame:
            image.seek(frame)
            _check_size(image, raw)
        elif (rgb := pnm.scaled(image, raw)) is not None:
            return _upright(rgb, 1)
        image.load()
    except PictureError:
        raise
    except EOFError:
        if not frame:
            raise BrokenPicture(
                f"the data of this {kind_of(raw)} are damaged or cut off", "samples are missing"
            ) from None
        raise BrokenPicture("there is no such frame", f"frame {frame}") from None
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenPicture(f"the data of this {kind_of(raw)} are damaged or cut off", str(error)) from error
    _check_range(image)
    orientation = _orientation(image)
    rgb = _in_bands(image, raw)
    del image
    return _upright(rgb, orientation)


def _in_bands(image: Image.Image, raw: bytes) -> np.ndarray:
    """(height, width, 3) uint8 sRGB of a loaded image, as it is stored."""
    depth = Depth.of(image, raw, tiff.directory(raw) if image.format == "TIFF" else None)
    profile = image.info.get("icc_profile")
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        whole = (top, bottom) == (0, image.height)
        band = depth.eight_bit(image if whole else image.crop((0, top, image.width, bottom)))
        if band.mode == "La":  # grey of a TIFF, multiplied by its alpha
            band = band.convert("LA")
        if profile:
            band = in_srgb(band, profile)
        rgb[top:bottom] = np.asarray(_on_white(band).convert("RGB"))
    return rgb


@lru_cache(maxsize=1)
def _heif() -> str:
    """Makes Pillow read HEIC, once in a process, and says what it calls it; one thread, since workers share."""
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    return "HEIF"


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF that cannot be parsed says nothing about the pixels
        return 1


def _upright(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """The image turned as EXIF asks; anything but 2 to 8 leaves it."""
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    rgb = rgb[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]
    rgb = np.ascontiguousarray(rgb)
    rgb.flags.writeable = False
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        image = image.convert("L")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)


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
