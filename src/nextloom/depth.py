"""From the samples that a file stores to 8 bits, with what is transparent: odd depths, signs and formats of numbers.

What has a known range is scaled; what has none (floats, 32-bit and signed integers) is refused with its name, since a
guess would come out black or wrapped. Sources: TIFF 6.0 (BitsPerSample, SampleFormat, PhotometricInterpretation),
PNG 1.2 (tRNS holds a value of the file's own depth).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

_SAMPLE_FORMATS = {
    1: "unsigned integers",
    2: "signed integers",
    3: "floats",
    5: "complex integers",
    6: "complex floats",
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339


def unknown_range(image: Image.Image) -> str | None:
    """Why the samples have no range that is known, such as "32-bit signed integers"; None where they have one."""
    bits, _, kind = _tiff(image)
    if kind not in (1, 4) or (image.format == "TIFF" and image.mode in ("I", "F")) or bits > 16:
        return f"{bits}-bit {_SAMPLE_FORMATS.get(kind, 'samples of another format')}"
    if image.mode == "F":
        return "floats"
    return None


def eight_bit(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits scaled to 8, rounded, with a transparent value as alpha; other images as they are.

    Of colour and of grey up to 8 bits, a transparent value is brought to the depth of the pixels.
    """
    if not image.mode.startswith("I"):
        return _keyed(image)
    wide = np.asarray(image).astype(np.int64)
    bits, photometric, _ = _tiff(image)
    top = 2**bits - 1 if image.format == "TIFF" else 65535
    if photometric == 0:
        wide = top - wide
    grey = Image.fromarray(((np.clip(wide, 0, top) * 510 + top) // (2 * top)).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(wide == key, 0, 255).astype(np.uint8)))
    return grey


def _keyed(image: Image.Image) -> Image.Image:
    """A PNG's transparent value is of the file's depth: 1, 2 or 4 bits of grey, or 16 bits a colour."""
    key: Any = image.info.get("transparency")
    if image.format != "PNG" or key is None or image.mode not in ("1", "L", "RGB"):
        return image
    depth = image.info.get("depth", 8)
    if isinstance(key, int) and depth < 8:
        image.info["transparency"] = key * 255 // (2**depth - 1)
        return image.convert("L") if image.mode == "1" else image
    if isinstance(key, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _tiff(image: Image.Image) -> tuple[int, int, int]:
    """(bits, photometric, sample format) of a TIFF's samples; the most plain ones for other files."""
    tags: Any = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return 16 if image.mode.startswith("I;16") else 8, 1, 1
    bits, kind = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    bits, kind = (value if isinstance(value, tuple) else (value,) for value in (bits, kind))
    odd = [k for k in kind if k not in (1, 4)]
    return max(bits), tags.get(_PHOTOMETRIC, 1), odd[0] if odd else 1
