"""Pixels: each odd file is read as docs/pictures.md says, or refused with a clear reason."""

import io
import os
import re
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

import icc
import zoo
from nextloom import pixels

HALVES = np.asarray(zoo.halves())


def read(make, folder, frame: int = 0) -> np.ndarray:
    return pixels.decode(make(folder).read_bytes(), frame)


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (zoo.good_png, 0),
        (zoo.good_webp, 0),
        (zoo.chinese_name, 0),
        (zoo.spaced_name, 0),
        (zoo.good_bmp, 0),
        (zoo.interlaced_png, 0),
        (zoo.multi_page_tiff, 0),
        (zoo.longest_name, 0),
        (zoo.wrong_crc_png, 0),
        (zoo.pixel_bomb_png, 0),
        (zoo.broken_icc_png, 0),
        (zoo.foreign_icc_png, 0),
        (zoo.display_p3_png, 2),
        (zoo.good_avif, 8),
        (zoo.good_heic, 8),
        (zoo.rotated_heic, 8),
        (zoo.good_jpeg, 8),
        (zoo.cmyk_jpeg, 8),
        (zoo.rotated_jpeg, 8),
        (zoo.progressive_jpeg, 8),
        (zoo.arithmetic_jpeg, 8),
        (zoo.multi_picture_jpeg, 8),
        (zoo.huge_metadata_jpeg, 8),
        (zoo.trailing_garbage_jpeg, 8),
    ],
)
def test_red_is_left_and_blue_is_right(tmp_path, make, tolerance):
    rgb = read(make, tmp_path)
    assert rgb.dtype == np.uint8 and rgb.shape == HALVES.shape
    assert np.abs(rgb.astype(int) - HALVES).max() <= tolerance


STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how an upright image is stored (all but 6 and 8 undo themselves)."""


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(orientation, kind):
    upright = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8))
    stored = upright.transpose(STORED[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (pixels.decode(zoo.encoded(stored, kind, exif=exif)) == np.asarray(upright)).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    rgb = read(zoo.sixteen_bit_png, tmp_path)
    assert (rgb == np.arange(256)[None, :, None]).all()
    ramp = np.arange(256)
    colour = read(zoo.sixteen_bit_colour_png, tmp_path)
    assert (colour == np.stack([ramp, 255 - ramp, np.full(256, 128)], -1)).all()


@pytest.mark.parametrize("make", [zoo.one_bit_png, zoo.one_bit_tiff])
def test_one_bit_is_black_and_white(tmp_path, make):
    rgb = read(make, tmp_path)
    assert (rgb[:, :32] == 0).all() and (rgb[:, 32:] == 255).all()


def test_the_files_are_what_they_say(tmp_path):
    kinds = {"progressive_jpeg": b"\xff\xc2", "arithmetic_jpeg": b"\xff\xc9", "good_jpeg": b"\xff\xc0"}
    for name, marker in kinds.items():
        assert marker in getattr(zoo, name)(tmp_path).read_bytes(), name
    assert b"irot" in zoo.rotated_heic(tmp_path).read_bytes()
    assert len(os.fsencode(zoo.longest_name(tmp_path).name)) == 255
    mpo = Image.open(zoo.multi_picture_jpeg(tmp_path))
    assert (mpo.format, mpo.n_frames) == ("MPO", 2)
    assert zoo.huge_metadata_jpeg(tmp_path).stat().st_size > 13_000_000
    assert zoo.longest_name(tmp_path).exists() and zoo.text_bomb_png(tmp_path).stat().st_size < 200_000


# ---- colour


def test_a_wide_gamut_is_brought_to_srgb():
    """Numbers published for the primaries; a profile that is ignored is off by up to 117."""
    for wide, srgb in ((zoo.P3_RED, (255, 0, 0)), (zoo.P3_GREEN, (0, 255, 0)), (zoo.P3_BLUE, (0, 0, 255))):
        raw = zoo.encoded(Image.new("RGB", (4, 4), wide), "PNG", icc_profile=icc.display_p3())
        assert np.abs(pixels.decode(raw)[0, 0].astype(int) - srgb).max() <= 4, wide
    for level in (0, 1, 77, 128, 254, 255):
        raw = zoo.encoded(Image.new("RGB", (4, 4), (level,) * 3), "PNG", icc_profile=icc.display_p3())
        assert np.abs(pixels.decode(raw)[0, 0].astype(int) - level).max() <= 1, "grey is grey on every screen"


def test_inks_have_the_colours_that_their_profile_says(tmp_path):
    rgb = read(zoo.cmyk_icc_jpeg, tmp_path)
    light, a, b = icc.CYAN
    fy = (light + 16) / 116
    xyz = [white * (f**3 if f > 6 / 29 else (f - 16 / 116) * 108 / 841) for white, f in zip(
        (0.9642, 1, 0.8249), (fy + a / 500, fy, fy - b / 200), strict=True)]  # fmt: skip
    d50 = [[3.1339, -1.6169, -0.4906], [-0.9785, 1.9160, 0.0333], [0.0720, -0.2290, 1.4057]]  # Lindbloom, Bradford
    linear = np.clip(np.array(d50) @ xyz, 0, 1)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(rgb[:, :32] - expected).max() <= 4
    assert np.abs(rgb[:, 40:].astype(int) - 255).max() <= 2


def test_grey_that_counts_light_becomes_grey_of_srgb():
    ramp = Image.fromarray(np.array([[0, 55, 128, 255]], np.uint8))
    rgb = pixels.decode(zoo.encoded(ramp, "PNG", icc_profile=icc.grey(1.0)))
    assert np.abs(rgb[0].astype(int) - np.array([0, 128, 188, 255])[:, None]).max() <= 1
    assert (pixels.decode(zoo.encoded(ramp, "PNG"))[0, :, 0] == [0, 55, 128, 255]).all()


def test_a_profile_of_srgb_leaves_every_pixel():
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (pixels.decode(zoo.encoded(noise, "PNG", icc_profile=profile)) == np.asarray(noise)).all()


def test_transparency_stays_under_a_profile():
    p3 = {"icc_profile": icc.display_p3()}
    rgba = Image.new("RGBA", (4, 4), (*zoo.P3_RED, 0))
    rgba.paste((*zoo.P3_RED, 255), (0, 0, 2, 4))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*zoo.P3_RED, *zoo.BLUE])
    palette.paste(1, (2, 0, 4, 4))
    keyed = Image.new("RGB", (4, 4), zoo.WHITE)
    keyed.paste(zoo.P3_RED, (0, 0, 2, 4))
    for raw in (
        zoo.encoded(rgba, "PNG", **p3),
        zoo.encoded(palette, "PNG", transparency=b"\xff\x00", **p3),
        zoo.encoded(keyed, "PNG", transparency=zoo.WHITE, **p3),
    ):
        rgb = pixels.decode(raw)
        assert np.abs(rgb[:, :2].astype(int) - zoo.RED).max() <= 2 and (rgb[:, 2:] == 255).all()
    grey = Image.fromarray(np.array([[[0, 255], [0, 0]]], np.uint8), "LA")
    assert pixels.decode(zoo.encoded(grey, "PNG", icc_profile=icc.grey(1.0))).tolist() == [[[0] * 3, [255] * 3]]


def test_transparency_lies_on_white(tmp_path):
    palette = read(zoo.palette_with_alpha, tmp_path)
    assert (palette[:, :32] == zoo.RED).all() and (palette[:, 32:] == 255).all()
    heic = read(zoo.transparent_heic, tmp_path)
    assert np.abs(heic[:, :30].astype(int) - zoo.RED).max() <= 8 and (heic[:, 34:] == 255).all()
    grey = read(zoo.grey_with_alpha, tmp_path)
    assert (grey[:, :32] == 0).all() and (abs(grey[:, 32:].astype(int) - 127) <= 1).all()


@pytest.mark.parametrize("make", [zoo.animated_gif, zoo.animated_webp, zoo.animated_png])
def test_frames_of_an_animation(tmp_path, make):
    raw = make(tmp_path).read_bytes()
    assert pixels.frame_count(raw) == 3
    for frame, color in enumerate((zoo.RED, zoo.BLUE, zoo.WHITE)):
        assert (pixels.decode(raw, frame) == color).all()
    with pytest.raises(pixels.BrokenPicture, match="there is no such frame"):
        pixels.decode(raw, 3)


def test_pages_are_not_frames():
    pages = [Image.new("RGB", (4, 4), color) for color in (zoo.RED, zoo.BLUE)]
    raw = zoo.encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert Image.open(io.BytesIO(raw)).n_frames == 2
    assert pixels.frame_count(raw) == 1
    assert (pixels.decode(raw) == zoo.RED).all()


@pytest.mark.parametrize(
    ("make", "kind", "message", "detail"),
    [
        (zoo.truncated_jpeg, pixels.BrokenPicture, "data of this JPEG are damaged or cut off", "truncated"),
        (zoo.empty_file, pixels.NotAPicture, "the file is empty", ""),
        (zoo.text_as_jpeg, pixels.NotAPicture, "HTML is not read; what is read: JPEG, PNG", ""),
        (zoo.huge_header, pixels.PictureTooLarge, "more than 134,217,728 pixels", "3600000000 pixels"),
        (zoo.svg_as_png, pixels.NotAPicture, "SVG is not read", ""),
        (zoo.zero_width_png, pixels.BrokenPicture, "header of this PNG is damaged", ""),
        (zoo.zero_height_jpeg, pixels.BrokenPicture, "header of this JPEG is damaged", ""),
        (zoo.text_bomb_png, pixels.BrokenPicture, "header of this PNG is damaged", "Decompressed data too large"),
        (zoo.float_tiff, pixels.PictureError, "32-bit floats, whose range is unknown", ""),
    ],
)
def test_what_cannot_be_read_says_why_and_says_it_again(tmp_path, make, kind, message, detail):
    raw = make(tmp_path).read_bytes()
    with pytest.raises(kind, match=message) as first:
        pixels.decode(raw)
    with pytest.raises(kind) as second:
        pixels.decode(bytes(bytearray(raw)))
    same = (str(first.value), first.value.detail)
    assert same == (str(second.value), second.value.detail), "an error row must not hold an address in memory"
    assert detail in (first.value.detail or "")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_just_over_the_limit_is_too_large(tmp_path):
    with pytest.raises(pixels.PictureTooLarge, match="134,217,728 pixels") as error:
        pixels.open_picture(zoo.huge_header(tmp_path, 11_586).read_bytes())
    assert error.value.detail == "11586 x 11586, 134235396 pixels"
    assert pixels.open_picture(zoo.huge_header(tmp_path, 11_585).read_bytes()).size == (11_585, 11_585)


def test_scans_and_profiles_are_bounded():
    """A progressive JPEG may hold any number of scans, each as much work as a file of its own."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))
    raw = zoo.encoded(noise, "JPEG", progressive=True)
    assert 2 < raw.count(b"\xff\xda") <= 20 and pixels.decode(raw).shape == (32, 32, 3)
    last = raw.rindex(b"\xff\xda")
    many = raw[:-2] + raw[last:-2] * 400 + raw[-2:]
    with pytest.raises(pixels.PictureTooLarge, match="more than 100 scans"):
        pixels.decode(many)
    with pytest.raises(pixels.PictureTooLarge, match="profile has more than 8,388,608 bytes"):
        pixels.decode(zoo.encoded(noise, "TIFF", icc_profile=bytes(9 * 2**20)))


