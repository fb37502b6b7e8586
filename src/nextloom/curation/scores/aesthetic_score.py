"""Annotate `aesthetic_score`: how much people would like a picture, by LAION's heads on a CLIP embedding.

    clip:      {op: embed, model: clip, weights: models/clip-l14}
    aesthetic: {op: aesthetic_score, reads: [clip], weights: models/sac+logos+ava1-l14-linearMSE.pth}

Three layouts are known by the names in their file:
    v2    christophschuhmann/improved-aesthetic-predictor: 768 -> 1024 -> 128 -> 64 -> 16 -> 1, nothing in between
    relu  the same with ReLU in between (`ava+logos-l14-reluMSE`)
    v1    LAION-AI/aesthetic-predictor: one linear map, 768 -> 1 (ViT-L/14) or 512 -> 1 (ViT-B/32, ViT-B/16)

Without activations five layers are one affine map, so v2 is folded to a dot product once per worker; a score then
costs as much as reading the embedding. The heads are fitted to OpenAI CLIP's projected picture embedding of length 1:
on one of length 10 the numbers spread ten times as far and mean nothing, so that is refused, as is another width.
v1 (0 to 10) and v2 (1 to 10) are different scales. Price paid: the weights are the user's to bring, and the file
named `ava+logos-l14-linearMSE` has the layout of v2 and passes for it.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr

from nextloom.config import RootPath
from nextloom.curation.scores.scales import LAION_RELU, LAION_V1, LAION_V2
from nextloom.errors import UserError
from nextloom.io import digest_path
from nextloom.model_files import layout, load_pickled, load_tensors
from nextloom.op import Annotate, Row, RowFailure, Scale

LAYERS = {
    "v2": tuple(f"layers.{i}." for i in (0, 2, 4, 6, 7)),  # dropout stands between
    "relu": tuple(f"layers.{i}." for i in (0, 3, 6, 9, 11)),  # ReLU and dropout
    "v1": ("",),
}
SCALES = {"v1": LAION_V1, "v2": LAION_V2, "relu": LAION_RELU}
OTHER_SPACES = ("parts", "siglip2")
TOLERANCE = 1e-3
"""How far from 1 the length of an embedding may lie: fp16 encoders stay within it."""


class AestheticScore(Annotate):
    """LAION's aesthetic score of an embedding."""

    name: ClassVar[str] = "aesthetic_score"
    code_version: ClassVar[int] = 2
    weights: ClassVar[Mapping[str, str]] = {
        "checkpoint": "put sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/"
        "improved-aesthetic-predictor there, or set weights to where it is"
    }

    checkpoint: RootPath = Field(alias="weights")
    """State dict of a head, `.pth` or `.safetensors`; written `weights` in a recipe."""
    variant: Literal["v1", "v2", "relu"] | None = None
    """Layout of the head. Default: the one that its names tell; another one is refused."""

    _layers: list[tuple[np.ndarray, np.ndarray]] = PrivateAttr(default_factory=list)

    def columns(self) -> pa.Schema:
        return pa.schema([("score", pa.float64())])

    def score_scales(self) -> Mapping[str, Scale]:
        """`score`: that of the variant; none as long as the weights are absent."""
        variant = self.variant or _variant_of(_names_in(self.checkpoint))
        return {"score": SCALES[variant]} if variant else {}

    def identity(self) -> dict[str, Any]:
        """As in `Op`, without `variant`, which follows from the weights."""
        return super().identity() | {"variant": None}

    def digest_weights(self, field: str) -> str:
        """Digest of the file."""
        if Path(self.checkpoint).is_dir():
            raise UserError(f"{self.checkpoint} is a folder", next="give weights: the .pth or .safetensors file in it")
        return digest_path(self.checkpoint)

    def check(self, known: Mapping[str, Iterable[str]], where: str) -> None:
        """Refuse anything but one step with embeddings."""
        fit = [step for step in self.reads if "embedding" in known.get(step, ())]
        if len(self.reads) != 1 or not fit:
            raise UserError(
                "aesthetic_score reads one step that has embeddings",
                where=f"{where}.reads",
                next="clip: {op: embed, model: clip, weights: FOLDER} and then reads: [clip]",
            )

    def check_scales(self, scales: Mapping[str, Mapping[str, Scale]], where: str) -> None:
        """Refuse embeddings that live in another space than CLIP's."""
        for step in self.reads:
            space = scales.get(step, {}).get("embedding")
            if space and space.name.split()[0] in OTHER_SPACES:
                raise UserError(
                    f"{step!r} embeds with {space.name.split()[0]}; LAION's heads are fitted to OpenAI CLIP",
                    where=f"{where}.reads",
                    next="read a step {op: embed, model: clip, weights: FOLDER} with OpenAI's ViT-L/14",
                )

    def setup(self) -> None:
        """Read the weights, and fold what can be folded, in float64.

        Raises:
            UserError: they are of no known layout, or not of `variant`.
        """
        state = _load(self.checkpoint)
        found = _variant_of(state)
        if found is None or self.variant not in (None, found):
            told = "no head of LAION's" if found is None else f"variant {found}, not {self.variant}"
            raise UserError(
                f"{self.checkpoint} is {told}: it holds {', '.join(sorted(state)[:4]) or 'nothing'} ...",
                next="set weights to the state dict of a head, and leave variant out",
            )
        layers = [(state[f"{name}weight"], state[f"{name}bias"]) for name in LAYERS[found]]
        self._layers[:] = layers if found == "relu" else [_fold(layers)]

    def measure(self, row: Row) -> dict[str, Any]:
        """`score`: see the scales of the variants; not clipped. Null where the row has no embedding.

        Raises:
            RowFailure: ``OtherEmbedding``: it is of another width, or its length is not 1.
        """
        (step,) = self.reads
        if row.reads[step]["embedding"] is None:
            return {"score": None}
        x = np.frombuffer(row.reads[step]["embedding"], "<f4").astype(np.float64)
        width = self._layers[0][0].shape[1]
        if len(x) != width:
            raise RowFailure(
                "OtherEmbedding",
                f"{step} has {len(x)} numbers, these weights want {width}: embed with "
                + ("OpenAI CLIP ViT-L/14" if width == 768 else "the CLIP that the weights were made for"),
            )
        length = float(np.linalg.norm(x))
        if not abs(length - 1) <= TOLERANCE:
            message = f"{step} is not of length 1: divide each embedding by its length (embed does)"
            raise RowFailure("OtherEmbedding", message, detail=f"length {length:.4g}")
        for weight, bias in self._layers[:-1]:
            x = np.maximum(weight @ x + bias, 0)
        weight, bias = self._layers[-1]
        return {"score": float((weight @ x + bias)[0])}


