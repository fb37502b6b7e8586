"""Annotate `zero_shot`: how well each of your labels fits a picture, from its embedding and the labels' words.

    look:  {op: embed, model: siglip2, weights: &siglip models/siglip2}
    topic: {op: zero_shot, reads: [look], model: siglip2, weights: *siglip, labels: {animal: [cat, dog], food: []}}

A label is put into templates, embedded by the text side of the same encoder, averaged over the templates and brought
back to length 1; that matrix is made once per worker, and a row costs one product with it. `mode: single` is a
softmax over the scaled cosines (Radford et al. 2021), for topics of which a picture has one; `mode: multi` a sigmoid
for each (Zhai et al. 2023), for things of which it may show several. Nothing is decided here but which label is
best: thresholds and "none of these" are `pick_labels`' or a select's, `topic.scores['cat'] > 0.3`. Price paid: with
other labels all rows are compared anew, though no picture is; and a sigmoid's value is no probability of your class
until you have calibrated a threshold on a few hundred pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr, model_validator

from nextloom.curation.encoders.choice import WithEncoder
from nextloom.curation.encoders.encoder import Encoder, unit
from nextloom.curation.scores.embed import vector_of
from nextloom.errors import UserError
from nextloom.op import Row, RowFailure, Scale

TEMPLATES = {
    "name": ("{}",),
    "clip7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}
"""Named sets; `clip7` are the seven that OpenAI's CLIP notebook keeps of its eighty."""
NORM = 1e-3
"""How far from length 1 an embedding may be."""


def text_matrix(encoder: Encoder, labels: Iterable[str], templates: Iterable[str]) -> np.ndarray:
    """(labels, dim) float64, rows of length 1: each the mean direction of a label in all templates."""
    rows = []
    for label in labels:
        texts = [unit(encoder.text(template.format(label))) for template in templates]
        rows.append(unit(np.mean(texts, axis=0)))
    return np.stack(rows).astype(np.float64)


