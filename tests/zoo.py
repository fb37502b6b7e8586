"""Odd picture files for tests: one function a file, each writes below a folder and returns the path."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def halves(width: int = 64, height: int = 32) -> Image.Image:
    """Red left, blue right: shows a swapped axis, a swapped channel and a missing rotation."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, : width // 2, 0] = 255
    rgb[:, width // 2 :, 2] = 255
    return Image.fromarray(rgb)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def good_jpeg(folder: Path) -> Path:
    return _write(folder / "good.jpg", encoded(halves(), "JPEG", quality=95, subsampling=0))


def good_png(folder: Path) -> Path:
    return _write(folder / "good.png", encoded(halves(), "PNG"))


def good_webp(folder: Path) -> Path:
    return _write(folder / "good.webp", encoded(halves(), "WEBP", lossless=True))


def chinese_name(folder: Path) -> Path:
    return _write(folder / "红色 蓝色.png", encoded(halves(), "PNG"))


def spaced_name(folder: Path) -> Path:
    return _write(folder / "a name with spaces.png", encoded(halves(), "PNG"))


def truncated_jpeg(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return _write(folder / "truncated.jpg", encoded(Image.fromarray(noise), "JPEG")[:-2000])


def empty_file(folder: Path) -> Path:
    return _write(folder / "empty.jpg", b"")


def text_as_jpeg(folder: Path) -> Path:
    return _write(folder / "text.jpg", b"<html>404 not found</html>")


def huge_header(folder: Path, side: int = 60_000) -> Path:
    """A PNG of a few bytes whose header announces `side` x `side` RGB pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return _write(folder / "huge.png", b"\x89PNG\r\n\x1a\n" + body)


def broken_link(folder: Path) -> Path:
    path = folder / "broken_link.jpg"
    path.symlink_to(folder / "nowhere.jpg")
    return path


def cmyk_jpeg(folder: Path) -> Path:
    """Left: magenta and yellow ink (red); right: cyan and magenta ink (blue)."""
    ink = np.zeros((32, 64, 4), np.uint8)
    ink[..., 1] = 255
    ink[:, :32, 2] = 255
    ink[:, 32:, 0] = 255
    return _write(folder / "cmyk.jpg", encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=95, subsampling=0))


def rotated_jpeg(folder: Path) -> Path:
    """Stored lying, 32 wide and 64 high; EXIF orientation 6 makes it `halves()` again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = halves().transpose(Image.Transpose.ROTATE_90)
    return _write(folder / "rotated.jpg", encoded(lying, "JPEG", quality=95, subsampling=0, exif=exif))


def sixteen_bit_png(folder: Path) -> Path:
    """Grey ramp 0, 257, ... 65535 in 256 columns: column i is grey i in 8 bits."""
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (8, 1))
    return _write(folder / "sixteen.png", encoded(Image.fromarray(ramp), "PNG"))


def palette_with_alpha(folder: Path) -> Path:
    """Left red, right see-through (its palette entry is blue)."""
    image = Image.new("P", (64, 32), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (32, 0, 64, 32))
    return _write(folder / "palette.png", encoded(image, "PNG", transparency=b"\xff\x00"))


def grey_with_alpha(folder: Path) -> Path:
    """Left black, right black at half opacity: grey 127 on white."""
    la = np.zeros((32, 64, 2), np.uint8)
    la[:, :32, 1] = 255
    la[:, 32:, 1] = 128
    return _write(folder / "la.png", encoded(Image.fromarray(la, "LA"), "PNG"))


def animated_gif(folder: Path) -> Path:
    """Three frames: red, blue, white."""
    first, *rest = [Image.new("RGB", (16, 8), color) for color in (RED, BLUE, WHITE)]
    return _write(folder / "animated.gif", encoded(first, "GIF", save_all=True, append_images=rest, duration=50))


READABLE: tuple[Callable[[Path], Path], ...] = (
    good_jpeg,
    good_png,
    good_webp,
    chinese_name,
    spaced_name,
    cmyk_jpeg,
    rotated_jpeg,
    sixteen_bit_png,
    palette_with_alpha,
    grey_with_alpha,
    animated_gif,
)
UNREADABLE: tuple[Callable[[Path], Path], ...] = (
    truncated_jpeg,
    empty_file,
    text_as_jpeg,
    huge_header,
    broken_link,
)


def write_all(folder: Path) -> list[str]:
    """Every file of the zoo; returns their names."""
    return [write(folder).name for write in (*READABLE, *UNREADABLE)]


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