def test_formats_that_are_refused():
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    with pytest.raises(pixels.BrokenPicture, match="header of this HEIC is damaged"):
        pixels.decode(heic)
    for raw, kind in (
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
        (b"8BPS\0\1" + bytes(20), "PSD"),
        (b"%PDF-1.7\n", "PDF"),
        (zoo.encoded(Image.new("RGB", (9, 9)), "TGA"), "TGA"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "MP4 video"),
        (b"PK\3\4" + bytes(30), "ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b'{"error": "no such key: secret-of-the-file"}', "JSON"),
        (b"secret-of-the-file", "text"),
        (bytes(999), "a file of zeros"),
        (bytes(range(128, 256)), "a file of unknown kind"),
    ):
        with pytest.raises(pixels.NotAPicture, match=f"^{kind} is not read; what is read: JPEG") as error:
            pixels.decode(raw)
        assert "secret" not in str(error.value) + str(error.value.detail)


# ---- depth: samples that are not 8 bits of grey or colour


def tiff(values: np.ndarray, bits: int, kind: int = 1, photometric: int = 1) -> bytes:
    """A TIFF of one strip, written by hand."""
    height, width = values.shape
    data = values.tobytes() if bits != 12 else _twelve(values)
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, kind),
    ]  # fmt: skip
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, t, 1, v) for tag, t, v in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + bytes(4)


