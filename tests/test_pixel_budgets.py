"""What an image may cost: limits that a header is held to, and what must not be taken for more than it is."""

import io
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import zoo
from nextloom import jpeg, pixels

NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
SCAN = b"\xff\xda"

PEAK = """
import sys
from nextloom import pixels

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

def measured(raw):
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = peak()
    rgb = pixels.decode(raw)
    return (peak() - before) / (rgb.shape[0] * rgb.shape[1])

files = [open(name, "rb").read() for name in sys.argv[1:]]
for raw in (files[0], *files):
    print(measured(raw))
"""


def test_memory_per_pixel(tmp_path):
    """Before: 14 bytes a pixel of any JPEG or PNG, 19 of 16-bit grey, so 1.9 to 2.6 GB at the limit of pixels."""
    side = 2048
    rgb = Image.fromarray(np.asarray(NOISE)[:32, :32]).resize((side, side), 0)
    rgba = rgb.copy()
    rgba.putalpha(rgb.convert("L"))
    wide = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "grey16.png": zoo.encoded(wide, "PNG", compress_level=1),
        "rgba.png": zoo.encoded(rgba, "PNG", compress_level=1),
        "turned.jpg": zoo.encoded(rgb, "JPEG", exif=turned),
        "plain.tif": zoo.encoded(rgb, "TIFF"),
    }
    for name, raw in images.items():
        (tmp_path / name).write_bytes(raw)
    files = [str(tmp_path / name) for name in images]
    done = subprocess.run([sys.executable, "-c", PEAK, *files], capture_output=True, text=True, check=True)
    _, *bytes_a_pixel = map(float, done.stdout.split())  # the first has the modules in it
    assert len(bytes_a_pixel) == len(images) and max(bytes_a_pixel) <= 12, bytes_a_pixel
    assert pixels.MAX_PIXELS * 10.5 < 1.5e9, "what most formats take at most, measured (docs/log.md)"


@pytest.mark.parametrize("kind", ["WEBP", "JPEG2000"])
def test_formats_whose_decoders_take_more_have_a_lower_limit(kind, monkeypatch):
    raw = zoo.encoded(NOISE, kind)
    assert pixels.decode(raw).shape == (64, 64, 3)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 64 * 64 + 1)
    assert pixels.decode(zoo.encoded(NOISE, "PNG")).shape == (64, 64, 3)
    with pytest.raises(pixels.PictureTooLarge, match=f"more than 2,048 pixels, the limit of {kind}") as error:
        pixels.decode(raw)
    assert error.value.detail == "64 x 64, 4096 pixels"


# ---- scans of a JPEG


def test_what_lies_in_segments_or_behind_the_end_is_no_scan():
    """A thumbnail, a profile, or the film of a motion photo. Before: refused, since every 0xFFDA counted."""
    raw = zoo.encoded(NOISE, "JPEG", restart_marker_blocks=1)
    segment = b"\xff\xe5" + struct.pack(">H", 2 + 200 * 2) + SCAN * 200
    film = b"\0\0\0\x18ftypmp42" + SCAN * 500
    assert (pixels.decode(raw[:2] + segment + raw[2:] + film) == pixels.decode(raw)).all()
    assert jpeg.scans(raw[:2] + segment + raw[2:] + film, 100) == 1


@pytest.mark.parametrize("quality", [1, 50, 100])
def test_scans_are_counted_as_the_encoder_wrote_them(quality):
    progressive = zoo.encoded(NOISE, "JPEG", progressive=True, quality=quality)
    assert jpeg.scans(progressive, 100) == progressive.count(SCAN) > 2
    assert jpeg.scans(progressive, 2) == 3, "one more than asked for, and no further"
    assert jpeg.scans(zoo.encoded(NOISE, "JPEG", quality=quality), 100) == 1
    assert jpeg.scans(progressive[:40], 100) == 0


def test_scans_times_pixels_are_bounded(monkeypatch):
    progressive = zoo.encoded(NOISE, "JPEG", progressive=True)
    scans = jpeg.scans(progressive, 100)
    monkeypatch.setattr(pixels, "MAX_WORK", 64 * 64 * scans)
    assert pixels.decode(progressive).shape == (64, 64, 3)
    monkeypatch.setattr(pixels, "MAX_WORK", 64 * 64 * scans - 1)
    with pytest.raises(pixels.PictureTooLarge, match="its scans have more than") as error:
        pixels.decode(progressive)
    assert error.value.detail == f"{scans} scans, 4096 pixels"


