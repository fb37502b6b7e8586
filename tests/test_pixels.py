"""Pixels: each odd file is read as docs/pictures.md says, or refused with a clear reason."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
        (zoo.good_jpeg, 8),
        (zoo.cmyk_jpeg, 8),
        (zoo.rotated_jpeg, 8),
    ],
)
def test_red_is_left_and_blue_is_right(tmp_path, make, tolerance):
    rgb = read(make, tmp_path)
    assert rgb.dtype == np.uint8 and rgb.shape == HALVES.shape
    assert np.abs(rgb.astype(int) - HALVES).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(orientation, kind):
    upright = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8))
    back = {6: 8, 8: 6}.get(orientation, orientation)  # all others undo themselves
    stored = upright.transpose(pixels._UPRIGHT[back]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (pixels.decode(zoo.encoded(stored, kind, exif=exif)) == np.asarray(upright)).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    rgb = read(zoo.sixteen_bit_png, tmp_path)
    assert (rgb == np.arange(256)[None, :, None]).all()


def test_transparency_lies_on_white(tmp_path):
    palette = read(zoo.palette_with_alpha, tmp_path)
    assert (palette[:, :32] == zoo.RED).all() and (palette[:, 32:] == 255).all()
    grey = read(zoo.grey_with_alpha, tmp_path)
    assert (grey[:, :32] == 0).all() and (abs(grey[:, 32:].astype(int) - 127) <= 1).all()


def test_frames_of_an_animation(tmp_path):
    raw = zoo.animated_gif(tmp_path).read_bytes()
    assert pixels.frame_count(raw) == 3
    for frame, color in enumerate((zoo.RED, zoo.BLUE, zoo.WHITE)):
        assert (pixels.decode(raw, frame) == color).all()
    with pytest.raises(pixels.BrokenPicture, match="there is no frame 3"):
        pixels.decode(raw, 3)


def test_pages_are_not_frames():
    pages = [Image.new("RGB", (4, 4), color) for color in (zoo.RED, zoo.BLUE)]
    raw = zoo.encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert Image.open(io.BytesIO(raw)).n_frames == 2
    assert pixels.frame_count(raw) == 1
    assert (pixels.decode(raw) == zoo.RED).all()


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (zoo.truncated_jpeg, pixels.BrokenPicture, "truncated"),
        (zoo.empty_file, pixels.NotAPicture, "the file is empty"),
        (zoo.text_as_jpeg, pixels.NotAPicture, r"it begins with b'<html>404 not fo'"),
        (zoo.huge_header, pixels.PictureTooLarge, "3600000000 pixels"),
    ],
)
def test_what_cannot_be_read_says_why_and_says_it_again(tmp_path, make, kind, message):
    raw = make(tmp_path).read_bytes()
    with pytest.raises(kind, match=message) as first:
        pixels.decode(raw)
    with pytest.raises(kind) as second:
        pixels.decode(bytes(bytearray(raw)))
    assert str(first.value) == str(second.value), "an error row must not hold an address in memory"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_just_over_the_limit_is_too_large(tmp_path):
    with pytest.raises(pixels.PictureTooLarge, match="179560000 pixels"):
        pixels.open_picture(zoo.huge_header(tmp_path, 13_400).read_bytes())
    assert pixels.open_picture(zoo.huge_header(tmp_path, 13_300).read_bytes()).size == (13_300, 13_300)


def test_formats_and_ranges_that_are_refused():
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    with pytest.raises(pixels.NotAPicture, match="HEIC is not read"):
        pixels.decode(heic)
    with pytest.raises(pixels.NotAPicture):
        pixels.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    floats = Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    with pytest.raises(pixels.PictureError, match="floats"):
        pixels.decode(zoo.encoded(floats, "TIFF"))


def test_damage_anywhere_is_a_picture_error_or_a_picture(tmp_path):
    rng = np.random.default_rng(2)
    for make in (zoo.good_jpeg, zoo.good_png, zoo.good_webp, zoo.animated_gif, zoo.palette_with_alpha):
        raw = make(tmp_path).read_bytes()
        for _ in range(60):
            damaged = bytearray(raw[: rng.integers(1, len(raw) + 1)])
            damaged[rng.integers(len(damaged))] = rng.integers(256)
            try:
                assert pixels.decode(bytes(damaged)).shape[2] == 3
            except pixels.PictureError as error:
                assert str(error)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (zoo.good_jpeg, 3),
        (zoo.cmyk_jpeg, 4),
        (zoo.sixteen_bit_png, 1),
        (zoo.grey_with_alpha, 2),
        (zoo.palette_with_alpha, 4),
    ],
)
def test_channels_are_those_of_the_file(tmp_path, make, expected):
    assert pixels.channels(make(tmp_path).read_bytes()) == expected


def test_threads_decode_the_same(tmp_path):
    raw = zoo.rotated_jpeg(tmp_path).read_bytes()
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
