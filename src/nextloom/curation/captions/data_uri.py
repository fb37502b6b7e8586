"""Pictures as data URIs, the form in which chat models take them.

The original bytes are sent, untouched, when any reader would see in them what `nextloom.pixels` sees and they are
small enough: a still JPEG, PNG, WebP or GIF, 8 bits a channel, grey, RGB or an opaque palette, in sRGB, upright
without EXIF's help, at most `max_bytes` long and its longer side at most `max_side` pixels. Anything else (a frame
of an animation, TIFF, AVIF, CMYK, alpha, 16 bits, a turned or a large picture) is decoded by the one way of the
package, brought down to `max_side` by Lanczos if it is larger, and sent as JPEG of quality 90. Every picture is decoded
first, so a broken one is an error row and costs no request. Price paid: one decode per picture, about 10 ms per
megapixel, beside a second or so of the model.
"""

from __future__ import annotations

import base64
import io

from PIL import ExifTags, Image

from nextloom import colour, pixels

SENT_AS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
QUALITY = 90


def data_uri(raw: bytes, frame: int | None, *, max_side: int, max_bytes: int) -> str:
    """``data:image/...;base64,...`` of one picture.

    Args:
        raw: bytes of the file.
        frame: which frame of an animation; None or 0 is the first.
        max_side: pixels of the longer side that may be sent.
        max_bytes: length of original bytes that may be sent; what is re-encoded is bounded by `max_side` alone.

    Raises:
        PictureError: the bytes give no pixels.
    """
    rgb = pixels.decode(raw, frame or 0)
    height, width = rgb.shape[:2]
    image = pixels.open_picture(raw)
    if not frame and len(raw) <= max_bytes and max(height, width) <= max_side and _plain(image):
        return _uri(SENT_AS[str(image.format)], raw)
    small = Image.fromarray(rgb)
    scale = max_side / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = small.resize(size, Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=QUALITY)
    return _uri("image/jpeg", sink.getvalue())


def _plain(image: Image.Image) -> bool:
    """Whether every decoder sees the same in it: a still picture, no turn, no alpha, no odd kind of pixel."""
    if image.format not in SENT_AS or getattr(image, "n_frames", 1) > 1:
        return False
    if image.mode not in ("L", "RGB", "P") or "transparency" in image.info or colour.has_foreign_colours(image):
        return False
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # EXIF that cannot be parsed: another reader may see a turn in it
        return False


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
