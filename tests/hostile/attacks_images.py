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
import tifffile
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


def _header(raw: bytes) -> Callable[[Path], Outcome]:
    """Whether its header gets past, so that the work or memory that it announces would be spent next."""

    def strike(_: Path) -> Outcome:
        try:
            pixels.open_picture(raw)
        except pixels.PictureError as error:
            return Outcome(False, f"error row {type(error).__name__}: {error}")
        return Outcome(True, "opened")

    return strike


def _large_scans(side: int, scans: int) -> bytes:
    """A JPEG of a few hundred bytes that announces `side` x `side` pixels and holds so many scans."""
    raw = _encoded(Image.new("RGB", (16, 16), "red"), "JPEG", progressive=True)
    at, last = raw.index(b"\xff\xc2") + 5, raw.rindex(b"\xff\xda")
    raw = raw[:at] + struct.pack(">HH", side, side) + raw[at + 4 :]
    return raw[:-2] + raw[last:-2] * (scans - raw.count(b"\xff\xda")) + raw[-2:]


def _jpeg2000(width: int, height: int) -> bytes:
    """257 bytes that announce so many pixels."""
    raw = bytearray(_encoded(Image.new("RGB", (64, 64), "red"), "JPEG2000"))
    at = raw.index(b"ihdr") + 4
    raw[at : at + 8] = struct.pack(">II", height, width)
    at = raw.index(b"\xff\x51") + 6
    raw[at : at + 8] = raw[at + 16 : at + 24] = struct.pack(">II", width, height)
    return bytes(raw)


def _strips(count: int, tag: int) -> bytes:
    """A grey TIFF of one column whose strips (273) or tiles (324) are so many, all of them the same byte."""
    sizes = (278, 4, 1, 1) if tag == 273 else (322, 3, 1, 16)
    entries = [
        (256, 3, 1, 1 if tag == 273 else 16), (257, 4, 1, count if tag == 273 else 16 * count), (258, 3, 1, 8),
        (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, count, 600), (277, 3, 1, 1), sizes, (279, 4, count, 600 + 4 * count),
    ]  # fmt: skip
    if tag == 324:
        entries = [e for e in entries if e[0] not in (273, 279)]
        entries += [(323, 3, 1, 16), (324, 4, count, 600), (325, 4, count, 600 + 4 * count)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<I", 8) + table + bytes(4)
    return head.ljust(600, b"\x80") + struct.pack("<I", 300) * count + struct.pack("<I", 1) * count


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
    "DIB": _encoded(Image.new("RGB", (4, 4)), "DIB"),
    "QOI": b"qoif" + struct.pack(">IIBB", 4, 4, 3, 0) + bytes(64),
    "SUN": struct.pack(">8I", 0x59A66A95, 4, 4, 24, 48, 1, 0, 0) + bytes(48),
    "FLI": struct.pack("<IHHHHHHI", 200, 0xAF12, 1, 4, 4, 8, 3, 70) + bytes(200),
    "FITS": b"".join(
        line.ljust(80)
        for line in (b"SIMPLE  = T", b"BITPIX  = 8", b"NAXIS   = 2", b"NAXIS1  = 4", b"NAXIS2  = 4", b"END")
    ).ljust(2880)
    + bytes(2880),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 9, 9, 72) + bytes(6) + b"\x01\0\t\0" + bytes(80),
    "XPM": b'/* XPM */\nstatic char * x[] = {\n"4 4 1 1",\n"  c #000000",\n"    ",\n"    ",\n"    ",\n"    "};\n',
}


def _guessed(make: Callable[[], bytes]) -> Callable[[Path], Outcome]:
    """Samples of no known range must be refused; without the guard they come out as some picture."""
    return lambda _: _decoded(make(), lambda rgb: rgb is not None)


@contextlib.contextmanager
def _any_samples() -> Iterator[None]:
    with patched(pixels, "_check_tiff", lambda fields: None), patched(pixels, "_check_range", lambda image: None):
        yield


def _written(values: np.ndarray, **options: object) -> Callable[[], bytes]:
    """By another writer than Pillow."""

    def make() -> bytes:
        sink = io.BytesIO()
        tifffile.imwrite(sink, values, **options)
        return sink.getvalue()

    return make


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
            f"{scans} scans of {side} x {side} pixels in a JPEG of {len(_large_scans(side, scans)):,} bytes",
            "PictureTooLarge: its scans have more than",
            _header(_large_scans(side, scans)),
            lambda: patched(pixels, "MAX_WORK", 2**60),
        )
        for side, scans in ((11_000, 20), (8_000, 60), (5_000, 100))
    ),
    *(
        Attack(
            "pixels",
            f"a JPEG 2000 of 257 bytes and {width} x {height} pixels",
            "PictureTooLarge: it announces more than 67,108,864 pixels",
            _header(_jpeg2000(width, height)),
            lambda: patched(pixels, "COSTLY", {}),
        )
        for width, height in ((9_000, 9_000), (60_000, 2_000), (1_200, 60_000))
    ),
    *(
        Attack(
            "pixels",
            f"a TIFF of {count:,} {name}",
            "PictureTooLarge: it has more than 100,000 strips or tiles",
            _header(_strips(count, tag)),
            lambda: patched(pixels, "MAX_PIECES", 10**9),
        )
        for count, tag, name in ((100_001, 273, "strips"), (150_000, 273, "strips"), (110_000, 324, "tiles"))
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
    *(
        Attack(
            "samples", f"a TIFF of {name} that would come out black or wrapped", outcome, _guessed(make), _any_samples
        )
        for name, outcome, make in (
            ("16-bit signed integers", "16-bit signed", _written((RAMP * 30000).astype(np.int16))),
            ("8-bit signed integers", "8-bit signed", _written((RAMP * 127).astype(np.int8))),
            ("32-bit unsigned integers", "32-bit unsigned", _written((RAMP * 4e9).astype(np.uint32))),
            ("packed 32-bit floats", "32-bit floats", _written(RAMP.astype(np.float32), compression="zlib")),
            (
                "16-bit colours in planes",
                "its 16-bit colours lie in planes",
                _written(np.stack([(RAMP * 65535).astype(np.uint16)] * 3), photometric="rgb", planarconfig="separate"),
            ),
        )
    ),
]
