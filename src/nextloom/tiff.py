"""What the first directory of a TIFF says, read without Pillow, in bounded time and memory.

Pillow calls a variety that it does not know no image at all, makes a Python object of every strip before it decodes
one, and takes uncompressed 16-bit planes for 8-bit ones. So the header is looked at first. Source: TIFF 6.0, sections
2 and 8, and "SampleFormat"; BigTIFF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, SAMPLES = 256, 257, 258, 259, 262, 273, 277
PLANAR, TILES, SAMPLE_FORMAT = 284, 324, 339
_WANTED = (WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, SAMPLES, PLANAR, TILES, SAMPLE_FORMAT)
_SIZES = {1: "B", 3: "H", 4: "L", 16: "Q"}
MAX_ENTRIES = 4096
"""Entries of the directory that are looked at; cameras write about 50."""
FORMATS = {
    1: "unsigned integers",
    2: "signed integers",
    3: "floats",
    5: "complex integers",
    6: "complex floats",
}
UNSIGNED, UNDEFINED = 1, 4


@dataclass(frozen=True, slots=True)
class Directory:
    """Fields of the first image."""

    bits: int
    """Of a sample; the most of all samples."""
    sample_format: int
    """1 unsigned, 2 signed, 3 float, 4 undefined, 5 and 6 complex; the oddest of all samples."""
    photometric: int
    samples: int
    planar: bool
    """Each colour in a plane of its own."""
    compressed: bool
    pieces: int
    """Strips or tiles."""

    def spoken(self) -> str:
        """Such as "16-bit signed integers"."""
        return f"{self.bits}-bit {FORMATS.get(self.sample_format, 'samples of no stated format')}"

    def has_range(self) -> bool:
        """Whether black and white are known numbers: unsigned integers of at most 16 bits."""
        return self.sample_format in (UNSIGNED, UNDEFINED) and self.bits <= 16


def directory(raw: bytes) -> Directory | None:
    """The first directory of a TIFF or BigTIFF; None where it cannot be read."""
    order = {b"II": "<", b"MM": ">"}.get(raw[:2])
    if order is None or len(raw) < 16:
        return None
    big = raw[2:4] in (b"+\0", b"\0+")
    try:
        found = dict(_entries(raw, order, big))
    except struct.error:
        return None
    formats = [kind for kind in found.get(SAMPLE_FORMAT, [1])[:8] if kind not in (UNSIGNED, UNDEFINED)]
    return Directory(
        bits=max(found.get(BITS) or [1]),
        sample_format=formats[0] if formats else (found.get(SAMPLE_FORMAT) or [1])[0],
        photometric=(found.get(PHOTOMETRIC) or [1])[0],
        samples=(found.get(SAMPLES) or [1])[0],
        planar=(found.get(PLANAR) or [1])[0] == 2,
        compressed=(found.get(COMPRESSION) or [1])[0] != 1,
        pieces=max((found.get(tag) or [0])[-1] for tag in (STRIPS, TILES)),
    )


def _entries(raw: bytes, order: str, big: bool):
    """(tag, values) of the fields that are wanted; of strips and tiles their number stands for the values."""
    (start,) = struct.unpack_from(order + ("Q" if big else "L"), raw, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), raw, start)
    size, head = (20, 8) if big else (12, 2)
    for number in range(min(count, MAX_ENTRIES)):
        at = start + head + number * size
        tag, kind = struct.unpack_from(order + "HH", raw, at)
        if tag not in _WANTED:
            continue
        (length,) = struct.unpack_from(order + ("Q" if big else "L"), raw, at + 4)
        if tag in (STRIPS, TILES):
            yield tag, [length]
            continue
        if kind not in _SIZES or not 0 < length <= 2**16:
            continue
        wanted = f"{order}{min(length, 8)}{_SIZES[kind]}"
        place = at + (12 if big else 8)
        if struct.calcsize(f"{order}{length}{_SIZES[kind]}") > (8 if big else 4):
            (place,) = struct.unpack_from(order + ("Q" if big else "L"), raw, place)
        yield tag, list(struct.unpack_from(wanted, raw, place))
