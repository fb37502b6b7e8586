"""ICC profiles written by hand after ICC.1:2001-04: a wide-gamut screen, a grey scale, a press. For tests of colour."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import product

import numpy as np

CYAN = (55, -37, -50)
"""Lab of the cyan ink of `press()`, about that of an offset press."""
P3_TO_D50 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
"""Display P3 to XYZ of D50, as its published profile has it."""


def display_p3() -> bytes:
    """Display P3, with the transfer curve of sRGB as a table."""
    encoded = np.linspace(0, 1, 1024)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    curve = b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *np.rint(linear * 65535).astype(int).tolist())
    tags = {b"%cTRC" % c: curve for c in b"rgb"}
    tags |= {b"%cXYZ" % c: _xyz(P3_TO_D50[:, i]) for i, c in enumerate(b"rgb")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey(gamma: float) -> bytes:
    """Grey of the given gamma; 1 means that numbers are amounts of light."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, int(gamma * 256))})


def press() -> bytes:
    """Four inks on white paper: the colours of all 16 full overprints as a table, straight lines between them."""
    table = [byte for inks in product((0, 1), repeat=4) for byte in _lab_bytes(*inks)]
    straight = bytes(range(256))
    unit = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + straight * 4 + bytes(table) + straight * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


def _lab_bytes(c: int, m: int, y: int, k: int) -> tuple[int, int, int]:
    light, a, b = (100 * (1 - 0.5 * m) * (1 - 0.1 * y) * (1 - 0.45 * c), 0, 0)
    if (c, m, y, k) == (1, 0, 0, 0):
        light, a, b = CYAN
    return round((0 if k else light) * 2.55), (0 if k else a) + 128, (0 if k else b) + 128


def _profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    text = b"made for a test\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(8 + 3 + 67),
        b"cprt": b"text" + bytes(4) + b"CC0\0",
        b"wtpt": _xyz((0.9642, 1.0, 0.8249)),
        **tags,
    }
    start = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        directory += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"test", 0x02400000, kind, space, connection)
    head += (
        struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp")
        + bytes(28)
        + struct.pack(">3i", *_fixed((0.9642, 1, 0.8249)))
    )
    return head.ljust(128, b"\0") + directory + body


def _xyz(values: np.ndarray | tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *_fixed(values))


def _fixed(values: np.ndarray | tuple[float, ...]) -> list[int]:
    return [round(float(value) * 65536) for value in values]
