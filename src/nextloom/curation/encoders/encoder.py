"""What an encoder is: pictures and texts as points of one space, in which the cosine says how well they fit.

One file per library beside this one. An encoder is loaded for one side, so that the step that embeds pictures does
not hold the text network, nor the other way round. Outputs are as the network gives them; `unit` brings them to
length 1. Price paid: one text at a time, and on a CPU one picture at a time, because the size of a batch changes
the last bits of a matrix product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

Side = Literal["image", "text"]

LONGEST = 100
"""Longest picture, as long side over short side, of encoders that scale the short side: a strip of 1 x 100,000
pixels would become one of 224 x 22 million."""


class Encoder(ABC):
    """Loaded weights. `side` says what it is for; asking for the other side is an error of ours."""

    logit_scale: float
    """Factor on cosines, as the checkpoint was trained (its temperature's inverse)."""
    logit_bias: float | None
    """Added to scaled cosines before a sigmoid; None where the checkpoint was trained with a softmax."""

    @abstractmethod
    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(n, dim) float32, of pictures (height, width, 3) uint8 sRGB."""

    @abstractmethod
    def text(self, text: str) -> np.ndarray:
        """(dim,) float32 of one text."""


def unit(vector: np.ndarray) -> np.ndarray:
    """`vector` (dim,) at length 1, float32.

    Raises:
        ArithmeticError: it has no direction: all zeros, or not finite.
    """
    vector = np.asarray(vector, np.float32)
    norm = np.linalg.norm(vector)
    if not np.isfinite(norm) or norm == 0:
        raise ArithmeticError("the embedding has no direction: it is zero or not finite")
    return vector / norm


class Strip(ValueError):
    """An image beyond `LONGEST`, which no encoder is asked about; the message is the same for all."""

    def __init__(self) -> None:
        super().__init__(f"longer than {LONGEST}:1, which this encoder cannot take")


def refuse_strip(rgb: np.ndarray) -> None:
    """Raises a `Strip` for an image beyond `LONGEST`."""
    height, width = rgb.shape[:2]
    if max(height, width) > LONGEST * min(height, width):
        raise Strip


def one_thread(device: str) -> None:
    """On a CPU, PyTorch with one thread: workers share the machine, and the number of threads changes last bits."""
    if device == "cpu":
        import torch

        torch.set_num_threads(1)
