"""Odd picture files for tests: one function a file, each writes below a folder and returns the path."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import icc

DATA = Path(__file__).parent / "data"
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
P3_RED, P3_GREEN, P3_BLUE = (234, 51, 35), (117, 251, 76), (0, 0, 245)
"""Primaries of sRGB as Display P3 spells them: .9175 .2003 .1386, .4584 .9853 .2983, 0 0 .9596 (CSS Color 4)."""


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


def raw_png(
    width: int, height: int, lines: bytes, *, depth: int = 8, interlaced: bool = False, more: bytes = b""
) -> bytes:
    """A colour PNG out of its filtered lines; `more`: chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, int(interlaced))
    chunks = png_chunk(b"IHDR", header) + more + png_chunk(b"IDAT", zlib.compress(lines)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered(rgb: np.ndarray) -> bytes:
    """Lines of a PNG, each after filter type 0."""
    return b"".join(b"\0" + line.tobytes() for line in rgb)


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
    return _write(folder / "huge.png", raw_png(side, side, b"\0" * 1000))


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
    return _write(folder / "animated.gif", _animation("GIF"))


def animated_webp(folder: Path) -> Path:
    return _write(folder / "animated.webp", _animation("WEBP", lossless=True))


def animated_png(folder: Path) -> Path:
    return _write(folder / "animated.png", _animation("PNG"))


def good_bmp(folder: Path) -> Path:
    return _write(folder / "good.bmp", encoded(halves(), "BMP"))


def good_avif(folder: Path) -> Path:
    return _write(folder / "good.avif", encoded(halves(), "AVIF", quality=100, subsampling="4:4:4"))


def good_heic(folder: Path) -> Path:
    return _write(folder / "good.heic", (DATA / "halves.heic").read_bytes())


def rotated_heic(folder: Path) -> Path:
    """Stored lying, with the turn in an `irot` box, as phones do."""
    return _write(folder / "rotated.heic", (DATA / "rotated.heic").read_bytes())


def transparent_heic(folder: Path) -> Path:
    """Left red, right see-through."""
    return _write(folder / "transparent.heic", (DATA / "transparent.heic").read_bytes())


def progressive_jpeg(folder: Path) -> Path:
    return _write(folder / "progressive.jpg", encoded(halves(), "JPEG", quality=95, subsampling=0, progressive=True))


def arithmetic_jpeg(folder: Path) -> Path:
    """`good_jpeg` with arithmetic instead of Huffman coding, by libjpeg-turbo's `jpegtran -arithmetic`."""
    return _write(folder / "arithmetic.jpg", (DATA / "arithmetic.jpg").read_bytes())


def interlaced_png(folder: Path) -> Path:
    """Adam7: seven passes, each a coarser grid of the picture."""
    rgb = np.asarray(halves())
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    lines = b"".join(filtered(rgb[y::dy, x::dx]) for y, dy, x, dx in passes)
    return _write(folder / "interlaced.png", raw_png(64, 32, lines, interlaced=True))


def sixteen_bit_colour_png(folder: Path) -> Path:
    """Column i is (i, 255 - i, 128) in 8 bits, each with a low byte of 0xF0."""
    ramp = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 128)], -1).astype(np.uint16) * 256 + 0xF0
    lines = filtered(np.tile(ramp.astype(">u2"), (8, 1, 1)))
    return _write(folder / "sixteen_colour.png", raw_png(256, 8, lines, depth=16))


def one_bit_png(folder: Path) -> Path:
    """Black left, white right, one bit a pixel."""
    return _write(folder / "one_bit.png", encoded(_black_and_white(), "PNG"))


def one_bit_tiff(folder: Path) -> Path:
    """The same as a fax."""
    return _write(folder / "fax.tif", encoded(_black_and_white(), "TIFF", compression="group4"))


def multi_page_tiff(folder: Path) -> Path:
    """`halves()` and a white page."""
    page = Image.new("RGB", (64, 32), WHITE)
    return _write(folder / "pages.tif", encoded(halves(), "TIFF", save_all=True, append_images=[page]))


def multi_picture_jpeg(folder: Path) -> Path:
    """An MPO, as phones and stereo cameras write: `halves()` and a white picture."""
    more = Image.new("RGB", (64, 32), WHITE)
    options = {"quality": 95, "subsampling": 0}
    return _write(folder / "mpo.jpg", encoded(halves(), "MPO", save_all=True, append_images=[more], **options))


def display_p3_png(folder: Path) -> Path:
    """Pure sRGB red left and blue right, as Display P3 spells them."""
    rgb = np.zeros((32, 64, 3), np.uint8)
    rgb[:, :32], rgb[:, 32:] = P3_RED, P3_BLUE
    return _write(folder / "p3.png", encoded(Image.fromarray(rgb), "PNG", icc_profile=icc.display_p3()))


