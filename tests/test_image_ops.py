"""image_stats, perceptual_hash, gif_frames: golden values made by plain numpy, and the properties users rely on."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import zoo
from nextloom import pixels
from nextloom.curation.gif_frames import GifFrames
from nextloom.curation.scores.image_stats import ImageStats
from nextloom.curation.scores.perceptual_hash import PerceptualHash
from nextloom.op import Annotate, Row, RowFailure, attempt

BUMP = "the same picture gives another value: bump code_version"


def run(op: Annotate, picture: Image.Image | bytes) -> dict:
    raw = picture if isinstance(picture, bytes) else zoo.encoded(picture, "PNG")
    op.setup()
    values = op.measure(Row(id=0, key="x", raw=raw, pixels=pixels.decode(raw)))
    assert list(values) == op.columns().names
    return values


def golden() -> Image.Image:
    """A 192 x 128 picture of waves and blocks, without randomness and without symmetry."""
    y, x = np.mgrid[:128, :192]
    red = 127 + 120 * np.sin(x / 9 + y / 31)
    green = (x * 3 + y * y // 50) % 256
    blue = np.where((x // 24 + y // 40) % 2, 230, 15)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def grey_of(image: Image.Image) -> np.ndarray:
    """Rec. 601 luma, rounded."""
    return np.floor(np.asarray(image).astype(np.float64) @ [0.299, 0.587, 0.114] + 0.5)


def blocks(grey: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mean of whole blocks: what area averaging is when sizes divide."""
    h, w = grey.shape
    return np.floor(grey.reshape(height, h // height, width, w // width).mean(axis=(1, 3)) + 0.5)


def laplacian(grey: np.ndarray) -> np.ndarray:
    p = np.pad(grey, 1, mode="reflect")
    return p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * grey


def m3(rgb: np.ndarray) -> float:
    """Colourfulness as the paper writes it."""
    r, g, b = (rgb[..., i].astype(np.float64) for i in range(3))
    rg, yb = r - g, (r + g) / 2 - b
    return np.sqrt(rg.std() ** 2 + yb.std() ** 2) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)


def plain_share(rgb: np.ndarray, tolerance: int) -> float:
    """Share of pixels near the mean of the pixels that fall into the fullest box of colours."""
    flat = [tuple(int(v) for v in colour) for colour in rgb.reshape(-1, 3)]
    boxes: dict[tuple, list] = {}
    for colour in flat:
        boxes.setdefault(tuple(v // 16 for v in colour), []).append(colour)
    fullest = max(sorted(boxes), key=lambda box: len(boxes[box]))
    mean = [round(sum(channel) / len(boxes[fullest])) for channel in zip(*boxes[fullest], strict=True)]
    near = [all(abs(v - m) <= tolerance for v, m in zip(colour, mean, strict=True)) for colour in flat]
    return sum(near) / len(flat)


def plain_hash(grey32: np.ndarray) -> int:
    """pHash by the textbook's double sum."""
    n = np.arange(32)
    low = np.empty((8, 8))
    for u in range(8):
        for v in range(8):
            wave = np.outer(np.cos(np.pi * u * (2 * n + 1) / 64), np.cos(np.pi * v * (2 * n + 1) / 64))
            low[u, v] = (grey32 * wave).sum() * (0.5**0.5 if u == 0 else 1) * (0.5**0.5 if v == 0 else 1) / 16
    low = np.round(low, 3)
    wave = (np.square(low).sum() - low[0, 0] ** 2) / 63
    bits = (low > max(np.median(low), 0) + max(12, 0.2 * wave**0.5)).ravel()
    value = int("".join("01"[int(bit)] for bit in bits), 2)
    return value - 2**64 if value >= 2**63 else value


def test_image_stats_golden():
    grey = grey_of(golden())
    share = np.unique(grey, return_counts=True)[1] / grey.size
    small = np.stack([blocks(np.asarray(golden())[..., i], 32, 48) for i in range(3)], axis=-1)
    values = run(ImageStats(sharpness_side=32), golden())
    expected = {
        "width": 192,
        "height": 128,
        "channels": 3,
        "short_side": 128,
        "aspect": 1.5,
        "sharpness": laplacian(blocks(grey, 32, 48)).var(),
        "brightness": grey.mean() / 255,
        "entropy": -(share * np.log2(share)).sum(),
        "colourfulness": m3(small),
        "border": 0.0,
        "plain": values["plain"],  # one pixel rounded otherwise changes it: below, without scaling
    }
    assert values == pytest.approx(expected, rel=2e-3), BUMP
    stored = {"sharpness": 2877.706, "brightness": 0.4878625, "entropy": 7.619639, "colourfulness": 166.367}
    assert {key: values[key] for key in stored} == pytest.approx(stored, rel=1e-3), BUMP
    assert run(ImageStats(), golden())["plain"] == plain_share(np.asarray(golden()), 4), BUMP


def test_perceptual_hash_golden():
    image = golden().resize((128, 128))
    value = run(PerceptualHash(), image)
    assert value["hash"] == plain_hash(blocks(grey_of(image), 32, 32)), BUMP
    assert value["hash"] == -9005505283886917628, BUMP
    cells = np.stack(
        [blocks(np.asarray(image.resize((126, 126), Image.Resampling.BOX))[..., i], 3, 3) for i in range(3)], -1
    )
    luma = cells @ [0.299, 0.587, 0.114]
    plain = np.stack([luma, (cells[..., 0] - luma) * 0.713 + 128, (cells[..., 2] - luma) * 0.564 + 128], -1)
    colour = np.frombuffer(value["colour"], np.uint8)
    assert np.abs(colour[:27].reshape(3, 3, 3) - plain).max() <= 3, BUMP
    small = np.stack([blocks(np.asarray(image)[..., i], 32, 32) for i in range(3)], -1)
    luma = small @ [0.299, 0.587, 0.114]
    parts = (luma, (small[..., 0] - luma) * 0.713, (small[..., 2] - luma) * 0.564)
    assert abs(colour[27] - sum(part.var() for part in parts) ** 0.5) <= 1, BUMP


def test_sharpness_falls_with_blur_and_hardly_with_resolution():
    noise = np.random.default_rng(3).integers(0, 256, (256, 256), np.uint8)
    base = Image.fromarray(noise).resize((1024, 1024), Image.Resampling.BICUBIC)
    sharp = run(ImageStats(), base)["sharpness"]
    assert run(ImageStats(), base.resize((512, 512), Image.Resampling.BOX))["sharpness"] == pytest.approx(
        sharp, rel=0.05
    )
    assert run(ImageStats(), base.resize((64, 64)).resize((1024, 1024)))["sharpness"] < sharp / 10


def test_small_pictures_are_not_enlarged_and_thin_ones_measured():
    image = golden().crop((0, 0, 100, 60))
    expected = laplacian(grey_of(image)).var()
    assert run(ImageStats(), image)["sharpness"] == pytest.approx(expected, rel=2e-3)
    for size in ((1, 1), (1, 900), (900, 1), (3000, 300)):
        values = run(ImageStats(), golden().resize(size))
        assert (values["width"], values["height"]) == size and values["sharpness"] >= 0


def test_flat_pictures():
    white, black = (run(ImageStats(), Image.new("RGB", (40, 30), color)) for color in ((255,) * 3, (0,) * 3))
    assert (white["brightness"], white["entropy"], white["sharpness"]) == (1.0, 0.0, 0.0)
    assert (black["brightness"], black["entropy"], black["sharpness"]) == (0.0, 0.0, 0.0)
    assert [picture[key] for picture in (white, black) for key in ("border", "plain")] == [1.0] * 4
    flat = {run(PerceptualHash(), Image.new("RGB", (40, 30), c))["hash"] for c in ("white", "red", "#888")}
    assert len(flat) == 1


def noisy(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)


def framed(left: int, top: int, right: int, bottom: int, colour: tuple, picture: np.ndarray) -> np.ndarray:
    """`picture` with strips of so many pixels at its sides."""
    height, width = picture.shape[:2]
    canvas = np.full((height + top + bottom, width + left + right, 3), colour, np.uint8)
    canvas[top : top + height, left : left + width] = picture
    return canvas


@pytest.mark.parametrize(
    "strips", [(0, 30, 0, 30), (40, 0, 40, 0), (12, 12, 12, 12), (0, 0, 0, 9), (0, 17, 0, 0), (5, 1, 0, 44)]
)
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (30, 90, 200)])
def test_border_is_the_share_of_uniform_strips(strips, colour):
    image = framed(*strips, colour, noisy(100, 80))
    expected = 1 - 100 * 80 / (image.shape[0] * image.shape[1])
    assert run(ImageStats(), Image.fromarray(image))["border"] == pytest.approx(expected)


def test_border_of_two_colours_of_jpeg_and_of_large_pictures():
    both = framed(20, 0, 20, 0, (255,) * 3, framed(0, 10, 0, 30, (0,) * 3, noisy(100, 80)))
    assert run(ImageStats(), Image.fromarray(both))["border"] == pytest.approx(1 - 8000 / both[..., 0].size)
    drawn = np.kron(noisy(25, 20), np.ones((16, 16, 1), np.uint8))
    letterbox = Image.fromarray(framed(0, 40, 0, 40, (0,) * 3, drawn))
    jpeg = zoo.encoded(letterbox, "JPEG", quality=70)
    assert 0.2 - 2 * 16 / 400 <= run(ImageStats(), jpeg)["border"] <= 0.2  # the block at its edge is not uniform
    large = letterbox.resize((1500, 1500), Image.Resampling.NEAREST)
    assert run(ImageStats(), large)["border"] == pytest.approx(0.2, abs=2 / 256)
    assert run(ImageStats(), Image.fromarray(drawn))["border"] == 0


def test_plain_background_is_seen_through_noise_and_jpeg():
    image = np.full((200, 200, 3), (128, 127, 64), np.int16)  # on the edge of two boxes of colours
    image += np.random.default_rng(1).integers(-2, 3, image.shape, np.int16)
    image[50:150, 40:160] = noisy(120, 100)
    values = run(ImageStats(), Image.fromarray(image.astype(np.uint8)))
    assert values["plain"] == pytest.approx(0.7, abs=0.01) and values["border"] == pytest.approx(0.7, abs=0.01)
    jpeg = zoo.encoded(Image.fromarray(image.astype(np.uint8)), "JPEG", quality=80)
    assert run(ImageStats(), jpeg)["plain"] == pytest.approx(0.67, abs=0.05)
    assert run(ImageStats(), Image.fromarray(noisy(200, 200)))["plain"] < 0.01


def test_colourfulness_orders_pictures_and_is_zero_for_grey():
    image = noisy(64, 64)
    grey = np.repeat(image[..., :1], 3, axis=-1)
    half = (image.astype(int) + grey) // 2
    values = [run(ImageStats(), Image.fromarray(a.astype(np.uint8)))["colourfulness"] for a in (grey, half, image)]
    assert values == pytest.approx([m3(a) for a in (grey, half, image)], rel=1e-3, abs=1e-9)
    assert values[0] == 0 and values == sorted(values)


def test_size_is_upright_and_channels_are_the_files(tmp_path):
    values = run(ImageStats(), zoo.rotated_jpeg(tmp_path).read_bytes())
    assert (values["width"], values["height"], values["aspect"]) == (64, 32, 2.0)
    assert run(ImageStats(), zoo.cmyk_jpeg(tmp_path).read_bytes())["channels"] == 4
    assert run(ImageStats(), zoo.sixteen_bit_png(tmp_path).read_bytes())["channels"] == 1


def test_hash_survives_resizing_and_encoding_and_tells_pictures_apart():
    def bits(image: Image.Image | bytes) -> int:
        return run(PerceptualHash(), image)["hash"] & (2**64 - 1)

    image = golden()
    copies = [image.resize((96, 64)), image.resize((500, 333)), zoo.encoded(image, "JPEG", quality=60)]
    assert [(bits(copy) ^ bits(image)).bit_count() <= 6 for copy in copies] == [True] * 3
    others = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), zoo.halves(), image.crop((0, 0, 60, 60))]
    assert [(bits(other) ^ bits(image)).bit_count() > 12 for other in others] == [True] * 3