class ZeroShot(WithEncoder):
    """Scores of your labels, and the best of them."""

    name: ClassVar[str] = "zero_shot"
    code_version: ClassVar[int] = 2
    needs: ClassVar[Literal["nothing", "bytes", "pixels"]] = "nothing"

    labels: tuple[str, ...] | dict[str, tuple[str, ...] | None]
    """Labels, or primary labels with the ones below them; one with none below it stands for itself."""
    mode: Literal["single", "multi"] = "single"
    """`single`: scores of a row add up to 1; `multi`: each label for itself."""
    templates: Literal["name", "clip7"] | tuple[str, ...] = "name"
    """A named set, or texts with one {} each; averaged."""
    scale: float | None = Field(None, gt=0)
    """Factor on cosines before softmax or sigmoid; default: the checkpoint's own (20 for `parts`, which has none)."""
    bias: float | None = None
    """Added before the sigmoid; default: the checkpoint's own, which SigLIP has and CLIP and `parts` have not."""

    _matrix: np.ndarray | None = PrivateAttr(None)
    _factor: float = PrivateAttr(1.0)
    _offset: float = PrivateAttr(0.0)

    @model_validator(mode="after")
    def _sensible(self) -> ZeroShot:
        names = self.names()
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"label {twice!r} stands there twice")
        if not names or not all(name.strip() for name in names):
            raise ValueError("labels are words, at least one")
        if self.mode == "single" and len(names) < 2:
            raise ValueError("mode: single chooses among labels: give at least two, or say mode: multi")
        if self.mode == "multi" and self.bias is None and self.model in ("parts", "clip"):
            raise ValueError(f"{self.model} was not trained with a sigmoid: mode: multi needs bias, such as -5")
        if self.mode == "single" and self.bias is not None:
            raise ValueError("bias is of the sigmoid: it changes nothing in mode: single")
        for template in self.texts():
            try:
                holes = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
            except ValueError:
                holes = []
            if holes != [""]:
                raise ValueError(f"a template has one {{}} for the label: {template!r} has not")
        return self

    def texts(self) -> tuple[str, ...]:
        """The templates as texts."""
        return TEMPLATES[self.templates] if isinstance(self.templates, str) else self.templates

    def names(self) -> list[str]:
        """The labels that are scored, in order."""
        if isinstance(self.labels, tuple):
            return list(self.labels)
        return [name for primary, below in self.labels.items() for name in below or (primary,)]

    def primaries(self) -> list[str]:
        """The primary label of each name; of a flat list, itself."""
        if isinstance(self.labels, tuple):
            return list(self.labels)
        return [primary for primary, below in self.labels.items() for _ in below or (primary,)]

    def columns(self) -> pa.Schema:
        """`label`: the best; `primary`: what it is below; `score`: of it, 0..1; `margin`: by how much it leads.

        `scores`: label -> score, and `primaries`: their primary labels in the same order.
        """
        return pa.schema(
            [
                ("label", pa.string()),
                ("primary", pa.string()),
                ("score", pa.float64()),
                ("margin", pa.float64()),
                ("scores", pa.map_(pa.string(), pa.float32())),
                ("primaries", pa.list_(pa.string())),
            ]
        )

    def score_scales(self) -> Mapping[str, Scale]:
        """From 0 to 1, comparable within one encoder, mode and label list."""
        name = f"zero-shot-{self.mode} {self.space()}"
        return {"score": Scale(name, 0, 1), "margin": Scale(f"{name} margin", 0, 1)}

    def check(self, known: Mapping[str, Iterable[str]], where: str) -> None:
        """One `embed` step is read."""
        if len(self.reads) != 1 or "embedding" not in known[self.reads[0]]:
            raise UserError(
                "reads one embed step", where=f"{where}.reads", next="reads: [look], with look: {op: embed}"
            )

    def check_scales(self, scales: Mapping[str, Mapping[str, Scale]], where: str) -> None:
        """The texts are encoded by what encoded the pictures."""
        space = scales[self.reads[0]].get("embedding")
        if space is not None and space.name != self.space():
            raise UserError(
                f"labels by {self.space()!r} do not compare with pictures by {space.name!r}",
                where=where,
                next=f"write the same model, weights and arch here as in {self.reads[0]}",
            )

    def setup(self) -> None:
        """Embed the labels, and let the encoder go.

        Raises:
            UserError: `mode: multi` and a checkpoint without a bias.
        """
        encoder = self.load("text")
        bias = encoder.logit_bias if self.bias is None else self.bias
        if self.mode == "multi" and bias is None:
            raise UserError("this checkpoint has no bias for a sigmoid", next="give bias, such as -5")
        self._factor, self._offset = self.scale or encoder.logit_scale, bias or 0.0
        self._matrix = text_matrix(encoder, self.names(), self.texts())

    def measure(self, row: Row) -> dict[str, Any]:
        """Scores of one row; all null where it has no embedding.

        Raises:
            RowFailure: ``OtherEmbedding``: it is of another width than the labels' or not of length 1.
        """
        assert self._matrix is not None, "setup() comes first"
        step = self.reads[0]
        found = vector_of(row.reads[step])
        if found is None:
            return dict.fromkeys(self.columns().names)
        vector = found.astype(np.float64)
        if len(vector) != self._matrix.shape[1]:
            more = f"{len(vector)} dimensions, the labels have {self._matrix.shape[1]}"
            raise RowFailure("OtherEmbedding", f"{step} has other dimensions than the labels", detail=more)
        norm = float(np.linalg.norm(vector))
        if not abs(norm - 1) <= NORM:
            raise RowFailure("OtherEmbedding", f"{step} is not of length 1", detail=f"length {norm:.4g}")
        logits = self._factor * (self._matrix @ vector)
        scores = softmax(logits) if self.mode == "single" else 1 / (1 + np.exp(-(logits + self._offset)))
        order = np.argsort(-scores, kind="stable")
        best = int(order[0])
        names, primaries = self.names(), self.primaries()
        return {
            "label": names[best],
            "primary": primaries[best],
            "score": float(scores[best]),
            "margin": float(scores[best] - (scores[order[1]] if len(order) > 1 else 0.0)),
            "scores": list(zip(names, scores.astype(np.float32).tolist(), strict=True)),
            "primaries": primaries,
        }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares that add up to 1."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
