"""One way from file bytes to pixels, and one way from pixels to a model's input.

Curation, tokenizer training and extraction all come through here, so they see the same picture. Pillow does
the decoding: it refuses truncated files, where OpenCV returns a half-grey picture without a word.

Rules, in order: header checked before any pixel is decoded (format, size limit); first frame unless asked; EXIF
orientation applied; 16-bit scaled to 8; colours of an ICC profile brought to sRGB; palette, alpha and transparency
composited on white; CMYK and others converted to RGB. Changing a rule bumps the version, which is in every
fingerprint. `docs/pictures.md` tells users the same. Price paid: a frame of an animation is decoded from the first
one on; a picture with a profile other than sRGB costs about 20 ms more per million pixels.
"""

from __future__ import annotations

import io
import warnings
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError

DECODE_VERSION = "decode2"
RESIZE_VERSION = "resize1"
RESAMPLING = "lanczos"
"""How `cover` resamples; part of `RESIZE_VERSION`."""
MAX_PIXELS = 178_956_970
"""Largest picture decoded, in pixels (Pillow's own limit for decompression bombs); more is an error row."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is tried, whatever the file is called, and HEIC. Others stay out: some (EPS) start programs of their own."""
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
"""Formats whose frames are moments of one picture; pages of a TIFF and parts of an MPO or HEIC are not."""

SAME_COLOUR = 2
"""A profile whose colours are nowhere further than this from sRGB, of 255, is taken for sRGB: pixels stay as stored."""
_MARKS = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC or AVIF"),
)
"""(offset, bytes, format) by which a file is known for a picture when its header cannot be read."""
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
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
    boxes = raw[4:8] == b"ftyp"
    try:
        image = Image.open(io.BytesIO(raw), formats=(*FORMATS, _heif()) if boxes else FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureTooLarge(str(error).split(",", maxsplit=1)[0]) from None
    except UnidentifiedImageError:
        if name := next((name for at, mark, name in _MARKS if raw.startswith(mark, at)), None):
            raise BrokenPicture(f"damaged header of a {name}, or one that is not read") from None
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
    profile = image.info.get("icc_profile")
    image = _eight_bit(_upright(image))
    if profile:
        image = _in_srgb(image, profile)
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


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """`image` with the colours that its ICC profile means, in sRGB; alpha as it was.

    A profile that cannot be read, or is about other channels than the picture has, is ignored, as browsers do.
    """
    if image.mode in ("P", "PA", "RGBX", "YCbCr"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode in ("1", "L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    plain = image.convert(image.mode[:-1]) if alpha else image
    transform = _transform(profile, plain.mode)
    if transform is None:
        return image
    rgb = ImageCms.applyTransform(plain, transform)
    assert rgb is not None
    if alpha:
        rgb.putalpha(alpha)
    return rgb


def has_foreign_colours(image: Image.Image) -> bool:
    """Whether the picture's ICC profile means other colours than its pixels say when they are taken for sRGB."""
    profile = image.info.get("icc_profile")
    mode = "RGB" if image.mode == "P" else image.mode
    return bool(profile) and _transform(profile, mode) is not None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From `profile` to 8-bit sRGB, relative colorimetric with black point compensation; None: leave the pixels."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES.get(mode):
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE,
        )
        if mode == "CMYK":
            return transform
        steps = np.arange(0, 256, 17, dtype=np.uint8)
        probe = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(64, 64, 3)).convert(mode)
        shown = ImageCms.applyTransform(probe, transform)
        far = np.abs(np.asarray(shown, np.int16) - np.asarray(probe.convert("RGB"), np.int16)).max()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform if far > SAME_COLOUR else None


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image
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