def cmyk_icc_jpeg(folder: Path) -> Path:
    """Left: cyan ink, which the profile calls Lab `icc.CYAN`. Right: bare paper, white."""
    ink = np.zeros((32, 64, 4), np.uint8)
    ink[:, :32, 0] = 255
    options = {"quality": 95, "subsampling": 0, "icc_profile": icc.press()}
    return _write(folder / "cmyk_icc.jpg", encoded(Image.fromarray(ink, "CMYK"), "JPEG", **options))


def broken_icc_png(folder: Path) -> Path:
    return _write(folder / "broken_icc.png", encoded(halves(), "PNG", icc_profile=b"no profile" * 30))


def foreign_icc_png(folder: Path) -> Path:
    """A colour picture with a profile about inks."""
    return _write(folder / "foreign_icc.png", encoded(halves(), "PNG", icc_profile=icc.press()))


def huge_metadata_jpeg(folder: Path) -> Path:
    """13 MB of comments before the pixels."""
    raw = encoded(halves(), "JPEG", quality=95, subsampling=0)
    comment = b"\xff\xfe" + struct.pack(">H", 65535) + bytes(65533)
    return _write(folder / "metadata.jpg", raw[:2] + comment * 200 + raw[2:])


def trailing_garbage_jpeg(folder: Path) -> Path:
    raw = encoded(halves(), "JPEG", quality=95, subsampling=0)
    return _write(folder / "trailing.jpg", raw + b"<!-- served by a proxy -->" * 100)


def longest_name(folder: Path) -> Path:
    """A name of 255 bytes, 85 of its letters Chinese."""
    return _write(folder / ("红" * 83 + "ab.png"), encoded(halves(), "PNG"))


def svg_as_png(folder: Path) -> Path:
    return _write(folder / "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')


def zero_width_png(folder: Path) -> Path:
    return _write(folder / "zero.png", raw_png(0, 32, b"\0" * 32))


def zero_height_jpeg(folder: Path) -> Path:
    """The number of lines is 0, which a scanner may write and promise for later."""
    raw = bytearray(encoded(halves(), "JPEG"))
    at = raw.index(b"\xff\xc0") + 5
    raw[at : at + 2] = b"\0\0"
    return _write(folder / "zero.jpg", bytes(raw))


def wrong_crc_png(folder: Path) -> Path:
    """One bit of the pixels' checksum is wrong; the pixels are right."""
    raw = bytearray(raw_png(64, 32, filtered(np.asarray(halves()))))
    raw[-13] ^= 1  # before the 12 bytes of IEND
    return _write(folder / "wrong_crc.png", bytes(raw))


def text_bomb_png(folder: Path) -> Path:
    """A comment of a few kB that unpacks to 20 MB."""
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000), 9))
    return _write(folder / "text_bomb.png", raw_png(64, 32, filtered(np.asarray(halves())), more=bomb))


def pixel_bomb_png(folder: Path) -> Path:
    """Announces 64 x 32 pixels, unpacks to 20 MB."""
    return _write(folder / "pixel_bomb.png", raw_png(64, 32, filtered(np.asarray(halves())) + bytes(20_000_000)))


def float_tiff(folder: Path) -> Path:
    floats = Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    return _write(folder / "float.tif", encoded(floats, "TIFF"))


def _animation(kind: str, **options) -> bytes:
    first, *rest = [Image.new("RGB", (16, 8), color) for color in (RED, BLUE, WHITE)]
    return encoded(first, kind, save_all=True, append_images=rest, duration=50, **options)


def _black_and_white() -> Image.Image:
    image = Image.new("1", (64, 32), 0)
    image.paste(1, (32, 0, 64, 32))
    return image


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
    animated_webp,
    animated_png,
    good_bmp,
    good_avif,
    good_heic,
    rotated_heic,
    transparent_heic,
    progressive_jpeg,
    arithmetic_jpeg,
    interlaced_png,
    sixteen_bit_colour_png,
    one_bit_png,
    one_bit_tiff,
    multi_page_tiff,
    multi_picture_jpeg,
    display_p3_png,
    cmyk_icc_jpeg,
    broken_icc_png,
    foreign_icc_png,
    huge_metadata_jpeg,
    trailing_garbage_jpeg,
    longest_name,
    wrong_crc_png,
    pixel_bomb_png,
)
UNREADABLE: tuple[Callable[[Path], Path], ...] = (
    truncated_jpeg,
    empty_file,
    text_as_jpeg,
    huge_header,
    broken_link,
    svg_as_png,
    zero_width_png,
    zero_height_jpeg,
    text_bomb_png,
    float_tiff,
)


def write_all(folder: Path) -> list[str]:
    """Every file of the zoo; returns their names."""
    return [write(folder).name for write in (*READABLE, *UNREADABLE)]


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
