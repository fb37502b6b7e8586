"""What is particular to training a tokenizer; the loop that drives it is shared with every other training.

A step is an integer, and everything a step does follows from it: which pictures (a hashed permutation per
epoch, cut into batches of one shape each), which scales are dropped. So a run resumes at any step with any
number of workers.

Losses: mean squared error of the picture, the quantiser's L_vq, and 1 - cosine to the teacher's features. The
teacher's features of a picture never change, so they are computed once and kept (the last `CACHED` pictures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextloom import pixels
from nextloom.errors import UserError
from nextloom.hashing import hash64
from nextloom.tokenize.documents import Grid
from nextloom.tokenize.quantizer import drop_scales
from nextloom.tokenize.schedule import FINAL_GRIDS, bucket, schedule
from nextloom.tokenize.teacher import Teacher
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.train.recipe import TokenizerRecipe

CACHED = 4096
"""Pictures whose model input and teacher features stay in memory (about 45 kB each at 48 pixels)."""


class TokenizerTask:
    """Tokenizer training over pictures held in memory.

    Args:
        recipe: what to train.
        pictures: (height, width, 3) uint8 arrays of any size; their order is part of the run's identity.
        device: where batches are built.

    Raises:
        UserError: no picture, or one beyond 4:1.
    """

    def __init__(
        self, recipe: TokenizerRecipe, pictures: Sequence[np.ndarray], device: str | torch.device = "cpu"
    ) -> None:
        if len(pictures) == 0:
            raise UserError("no pictures to train a tokenizer on", next="nextloom release RECIPE")
        self.recipe, self.pictures, self.device = recipe, pictures, torch.device(device)
        self.buckets: dict[int, list[int]] = {}
        for number, picture in enumerate(pictures):
            try:
                row = self._row(picture)
            except ValueError as error:
                raise UserError(str(error), where=f"picture {number}", next="leave it out by a select step") from None
            self.buckets.setdefault(row, []).append(number)
        self.teacher = Teacher().to(self.device).to(memory_format=torch.channels_last)
        self._input = lru_cache(maxsize=CACHED)(self._prepare)
        self._order = lru_cache(maxsize=2)(self._epoch)

    def build(self) -> nn.Module:
        """A fresh tokenizer whose weights follow from the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            model = Tokenizer(self.recipe.tokenizer)
        return model.to(self.device).to(memory_format=torch.channels_last)

    def grids(self, row: int) -> tuple[Grid, ...]:
        """The schedule of pictures in bucket `row`."""
        return schedule(FINAL_GRIDS[row], self.recipe.scales)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """This worker's slice of step `step`: a pure function of its arguments.

        Returns:
            pictures (b, 3, h, w) float32, teacher (b, C, H, W) float32, schedule () int64; b = batch / world.
        """
        size = self.recipe.batch
        assert size % world == 0, f"batch {size} is no multiple of {world} workers"
        per_epoch = sum(math.ceil(len(numbers) / size) for numbers in self.buckets.values())
        row, numbers = self._order(step // per_epoch)[step % per_epoch]
        share = size // world
        mine = [self._input(number, row) for number in numbers[rank * share : (rank + 1) * share]]
        return {
            "pictures": torch.stack([m[0] for m in mine]).contiguous(memory_format=torch.channels_last),
            "teacher": torch.stack([m[1] for m in mine]),
            "schedule": torch.tensor(row),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        """Sum of the pictures' losses, their number, and the means that are worth a curve."""
        recipe, x, count = self.recipe, batch["pictures"], len(batch["pictures"])
        grids: Sequence[Grid] = self.grids(int(batch["schedule"]))
        if recipe.drop and step < recipe.drop_until * recipe.steps:
            grids = drop_scales(grids, recipe.drop, ("scales", recipe.seed, step))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            out = model(x, grids)
        mse = F.mse_loss(out.picture.float(), x)
        semantic = (1 - F.cosine_similarity(out.semantic.float(), batch["teacher"], dim=1)).mean()
        total = recipe.mse_weight * mse + recipe.vq_weight * out.vq + recipe.semantic_weight * semantic
        metrics = {"mse": mse, "vq": out.vq, "semantic": semantic}
        return total * count, count, {name: value.detach() for name, value in metrics.items()}

    def save(self, model: nn.Module, folder: str | Path) -> None:
        """Write the tokenizer's folder."""
        assert isinstance(model, Tokenizer)
        model.save(folder)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, pictures: Sequence[np.ndarray] | None = None) -> dict[str, float]:
        """Quality after a round trip through stored codes.

        Returns:
            psnr_db: mean over pictures, peak 2 in [-1, 1]; semantic_cosine: mean cosine to the teacher's
            features; codes_used: how many codes occur; perplexity: exp of the entropy of code frequencies.
        """
        assert isinstance(model, Tokenizer)
        was_training = model.training
        model.eval()
        psnr, cosine, counts = [], [], torch.zeros(self.recipe.tokenizer.codes)
        for picture in self.pictures if pictures is None else pictures:
            row = self._row(picture)
            x, target = (t[None] for t in self._prepare_picture(picture, row))
            codes, _ = model.tokenize(x, self.grids(row))
            drawn, semantic = model.decode(model.quantizer.features(codes, self.grids(row)))
            psnr.append(10 * math.log10(4 / max(F.mse_loss(drawn.clamp(-1, 1), x).item(), 1e-10)))
            cosine.append(F.cosine_similarity(semantic, target, dim=1).mean().item())
            counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
        model.train(was_training)
        share = counts[counts > 0] / counts.sum()
        return {
            "psnr_db": float(np.mean(psnr)),
            "semantic_cosine": float(np.mean(cosine)),
            "codes_used": float(len(share)),
            "perplexity": float(torch.exp(-(share * share.log()).sum())),
        }

    def _row(self, picture: np.ndarray) -> int:
        return bucket(picture.shape[0], picture.shape[1], self.recipe.scales)

    def _prepare(self, number: int, row: int) -> tuple[Tensor, Tensor]:
        return self._prepare_picture(self.pictures[number], row)

    def _prepare_picture(self, picture: np.ndarray, row: int) -> tuple[Tensor, Tensor]:
        (height, width), patch = self.grids(row)[-1], self.recipe.tokenizer.patch
        x = torch.from_numpy(pixels.to_model(picture, height * patch, width * patch)).to(self.device)
        return x, self.teacher(x[None], (height, width))[0]

    def _epoch(self, epoch: int) -> list[tuple[int, list[int]]]:
        """The batches of one epoch: (bucket, picture numbers); a last short batch is filled from its start."""
        size, batches = self.recipe.batch, []
        for row, numbers in sorted(self.buckets.items()):
            order = _shuffled(len(numbers), "pictures", self.recipe.seed, epoch, row)
            shuffled = np.resize(np.asarray(numbers)[order], math.ceil(len(numbers) / size) * size)
            batches += [(row, part.tolist()) for part in shuffled.reshape(-1, size)]
        return [batches[i] for i in _shuffled(len(batches), "batches", self.recipe.seed, epoch)]


def _shuffled(count: int, *names: str | int) -> np.ndarray:
    """range(count) in the order of its hashes."""
    return np.argsort(hash64(np.arange(count), *names), kind="stable")