def _twelve(values: np.ndarray) -> bytes:
    """Two samples of 12 bits in three bytes, the first in the high bits."""
    pairs = values.reshape(-1, 2).astype(int)
    return b"".join((int(a) << 12 | int(b)).to_bytes(3, "big") for a, b in pairs)


RAMP = np.linspace(0, 1, 64)[None, :].repeat(4, 0)


@pytest.mark.parametrize(
    ("values", "bits", "kind", "said"),
    [
        ((RAMP * 200).astype(np.int8), 8, 2, "8-bit signed integers"),
        ((RAMP * 30000).astype(np.int16), 16, 2, "16-bit signed integers"),
        ((RAMP * 200).astype(np.int32), 32, 2, "32-bit signed integers"),
        ((RAMP * 200).astype(np.uint32), 32, 1, "32-bit unsigned integers"),
        ((RAMP * 3e9).astype(np.uint32), 32, 1, "32-bit unsigned integers"),
        (RAMP.astype(np.float32), 32, 3, "32-bit floats"),
    ],
)
def test_samples_without_a_known_range_are_named_never_guessed(values, bits, kind, said):
    with pytest.raises(pixels.PictureError, match=f"its samples are {said}, whose range is unknown"):
        pixels.decode(tiff(values, bits, kind))


def test_varieties_of_tiff_that_pillow_does_not_read_are_named():
    with pytest.raises(pixels.PictureError, match="its samples are 64-bit floats, whose range"):
        pixels.decode(tiff(RAMP, 64, 3))
    with pytest.raises(
        pixels.BrokenPicture, match="TIFF of 12-bit unsigned integers is damaged, or of a variety"
    ) as error:
        pixels.decode(tiff((RAMP * 4095).astype(np.uint16), 12, 1, 0))
    assert error.value.detail == "1 samples a pixel, photometric 0"


def test_a_bigtiff_that_pillow_does_not_read_is_named():
    for order, read in (("<", True), (">", False)):
        sink = io.BytesIO()
        tifffile.imwrite(sink, np.full((2, 2), 7, np.uint8), bigtiff=True, byteorder=order)
        if read:
            assert (pixels.decode(sink.getvalue()) == 7).all()
        else:
            with pytest.raises(pixels.BrokenPicture, match=r"this BigTIFF of 8-bit .* a variety that is not read"):
                pixels.decode(sink.getvalue())