def test_symmetric_pictures_hash_the_same_in_every_size():
    ring = np.hypot(*np.mgrid[-31.5:32, -31.5:32])
    image = Image.fromarray(np.where(abs(ring - 20) < 6, 0, 255).astype(np.uint8))
    double = image.resize((128, 128), Image.Resampling.NEAREST)
    assert run(PerceptualHash(), image) == run(PerceptualHash(), double)


def test_frames_of_an_animation_are_children(tmp_path):
    raw = zoo.animated_gif(tmp_path).read_bytes()
    children = list(GifFrames().expand(Row(id=1, key="sub/a.gif", raw=raw)))
    assert [(c.key, c.frame) for c in children] == [("sub/a.gif#0000", 0), ("sub/a.gif#0001", 1), ("sub/a.gif#0002", 2)]
    with pytest.raises(RowFailure, match="more frames than max_frames, 2") as error:
        list(GifFrames(max_frames=2).expand(Row(id=1, key="a.gif", raw=raw)))
    assert (error.value.kind, error.value.detail) == ("TooManyFrames", "3 frames")


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_other_animations_and_stills(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in (zoo.RED, zoo.BLUE)]
    raw = zoo.encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert [c.frame for c in GifFrames().expand(Row(id=1, key="a", raw=raw))] == [0, 1]
    assert (pixels.decode(raw, 1) == zoo.BLUE).all()
    still = zoo.encoded(frames[0], kind)
    assert [c.key for c in GifFrames().expand(Row(id=1, key="a.x", raw=still))] == ["a.x#0000"]


def test_no_picture_has_no_children():
    result = attempt(lambda row: list(GifFrames().expand(row)), Row(id=1, key="a.gif", raw=b"GIF89a"))
    assert isinstance(result, pixels.PictureError)


def test_importing_the_ops_imports_nothing_heavy():
    code = "import sys; from nextloom.pipelines import registry; registry.known(registry.OPS)"
    code += "; registry.known(registry.SOURCES)"
    code += "; print([m for m in ('cv2', 'torch', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
