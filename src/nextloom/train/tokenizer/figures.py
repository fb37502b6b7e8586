"""How well a tokenizer restores pictures: one measure for training and for `nextloom evaluate`.

A picture goes the way that extraction and generation take: `pixels.to_model`, plain codes, packed into bytes and
unpacked again, decoded, rounded to uint8. PSNR and SSIM are of uint8 sRGB, means over pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nextloom import pixels
from nextloom.tokenize.documents import Grid
from nextloom.tokenize.quantizer import bit_rule
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import pack_indices, unpack_indices
from nextloom.train.pictures.likeness import psnr
from nextloom.train.pictures.ssim import SIDE, ssim


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """A picture as the tokenizer sees it, what it makes of it, and its codes."""

    target: np.ndarray
    """(height, width, 3) uint8."""
    drawn: np.ndarray
    """Like `target`."""
    codes: np.ndarray
    """(N,) int64, scale by scale."""
    grids: Sequence[Grid]
    x: Tensor
    """(1, 3, height, width) float32: `target` as the network reads it."""
    semantic: Tensor | None
    """(1, teacher_dim, H, W) features that the semantic codes keep; None with one branch."""


@torch.no_grad()
def restore(tokenizer: Tokenizer, rgb: np.ndarray, grids: Sequence[Grid], device: str | torch.device) -> Restored:
    """One picture through stored codes.

    Args:
        tokenizer: in evaluation mode.
        rgb: (h, w, 3) uint8 of any size.
        grids: the schedule.
        device: where the tokenizer is.
    """
    (height, width), patch = grids[-1], tokenizer.config.patch
    x = torch.from_numpy(pixels.to_model(rgb, height * patch, width * patch))[None].to(device)
    codes, _ = tokenizer.tokenize(x, grids)
    stored = unpack_indices(pack_indices(codes[0].cpu().numpy(), tokenizer.config.codes))
    features = tokenizer.quantizer.features(torch.from_numpy(stored).to(device)[None], grids)
    picture, semantic = tokenizer.decode(features)
    drawn = pixels.from_model(picture[0].float().cpu().numpy())
    return Restored(pixels.from_model(x[0].cpu().numpy()), drawn, stored, grids, x, semantic)


class Figures:
    """Figures over many pictures.

    Args:
        codes: size of the codebook.
    """

    def __init__(self, codes: int) -> None:
        self._codes = codes
        self._values: dict[str, list[float]] = {}
        self._counts: list[np.ndarray] = []

    def add(self, restored: Restored, **more: float) -> None:
        """Take in one picture, and further figures of it."""
        found = {"psnr_db": psnr(restored.target, restored.drawn)}
        for name, window in (("ssim", "gaussian"), ("ssim_uniform", "uniform")):
            if min(restored.target.shape[:2]) >= SIDE[window]:
                found[name] = ssim(restored.target, restored.drawn, window)
        for name, value in {**found, **more}.items():
            self._values.setdefault(name, []).append(value)
        bounds = np.cumsum([h * w for h, w in restored.grids])[:-1]
        for scale, part in enumerate(np.split(restored.codes, bounds)):
            if scale == len(self._counts):
                self._counts.append(np.zeros(self._codes, np.int64))
            self._counts[scale] += np.bincount(part, minlength=self._codes)

    def result(self, per_scale: bool = True) -> dict[str, float]:
        """Means over pictures, and how the codebook is used.

        Returns:
            psnr_db: peak 255; ssim: 11 x 11 Gaussian window; ssim_uniform: 7 x 7 (each left out where pictures are
            smaller than its window); what `add` was told besides; codes_used: how many codes occur; perplexity: exp
            of the entropy of their frequencies; with `per_scale` both also as `name/k` for scale k from 1.
        """
        out = {name: float(np.mean(values)) for name, values in self._values.items()}
        used = {"": np.sum(self._counts, axis=0)}
        if per_scale:
            used |= {f"/{k}": counts for k, counts in enumerate(self._counts, 1)}
        for suffix, counts in used.items():
            share = counts[counts > 0] / counts.sum()
            out[f"codes_used{suffix}"] = float(len(share))
            out[f"perplexity{suffix}"] = float(np.exp(-(share * np.log(share)).sum()))
        return out


@torch.no_grad()
def remainders(tokenizer: Tokenizer, restored: Restored) -> list[float]:
    """Norm of what is left of the features after each scale, as a share of their own norm.

    The features are those that gave the codes, by the bit rule, and so are the sums.
    """
    z = tokenizer.features(restored.x)
    rest, size, out = z, z.shape[-2:], []
    sizes = [h * w for h, w in restored.grids]
    with bit_rule(z.device):
        for grid, part in zip(restored.grids, np.split(restored.codes, np.cumsum(sizes)[:-1]), strict=True):
            codes = torch.from_numpy(part).to(z.device)[None]
            rest = rest - tokenizer.quantizer.features(codes, [grid], (int(size[0]), int(size[1])))
            out.append(float(rest.norm() / z.norm()))
    return out