# ---- frames, strips, samples


@pytest.mark.parametrize("make", [zoo.animated_gif, zoo.animated_webp, zoo.animated_png])
def test_frames_times_pixels_are_bounded(tmp_path, make, monkeypatch):
    raw = make(tmp_path).read_bytes()
    monkeypatch.setattr(pixels, "MAX_WORK", 2 * 16 * 8)
    assert (pixels.decode(raw, 1) == zoo.BLUE).all()
    with pytest.raises(pixels.PictureTooLarge, match="its frames up to this one"):
        pixels.decode(raw, 2)


def strips(count: int) -> bytes:
    """A grey TIFF of one column, each pixel in a strip of its own, all in the same byte."""
    at = 200
    entries = [
        (256, 3, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, count, at),
        (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, count, at + 4 * count),
    ]  # fmt: skip
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    head = b"II*\0" + struct.pack("<I", 8) + table
    return head.ljust(at, b"\x80") + struct.pack("<I", 190) * count + struct.pack("<I", 1) * count


def test_strips_are_bounded():
    """Before: two million of them, 16 MB of file, took 650 MB and 12 s."""
    assert (pixels.decode(strips(1000)) == 0x80).all()
    raw = strips(2_000_000)
    began = time.process_time()
    with pytest.raises(pixels.PictureTooLarge, match="more than 100,000 strips or tiles") as error:
        pixels.decode(raw)
    assert time.process_time() - began < 0.5 and error.value.detail == "2000000"


@pytest.mark.parametrize("white", [1, 100, 255, 1023, 65535])
@pytest.mark.parametrize("kind", ["P5", "P6"])
def test_netpbm_of_any_white_is_the_same_ramp_and_fast(kind, white):
    """Before: 1.7 s a megapixel where white is not 255."""
    ramp = np.tile(np.linspace(0, 1, 1000), (300, 1))
    values = np.round(ramp * white)
    stored = values if kind == "P5" else values[..., None].repeat(3, -1)
    raw = f"{kind}\n# a comment\n1000 300\n{white}\n".encode() + stored.astype(">u2" if white > 255 else "u1").tobytes()
    began = time.process_time()
    rgb = pixels.decode(raw)
    assert time.process_time() - began < 0.25
    assert np.abs(rgb - np.round(values / white * 255)[..., None]).max() <= 1
    with pytest.raises(pixels.BrokenPicture, match="data of this PPM are damaged or cut off"):
        pixels.decode(raw[:-1])


def test_bands_are_what_the_whole_would_be(monkeypatch):
    """The same pixels whether they are converted at once or line by line: alpha, palettes, 16 bits, profiles."""
    rng = np.random.default_rng(2)
    grey = Image.fromarray(rng.integers(0, 65536, (40, 30)).astype(np.uint16))
    rgba = Image.fromarray(rng.integers(0, 256, (40, 30, 4), np.uint8), "RGBA")
    palette = Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).quantize(32)
    exif = Image.Exif()
    exif[0x0112] = 7
    files = [
        zoo.encoded(grey, "PNG", transparency=int(np.asarray(grey)[0, 0])),
        zoo.encoded(grey, "TIFF"),
        zoo.encoded(rgba, "PNG", exif=exif),
        zoo.encoded(palette, "PNG", transparency=3),
        zoo.encoded(palette, "GIF", transparency=3),
        zoo.encoded(NOISE.convert("CMYK"), "JPEG"),
        zoo.encoded(NOISE.convert("1"), "PNG"),
    ]
    whole = [pixels.decode(raw) for raw in files]
    monkeypatch.setattr(pixels, "BAND", 64)
    for raw, expected in zip(files, whole, strict=True):
        rgb = pixels.decode(raw)
        assert np.array_equal(rgb, expected) and not rgb.flags.writeable and rgb.flags.c_contiguous
        assert Image.open(io.BytesIO(raw)).size in (rgb.shape[1::-1], rgb.shape[:2])
