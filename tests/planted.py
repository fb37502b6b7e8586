"""A folder whose defects are known: which pictures are copies, blurred, noisy, dark, framed, full of text, broken.

Quarters of photographs that scikit-image and scikit-learn ship are the pictures; each defect is planted in quarters
of its own, so that a picture has one defect or none. File names say what was planted, and nothing else reads them.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import skimage
import sklearn
from PIL import Image, ImageDraw, ImageFilter, ImageFont

PHOTOS = (
    (skimage, "data/astronaut.png"),
    (skimage, "data/chelsea.png"),
    (skimage, "data/coffee.png"),
    (skimage, "data/rocket.jpg"),
    (skimage, "data/motorcycle_left.png"),
    (sklearn, "datasets/images/china.jpg"),
    (sklearn, "datasets/images/flower.jpg"),
)
DEFECTS = ("blurred", "noisy", "dark", "framed", "texts", "broken")
COPIES = ("rescaled", "recompressed", "cropped")
EACH = 3
"""Pictures per defect, and originals with copies."""


def quarters() -> list[Image.Image]:
    """28 pictures of about 150 to 320 pixels a side."""
    out = []
    for package, name in PHOTOS:
        photo = Image.open(Path(package.__file__).parent / name).convert("RGB")
        width, height = photo.size[0] // 2, photo.size[1] // 2
        out += [photo.crop((x, y, x + width, y + height)) for y in (0, height) for x in (0, width)]
    return out


def plant(folder: Path) -> dict[str, set[str]]:
    """Write the folder; returns defect -> names of files, with `copies` and `clean` beside `DEFECTS`."""
    folder.mkdir(parents=True)
    pictures = iter(quarters())
    truth: dict[str, set[str]] = {name: set() for name in (*DEFECTS, "copies", "clean")}
    for defect in DEFECTS:
        for number in range(EACH):
            name = f"{defect}{number}.jpg"
            (folder / name).write_bytes(_spoilt(defect, next(pictures), number))
            truth[defect].add(name)
    for number in range(EACH):
        original = next(pictures)
        (folder / f"a_original{number}.jpg").write_bytes(_jpeg(original, 95))  # listed before its copies
        truth["clean"].add(f"a_original{number}.jpg")
        for kind, copy in zip(COPIES, _copies(original), strict=True):
            (folder / f"{kind}{number}.jpg").write_bytes(copy)
            truth["copies"].add(f"{kind}{number}.jpg")
    for number, picture in enumerate(pictures):
        (folder / f"clean{number}.jpg").write_bytes(_jpeg(picture, 95))
        truth["clean"].add(f"clean{number}.jpg")
    return truth


def _copies(picture: Image.Image) -> list[bytes]:
    width, height = picture.size
    left, top = round(width * 0.01), round(height * 0.01)
    inner = picture.crop((left, top, width - left, height - top))
    return [
        _jpeg(picture.resize((round(width * 0.6), round(height * 0.6)), Image.Resampling.BICUBIC), 90),
        _jpeg(picture, 40),
        _jpeg(inner, 95),
    ]


def _spoilt(defect: str, picture: Image.Image, number: int) -> bytes:
    width, height = picture.size
    if defect == "blurred":
        picture = picture.filter(ImageFilter.GaussianBlur(min(width, height) * 0.02))
    elif defect == "noisy":
        noise = np.random.default_rng(number).normal(0, 40, (height, width, 3))
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    elif defect == "dark":
        picture = Image.fromarray((np.asarray(picture) * 0.12).astype(np.uint8))
    elif defect == "framed":
        framed = Image.new("RGB", (width, round(height * 1.4)), ((0, 0, 0), (255, 255, 255), (40, 90, 40))[number])
        framed.paste(picture, (0, round(height * 0.2)))
        picture = framed
    elif defect == "texts":
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(20)
        for line in range(0, height - 22, 26):
            draw.rectangle((0, line, width, line + 24), fill="white")
            draw.text((4, line), "MOVING SALE, EVERYTHING MUST GO TODAY", fill="black", font=font)
    raw = _jpeg(picture, 95)
    return raw[: len(raw) // 2] if defect == "broken" else raw


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
