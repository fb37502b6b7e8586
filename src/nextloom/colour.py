"""ICC profiles: the colours that a file means, brought to sRGB.

A profile comes from the file, so its size is bounded, and what is remembered is a few transforms, by digest.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict

import numpy as np
from PIL import Image, ImageCms

SAME_COLOUR = 2
"""A profile whose colours are nowhere further than this from sRGB, of 255, is taken for sRGB: pixels stay as stored."""
MAX_PROFILE = 8 * 2**20
"""Largest ICC profile in bytes; those of presses have up to 3 MB."""
REMEMBERED = 16
"""Transforms kept per process."""
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}

_transforms: OrderedDict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = OrderedDict()
_lock = threading.Lock()


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """`image` with the colours that its ICC profile means, in sRGB; alpha as it was.

    A profile that cannot be read, or is about other channels than the image has, is ignored, as browsers do.
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
    """Whether the image's ICC profile means other colours than its pixels say when they are taken for sRGB."""
    profile = image.info.get("icc_profile")
    mode = "RGB" if image.mode == "P" else image.mode
    return bool(profile) and len(profile) <= MAX_PROFILE and _transform(profile, mode) is not None


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """As `_make`, remembered."""
    key = (hashlib.sha256(profile).digest(), mode)
    with _lock:
        if key in _transforms:
            _transforms.move_to_end(key)
            return _transforms[key]
    made = _make(profile, mode)
    with _lock:
        _transforms[key] = made
        while len(_transforms) > REMEMBERED:
            _transforms.popitem(last=False)
    return made


def _make(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
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
