"""A contact sheet: pictures in lines above each other, with their captions."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

CELL = 72
"""Pixels per picture along a side."""
TEXT_HEIGHT, GAP = 22, 10


def sheet(lines: list[list[np.ndarray]], captions: list[str], columns: int) -> Image.Image:
    """For each block of `columns` pictures the given lines above each other, captions below.

    Args:
        lines: of uint8 pictures (height, width, 3), each line as long as `captions`.
        captions: two times 13 letters of each are shown.
        columns: pictures side by side.
    """
    blocks = -(-len(captions) // columns)
    height = blocks * (len(lines) * CELL + TEXT_HEIGHT + GAP)
    image = Image.new("RGB", (min(columns, len(captions)) * CELL, height), "white")
    pen = ImageDraw.Draw(image)
    for k, caption in enumerate(captions):
        left, top = (k % columns) * CELL, (k // columns) * (len(lines) * CELL + TEXT_HEIGHT + GAP)
        for row, line in enumerate(lines):
            picture = Image.fromarray(line[k])
            scale = min((CELL - 4) / picture.width, (CELL - 4) / picture.height)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
            image.paste(picture.resize(size, kind), (left + 2, top + row * CELL + 2))
        for row, words in enumerate((caption[:13], caption[13:26])):
            pen.text((left + 2, top + len(lines) * CELL + row * 10), words, fill="black", font_size=9)
    return image


def spread(count: int, room: int) -> list[int]:
    """At most `room` numbers spread evenly over range(count)."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, room))})
