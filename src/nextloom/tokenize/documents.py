"""A document: an ordered run of text and images, with what a packer needs to know about its cost.

An image of K scales takes 1 + n_2 + ... + n_K + 1 positions: `<boi>` (which predicts the single code of scale 1),
the inputs of scales 2..K, `<eoi>`. A position sees its document's earlier blocks and the whole of its own block;
each text token, `<boi>` and `<eoi>` is a block of one, each scale a block (model specification, section 1(d)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Grid = tuple[int, int]
"""(rows, columns) of codes."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A run of text tokens: `ids` (n,) integers below the text vocabulary; `loss` says whether it is learnt."""

    ids: np.ndarray
    loss: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One image as codes.

    `grids`: K grids, the first (1, 1). `inputs`, `targets`: (sum of n_k,) integers below the codebook size, scale by
    scale, row-major: what the model reads and what it predicts (they differ under self-correction).
    """

    grids: tuple[Grid, ...]
    inputs: np.ndarray
    targets: np.ndarray
    loss: bool = True


Segment = Text | Picture
Document = Sequence[Segment]


def picture_blocks(grids: Sequence[Grid]) -> list[int]:
    """Block sizes of one image: 1 for `<boi>`, n_k for k = 2..K, 1 for `<eoi>`."""
    return [1, *(h * w for h, w in grids[1:]), 1]


def cost(blocks: Sequence[int]) -> tuple[int, int]:
    """(tokens, visible query-key pairs) of a document with these block sizes, in order."""
    tokens = pairs = 0
    for size in blocks:
        tokens += size
        pairs += size * tokens
    return tokens, pairs