def test_grey_that_is_multiplied_by_its_alpha_is_on_white():
    alpha = np.array([[255, 128, 0]], np.uint8)
    sink = io.BytesIO()
    tifffile.imwrite(
        sink,
        np.stack([alpha // 2, alpha], -1),
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["assocalpha"],
    )
    assert np.abs(pixels.decode(sink.getvalue())[0, :, 0].astype(int) - [127, 191, 255]).max() <= 1


@pytest.mark.parametrize("bits", [3, 5, 6, 7, 9, 10, 14, 15])
def test_odd_depths_are_named(bits):
    with pytest.raises(pixels.PictureError, match=f"its samples are {bits}-bit unsigned integers, which are not read"):
        pixels.decode(tiff(RAMP.astype(np.uint16), bits))


KINDS = {"u": "unsigned integers", "i": "signed integers", "f": "floats", "c": "complex floats"}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"])
def test_tiffs_of_another_writer_are_right_or_named(dtype, order):
    """Every kind of number, grey, white-is-zero and colour, pixel by pixel and in planes, packed and not."""
    kind = np.dtype(dtype)
    top = np.iinfo(kind).max if kind.kind in "ui" else 1
    colour = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 0.5)], -1)
    said = f"its samples are {8 * kind.itemsize}-bit {KINDS[kind.kind]}, whose range is unknown"
    read = 0
    for values, options in (
        (RAMP, {"photometric": "minisblack"}),
        (1 - RAMP, {"photometric": "miniswhite"}),
        (colour, {"photometric": "rgb", "planarconfig": "contig"}),
        (colour.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
    ):
        wanted = np.round(255 * (colour if options["photometric"] == "rgb" else RAMP[..., None]))
        for packed in (None, "zlib"):
            sink = io.BytesIO()
            with np.errstate(invalid="ignore"):
                stored = np.ascontiguousarray((values * top).astype(kind))
            tifffile.imwrite(sink, stored, byteorder=order, compression=packed, **options)
            try:
                rgb = pixels.decode(sink.getvalue())
            except pixels.PictureError as error:
                if kind.kind != "u" or kind.itemsize > 2:
                    assert said in str(error)
                else:
                    assert re.search("16-bit unsigned integers is damaged, or|16-bit .* planes", str(error))
                continue
            assert kind.kind == "u" and np.abs(rgb - wanted).max() <= 1, (options, packed)
            read += 1
    assert read >= {"u1": 8, "u2": 5}.get(dtype, 0)


@pytest.mark.parametrize(
    ("bits", "dtype", "photometric"),
    [(8, np.uint8, 0), (8, np.uint8, 1), (12, np.uint16, 1), (16, np.uint16, 0), (16, np.uint16, 1)],
)
def test_grey_of_any_depth_and_polarity_is_the_same_ramp(bits, dtype, photometric):
    top = 2**bits - 1
    values = np.round(RAMP * top).astype(dtype)
    rgb = pixels.decode(tiff(top - values if photometric == 0 else values, bits, 1, photometric))
    assert np.abs(rgb[..., 0].astype(float) - RAMP * 255).max() <= 1 and rgb[0, 0, 0] == 0 and rgb[0, -1, 0] == 255


def png(depth: int, colour: int, row: bytes, width: int, key: bytes) -> bytes:
    """A PNG of one row with a transparent value, written by hand."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"tRNS", key) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "expected"),
    [
        (1, 0, b"\x40", b"\0\0", [255, 255]),  # samples 0 and 1; 0 is transparent, so white
        (1, 0, b"\x40", b"\0\1", [0, 255]),
        (2, 0, b"\x60", b"\0\1", [255, 170]),
        (4, 0, b"\x5a", b"\0\5", [255, 170]),
        (8, 0, b"\x55\xaa", b"\0\x55", [255, 170]),
        (16, 0, b"\x55\x01\x55\x02", b"\x55\x01", [255, 85]),
        (8, 2, b"\x55" * 3 + b"\xaa" * 3, b"\0\x55" * 3, [255, 170]),
        (16, 2, b"\x55\x01" * 3 + b"\xaa\x02" * 3, b"\x55\x01" * 3, [255, 170]),
        (16, 2, b"\x55\x01" * 3 + b"\x55\x02" * 3, b"\x55\x01" * 3, [255, 85]),  # a neighbour in the low byte
    ],
)
def test_a_transparent_value_is_white_at_every_depth(depth, colour, row, key, expected):
    rgb = pixels.decode(png(depth, colour, row, 2, key))
    assert rgb[0].tolist() == [[value] * 3 for value in expected]


CASES = Path(__file__).parent / "data" / "cases_images"


@pytest.mark.parametrize("name", ["a.jfif", "c.jpe", "x.mpo", "x.apng", "e.jp2", "p.ppm"])
def test_images_under_other_suffixes_decode(name):
    image = Image.open(CASES / name)
    rgb = pixels.decode((CASES / name).read_bytes())
    assert rgb.shape == (image.height, image.width, 3) and rgb.std() > 10
    assert np.abs(rgb.astype(int) - np.asarray(image.convert("RGB"))).max() == 0, "the first of several"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("i32_small.tif", "32-bit signed"),
        ("i32_big.tif", "32-bit signed"),
        ("int16.tif", "16-bit signed"),
    ],
)
def test_integer_tiffs_of_the_cases_are_named(name, said):
    with pytest.raises(pixels.PictureError, match=f"its samples are {said} integers"):
        pixels.decode((CASES / name).read_bytes())


def test_grey_of_sixteen_bits_with_a_transparent_value():
    stored = np.asarray(Image.open(CASES / "g16_trns.png"))
    key = Image.open(CASES / "g16_trns.png").info["transparency"]
    rgb = pixels.decode((CASES / "g16_trns.png").read_bytes())
    assert (stored == key).any() and (rgb[stored == key] == 255).all()
    assert (rgb[stored != key, 0] == (stored[stored != key].astype(int) + 128) // 257).all()


SMALL = [make for make in zoo.READABLE if make is not zoo.huge_metadata_jpeg]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", SMALL, ids=lambda make: make.__name__)
def test_damage_anywhere_is_a_picture_error_or_a_picture(tmp_path, make):
    raw = make(tmp_path).read_bytes()
    rng = np.random.default_rng(list(make.__name__.encode()))
    for turn in range(40):
        damaged = bytearray(raw[: rng.integers(1, len(raw) + 1)] if turn % 2 else raw)
        for _ in range(rng.integers(1, 9)):
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        try:
            assert pixels.decode(bytes(damaged)).shape[2] == 3
        except pixels.PictureError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (zoo.good_jpeg, 3),
        (zoo.cmyk_jpeg, 4),
        (zoo.cmyk_icc_jpeg, 4),
        (zoo.sixteen_bit_png, 1),
        (zoo.one_bit_png, 1),
        (zoo.good_heic, 3),
        (zoo.transparent_heic, 4),
        (zoo.grey_with_alpha, 2),
        (zoo.palette_with_alpha, 4),
    ],
)
def test_channels_are_those_of_the_file(tmp_path, make, expected):
    assert pixels.channels(make(tmp_path).read_bytes()) == expected


@pytest.mark.parametrize("make", [zoo.rotated_jpeg, zoo.display_p3_png, zoo.cmyk_icc_jpeg, zoo.good_heic])
def test_threads_decode_the_same(tmp_path, make):
    raw = make(tmp_path).read_bytes()
    seen: list[bytes] = []
    threads = [threading.Thread(target=lambda: seen.append(pixels.decode(raw).tobytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [pixels.decode(raw).tobytes()] * 8


def test_cover_takes_the_centre_and_keeps_the_axes():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20, 0], wide[:, 20:40, 1], wide[:, 40:, 2] = 255, 255, 255
    assert (pixels.cover(wide, 10, 10).argmax(axis=2) == 1).all()
    rgb = pixels.cover(HALVES, 8, 16)
    ends = np.abs(rgb[:, [0, -1]].astype(int) - [zoo.RED, zoo.BLUE])
    assert rgb.shape == (8, 16, 3) and ends.max() <= 1
    assert (pixels.cover(HALVES, *HALVES.shape[:2]) == HALVES).all()


def test_cover_takes_any_shape():
    rng = np.random.default_rng(4)
    shapes = [(1, 1), (3, 1000), (333, 77), *rng.integers(1, 200, (300, 2)).tolist()]
    for shape in shapes:
        height, width = rng.integers(1, 100, 2).tolist()
        small = pixels.cover(np.full((*shape, 3), 90, np.uint8), height, width)
        assert small.shape == (height, width, 3) and (small == 90).all()


def test_model_input_is_planes_in_minus_one_to_one_and_comes_back():
    x = pixels.to_model(HALVES, 32, 64)
    assert x.shape == (3, 32, 64) and x.dtype == np.float32 and x.flags.c_contiguous
    assert (x[0, :, :32] == 1).all() and (x[2, :, :32] == -1).all()
    assert (pixels.from_model(x) == HALVES).all()
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert (pixels.from_model(pixels.to_model(every, 16, 16)) == every).all()


def test_docs_name_every_file_of_the_zoo():
    text = (Path(__file__).parent.parent / "docs" / "pictures.md").read_text()
    missing = [make.__name__ for make in (*zoo.READABLE, *zoo.UNREADABLE) if f"`{make.__name__}`" not in text]
    assert missing == []
