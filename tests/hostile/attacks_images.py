"""Images that cost more than a row: bombs of pixels, scans, profiles and texts, and files that are programs."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from hostile.attack import Attack, Outcome, patched
from nextloom import colour, pixels

SECRET = "the secret of the file"


def _decoded(raw: bytes, effect: Callable[[np.ndarray | None], bool]) -> Outcome:
    """Decodes as a worker would; `effect` says from the pixels, or from None, whether the attack worked."""
    try:
        rgb = pixels.decode(raw)
    except pixels.PictureError as error:
        return Outcome(effect(None), f"error row {type(error).__name__}: {error}")
    return Outcome(effect(rgb), "read")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _pixels(width: int, height: int) -> Callable[[Path], Outcome]:
    """Whether its header gets past, so that memory for all of its pixels would be taken next."""

    def strike(_: Path) -> Outcome:
        try:
            image = pixels.open_picture(_png(width, height))
        except pixels.PictureError as error:
            return Outcome(False, f"error row {type(error).__name__}: {error}")
        return Outcome(image.width * image.height > 2**27, "opened")

    return strike


def _scans(count: int) -> Callable[[Path], Outcome]:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    raw = _encoded(Image.fromarray(noise), "JPEG", progressive=True)
    last = raw.rindex(b"\xff\xda")
    many = raw[:-2] + raw[last:-2] * count + raw[-2:]

    def strike(_: Path) -> Outcome:
        pixels.decode(raw)
        began = time.process_time()
        pixels.decode(raw)
        plain = time.process_time() - began
        began = time.process_time()
        result = _decoded(many, lambda rgb: rgb is not None)
        spent = time.process_time() - began
        return Outcome(result.succeeded and spent > 3 * plain, result.what)

    return strike


def _profile(kind: str) -> Callable[[Path], Outcome]:
    profile = np.random.default_rng(0).bytes(9 * 2**20)

    def strike(_: Path) -> Outcome:
        raw = _encoded(Image.new("RGB", (8, 8), "red"), kind, icc_profile=profile)
        return _decoded(raw, lambda rgb: rgb is not None)

    return strike


def _profiles_in_the_cache(_: Path) -> Outcome:
    """Many files, each with a profile of its own: what is remembered may not grow with their number."""
    colour._transforms.clear()
    tracemalloc.start()
    for number in range(40):
        profile = bytes(400_000) + struct.pack(">I", number)
        pixels.decode(_encoded(Image.new("RGB", (4, 4), "red"), "TIFF", icc_profile=profile))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return Outcome(held > 8_000_000, "the cache holds digests and few transforms")


class _EveryProfile(dict):
    """A cache that keeps the profiles themselves, and all of them."""

    def __contains__(self, key: object) -> bool:
        return False

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__((key, bytes(400_004)), value)

    def __len__(self) -> int:
        return 0


def _text_chunk(compressed: bool) -> Callable[[Path], Outcome]:
    def strike(_: Path) -> Outcome:
        info = PngImagePlugin.PngInfo()
        (info.add_text if compressed else info.add_itxt)("c", "x" * 40_000_000, zip=True)
        raw = _encoded(Image.new("RGB", (8, 8)), "PNG", pnginfo=info)
        return _decoded(raw, lambda rgb: rgb is not None)

    return strike


def _says_content(raw: bytes) -> Callable[[Path], Outcome]:
    def strike(_: Path) -> Outcome:
        try:
            pixels.decode(raw)
        except pixels.PictureError as error:
            return Outcome(SECRET in f"{error} {error.detail}", f"error row {type(error).__name__}: {error}")
        return Outcome(True, "read")

    return strike


def _telling(raw: bytes) -> str:
    return f"a file that begins with {raw[:64]!r}"


def _opened(raw: bytes, kind: str) -> Callable[[Path], Outcome]:
    """A format whose reader starts a program, fetches or is not kept up: it may not be opened at all."""

    def strike(_: Path) -> Outcome:
        try:
            image = pixels.open_picture(raw)
        except pixels.PictureError as error:
            return Outcome(False, f"error row {type(error).__name__}: {error}")
        return Outcome(image.format == kind, "opened")

    return strike


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(secret) run\n"
OTHERS = {
    "EPS": EPS,
    "PSD": _encoded(Image.new("RGB", (4, 4)), "PNG")[:0]
    + b"8BPS\0\1"
    + bytes(6)
    + struct.pack(">HIIHH", 3, 4, 4, 8, 3)
    + bytes(14)
    + bytes(48),
    "PCX": _encoded(Image.new("RGB", (4, 4)), "PCX"),
    "SGI": _encoded(Image.new("RGB", (4, 4)), "SGI"),
    "TGA": _encoded(Image.new("RGB", (4, 4)), "TGA"),
    "ICO": _encoded(Image.new("RGB", (16, 16)), "ICO"),
    "ICNS": _encoded(Image.new("RGB", (16, 16)), "ICNS"),
    "DDS": _encoded(Image.new("RGB", (4, 4)), "DDS"),
    "IM": _encoded(Image.new("RGB", (4, 4)), "IM"),
    "MSP": _encoded(Image.new("1", (8, 8)), "MSP"),
    "SPIDER": _encoded(Image.new("F", (8, 8)), "SPIDER"),
    "XBM": _encoded(Image.new("1", (8, 8)), "XBM"),
}


def _guessed(make: Callable[[], bytes]) -> Callable[[Path], Outcome]:
    """Samples of no known range must be refused; without the guard they come out as some picture."""
    return lambda _: _decoded(make(), lambda rgb: rgb is not None)


@contextlib.contextmanager
def _any_samples() -> Iterator[None]:
    with patched(pixels, "_check_tiff", lambda fields: None), patched(pixels, "_check_range", lambda image: None):
        yield


def _tiff(values: np.ndarray) -> Callable[[], bytes]:
    return lambda: _encoded(Image.fromarray(values), "TIFF")


RAMP = np.linspace(0, 1, 64)[None, :].repeat(4, 0)
EVERYTHING = tuple(kind for kind in ("JPEG", "PNG", "TIFF", "PPM", *OTHERS) if kind)

ATTACKS = [
    *(
        Attack(
            "pixels",
            f"a {len(_png(w, h)):,}-byte PNG of {w} x {h}",
            "PictureTooLarge: it announces more than",
            _pixels(w, h),
            lambda: patched(pixels, "MAX_PIXELS", 2**40),
        )
        for w, h in ((11_586, 11_586), (134_217_736, 1), (24, 6_000_000))
    ),
    *(
        Attack(
            "pixels",
            f"a progressive JPEG of {count} more scans",
            "PictureTooLarge: it has more than 100 scans",
            _scans(count),
            lambda: patched(pixels, "MAX_SCANS", 10**9),
        )
        for count in (100, 400, 2_000)
    ),
    *(
        Attack(
            "pixels",
            f"a colour profile of 9 MB in a {kind}",
            "PictureTooLarge: its colour profile",
            _profile(kind),
            lambda: patched(pixels, "MAX_PROFILE", 2**40),
        )
        for kind in ("TIFF", "WEBP")
    ),
    Attack(
        "pixels",
        "40 files with profiles of 400 kB each",
        "digests",
        _profiles_in_the_cache,
        lambda: patched(colour, "_transforms", _EveryProfile()),
    ),
    *(
        Attack(
            "pixels",
            f"a {kind} chunk that unpacks to 40 MB",
            "BrokenPicture",
            _text_chunk(compressed),
            lambda: patched(PngImagePlugin, "MAX_TEXT_CHUNK", 2**40),
        )
        for kind, compressed in (("zTXt", True), ("iTXt", False))
    ),
    *(
        Attack(
            "formats",
            f"a file of format {kind}, whose reader is not meant for strangers",
            "NotAPicture",
            _opened(raw, kind),
            lambda: patched(pixels, "FORMATS", EVERYTHING),
        )
        for kind, raw in OTHERS.items()
    ),
    *(
        Attack(
            "contents",
            f"{name} in place of an image: its text in the error",
            "NotAPicture",
            _says_content(raw),
            lambda raw=raw: patched(pixels, "kind_of", _telling),
        )
        for name, raw in (
            ("a password file", f"root:{SECRET}:0:0".encode()),
            ("JSON", b'{"key": "' + SECRET.encode() + b'"}'),
            ("a private key", b"-----BEGIN KEY-----\n" + SECRET.encode()),
            ("an environment", b"PATH=/bin\0TOKEN=" + SECRET.encode()),
            ("HTML", b"<html>" + SECRET.encode()),
        )
    ),
    *(
        Attack(
            "samples",
            f"a TIFF of {name} that would come out black or wrapped",
            "PictureError: its samples are",
            _guessed(_tiff(values)),
            _any_samples,
        )
        for name, values in (
            ("32-bit integers", (RAMP * 200).astype(np.int32)),
            ("large 32-bit integers", (RAMP * 1e9).astype(np.int32)),
            ("floats", RAMP.astype(np.float32)),
        )
    ),
]
