"""Annotate `text_area`: how much of a picture is text, and what it says.

    words: {op: text_area}       then: where: "words.share < 0.2"        (or > 0.2: see below)

PaddleOCR's detector (Liao et al., "Real-time scene text detection with differentiable binarization", AAAI 2020) finds
lines of text through RapidOCR; their share of the picture is the score. Text-rich pictures (documents, signs, slides)
are wanted for training that understands pictures, and mostly unwanted for training that makes them: the column serves
both, which is why nothing is decided here. `read` adds what the lines say, at several times the cost.

The detector takes round things (a cup from above, a logo) for one huge letter. A box that is taller than half of the
picture and not twice as long as it is high is therefore passed over. Prices paid: a poster of one or two letters has
no text here, and lines smaller than about 8 pixels at `side` are missed, so the share depends on `side`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr

from nextloom.config import RootPath
from nextloom.curation.scores.packaged import packaged
from nextloom.errors import UserError
from nextloom.io import digest_path
from nextloom.op import Annotate, Row, Scale

INSTALL = "pip install 'rapidocr>=3.10'"
FILES = {"detector": "models/PP-OCRv6_det_small.onnx", "recogniser": "models/PP-OCRv6_rec_small.onnx"}
"""Field -> the file in RapidOCR's package."""
SMALLEST = 16
"""Short side in pixels, when the long side has been brought down to `side`, below which nothing can be read."""
TALL, LONG = 0.5, 2.0


class TextArea(Annotate):
    """Lines of text in a picture."""

    name: ClassVar[str] = "text_area"
    code_version: ClassVar[int] = 2
    needs: ClassVar = "pixels"
    weights: ClassVar[Mapping[str, str]] = dict.fromkeys(FILES, INSTALL)

    side: int = Field(960, ge=64)
    """Long side in pixels at which lines are looked for; smaller pictures as they are."""
    read: bool = False
    """Also recognise what the lines say: columns `text`, `characters`, `confidence`."""
    detector: RootPath | None = None
    """ONNX file of a PP-OCR detector. Default: the one in the package `rapidocr`."""
    recogniser: RootPath | None = None
    """ONNX file of a PP-OCR recogniser that holds its own alphabet. Default: the one in the package `rapidocr`."""

    _engine: Any = PrivateAttr(None)

    def columns(self) -> pa.Schema:
        found = [("share", pa.float64()), ("boxes", pa.int32())]
        said = [("text", pa.string()), ("characters", pa.int32()), ("confidence", pa.float64())]
        return pa.schema([*found, *(said if self.read else []), ("not_measured", pa.string())])

    def score_scales(self) -> Mapping[str, Scale]:
        """`share`: a share of the area, with lines found at this side."""
        return {"share": Scale(f"text-share@{self.side}", 0, 1)}

    def identity(self) -> dict[str, Any]:
        """As in `Op`; packaged weights are named, so that they get a digest too, and unused ones left out."""
        files = {field: self._file(field) for field in FILES if field == "detector" or self.read}
        return super().identity() | {"recogniser": None} | files

    def digest_weights(self, field: str) -> str:
        """Digest of one file."""
        return digest_path(self._file(field))

    def _file(self, field: str) -> str:
        return getattr(self, field) or packaged("rapidocr", FILES[field])

    def setup(self) -> None:
        """Load the networks, one thread: workers share the machine. Every file is named, so nothing is downloaded.

        Raises:
            UserError: RapidOCR is not installed.
        """
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise UserError(f"text_area runs on RapidOCR: {error}", next=INSTALL) from None
        import cv2

        cv2.setNumThreads(1)
        threads = dict.fromkeys(("intra_op_num_threads", "inter_op_num_threads"), 1)
        settings = {
            "Global": {"log_level": "critical", "use_preprocess_img": False, "use_vertical_padding": False},
            "EngineConfig.onnxruntime": threads,
            "Det": {"model_path": self._file("detector"), "limit_side_len": self.side, "limit_type": "max"}
            | {"thresh": 0.3, "box_thresh": 0.5, "unclip_ratio": 1.6, "use_dilation": True, "score_mode": "fast"},
            "Rec": {"model_path": self._file("recogniser"), "rec_batch_num": 6},
        }
        flat = {f"{part}.{key}": value for part, values in settings.items() for key, value in values.items()}
        self._engine = RapidOCR(params=flat)

    def measure(self, row: Row) -> dict[str, Any]:
        """Lines of text.

        Returns:
            share: of the picture's area that the boxes cover together, 0..1.
            boxes: how many there are.
            text: what they say, a line each, from the top; empty when there are none. With `read`.
            characters: in `text`, without blanks. With `read`.
            confidence: of the recogniser, mean over boxes, 0..1; null when there are none. With `read`.

        Where the picture is too small or too thin to look for text in it, all of them are null and `not_measured`
        says so.
        """
        import cv2
        import shapely

        assert row.pixels is not None and self._engine is not None, "setup() comes first"
        height, width = row.pixels.shape[:2]
        if min(height, width) * min(1, self.side / max(height, width)) < SMALLEST:
            return dict.fromkeys(self.columns().names) | {"not_measured": "too small or too thin to hold text"}
        bgr = cv2.cvtColor(row.pixels, cv2.COLOR_RGB2BGR)
        found = self._engine(bgr, use_det=True, use_cls=False, use_rec=False).boxes
        boxes = [box for box in np.asarray([] if found is None else found, np.float32) if _is_line(box, height, width)]
        covered = shapely.union_all(shapely.polygons(boxes)).area if boxes else 0.0
        values = {"share": min(1.0, covered / (height * width)), "boxes": len(boxes)}
        said = self._say(bgr, boxes) if self.read else {}
        return {**values, **said, "not_measured": None}

    def _say(self, bgr: np.ndarray, boxes: list[np.ndarray]) -> dict[str, Any]:
        if not boxes:
            return {"text": "", "characters": 0, "confidence": None}
        said = self._engine.recognize_txt(self._engine.crop_text_regions(bgr, np.stack(boxes)))
        text = "\n".join(said.txts)
        return {"text": text, "characters": len("".join(text.split())), "confidence": float(np.mean(said.scores))}


def _is_line(box: np.ndarray, height: int, width: int) -> bool:
    """False for what is as big as half of the picture and nearly square; `box`: (4, 2) corners in turn."""
    short, long = sorted((np.linalg.norm(box[1] - box[0]), np.linalg.norm(box[2] - box[1])))
    return bool(short <= TALL * min(height, width) or long >= LONG * short)