def _fold(layers: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The one affine map that these make one after the other: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)."""
    weight, bias = layers[0]
    for above, shift in layers[1:]:
        weight, bias = above @ weight, above @ bias + shift
    return weight, bias


def _variant_of(names: Iterable[str]) -> str | None:
    """The layout whose names these are."""
    found = set(names)
    for variant, layers in LAYERS.items():
        if found == {f"{layer}{part}" for layer in layers for part in ("weight", "bias")}:
            return variant
    return None


def _load(path: str) -> dict[str, np.ndarray]:
    """Name -> float64 array. A `.pth` is read by torch, which runs no code of it."""
    if path.endswith(".safetensors"):
        return {name: value.double().numpy() for name, value in load_tensors(path).items()}
    return {name: value.double().numpy() for name, value in load_pickled(path).items()}


def _names_in(path: str) -> set[str]:
    """Names of the arrays in a file, without torch; empty when it is not there or holds none.

    A pickle is not run: its text strings that end as names do are listed.
    """
    try:
        with open(path, "rb") as file:
            if path.endswith(".safetensors"):
                return set(layout(path))
            if not zipfile.is_zipfile(file):
                file.seek(0)
                return set(_strings(file))
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                return set(_strings(archive.open(name)))
    except (OSError, UserError, ValueError, StopIteration, zipfile.BadZipFile):
        return set()


def _strings(file: IO[bytes], pickles: int = 4) -> Iterator[str]:
    """Names in up to so many pickles one after the other: a file of torch before 1.6 begins with four."""
    for _ in range(pickles):
        for _, value, _ in pickletools.genops(file):
            if isinstance(value, str) and value.rpartition(".")[2] in ("weight", "bias"):
                yield value
        if not file.read(1):
            return
        file.seek(-1, 1)
