"""What is particular to training a tokenizer; the loop that drives it is shared with every other training.

A step is an integer, and everything a step does follows from it: which pictures (`sampling.py`), which scales are
dropped, whether the discriminator takes part. So a run resumes at any step with any number of workers.

Losses, each with its weight: mean squared error of the picture, the quantiser's L_vq, 1 - cosine to the teacher's
features (stage `joint`), LPIPS where its weights are named, and hinge losses against a PatchGAN from `gan_from` on.
The teacher's features of a picture never change, so they are computed once and kept while there is room.
"""

from __future__ import annotations

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
from nextloom.train.pictures.sheet import sheet, spread
from nextloom.train.tokenizer.figures import Figures, remainders, restore
from nextloom.train.tokenizer.gallery import Gallery
from nextloom.train.tokenizer.inputs import network
from nextloom.train.tokenizer.lpips import Lpips
from nextloom.train.tokenizer.patch_gan import Adversarial, tokenizer_of
from nextloom.train.tokenizer.recipe import TokenizerRecipe
from nextloom.train.tokenizer.sampling import Order
from nextloom.train.tokenizer.stages import make_model, make_teacher

CACHED_BYTES = 2**28
"""Model inputs and teacher features that stay in memory."""
JUDGED, SHOWN = 256, 16
"""Pictures that `evaluate` reads at most, and `show`."""


class TokenizerTask:
    """Tokenizer training over pictures.

    Args:
        recipe: what to train.
        pictures: (height, width, 3) uint8 arrays of any size, or the `Gallery` of a release; their order is part of
            the run's identity.
        device: where batches are built.
        ids: of the pictures, which say what is held out; default: their numbers.
        weights: of the pictures, where the recipe weighs them.

    Raises:
        UserError: no picture, one beyond 4:1, fewer than are to be held out, or first weights that are absent.
    """

    def __init__(
        self,
        recipe: TokenizerRecipe,
        pictures: Sequence[np.ndarray],
        device: str | torch.device = "cpu",
        *,
        ids: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        if len(pictures) == 0:
            raise UserError("no pictures to train a tokenizer on", next="nextloom release RECIPE")
        self.recipe, self.pictures, self.device = recipe, pictures, torch.device(device)
        self.config = network(recipe)
        self.held = self._held(np.arange(len(pictures)) if ids is None else ids)
        self.buckets: dict[int, list[int]] = {}
        shapes = pictures.shapes if isinstance(pictures, Gallery) else [picture.shape[:2] for picture in pictures]
        for number, shape in enumerate(shapes):
            try:
                row = bucket(*shape, recipe.scales)
            except ValueError as error:
                raise UserError(str(error), where=f"picture {number}", next="leave it out by a select step") from None
            if number not in self.held:
                self.buckets.setdefault(row, []).append(number)
        self.order = Order(self.buckets, recipe.batch, recipe.seed, weights)
        self.teacher = make_teacher(recipe, self.config, self.device)
        self.lpips = Lpips.load(recipe.lpips).to(self.device) if recipe.lpips and recipe.lpips_weight else None
        self._input = lru_cache(maxsize=self._room())(self._prepare)

    def build(self) -> nn.Module:
        """A fresh model, whose weights follow from the seed and from `init_from`."""
        return make_model(self.recipe, self.config).to(self.device).to(memory_format=torch.channels_last)

    def grids(self, row: int) -> tuple[Grid, ...]:
        """The schedule of pictures in bucket `row`."""
        return schedule(FINAL_GRIDS[row], self.recipe.scales)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """This worker's slice of step `step`: a pure function of its arguments.

        Returns:
            pictures (b, 3, h, w) float32, schedule () int64, and with a teacher its features, teacher (b, C, H, W)
            float32; b = batch / world.
        """
        size = self.recipe.batch
        assert size % world == 0, f"batch {size} is no multiple of {world} workers"
        row, numbers = self.order.at(step)
        share = size // world
        mine = [self._input(number, row) for number in numbers[rank * share : (rank + 1) * share]]
        out = {
            "pictures": torch.stack([m[0] for m in mine]).contiguous(memory_format=torch.channels_last),
            "schedule": torch.tensor(row),
        }
        if self.teacher is not None:
            out["teacher"] = torch.stack([features for _, features in mine if features is not None])
        return out

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        """Sum of the pictures' losses, their number, and the means that are worth a curve."""
        recipe, x, count = self.recipe, batch["pictures"], len(batch["pictures"])
        grids: Sequence[Grid] = self.grids(int(batch["schedule"]))
        if recipe.drop and step < recipe.drop_until * recipe.steps:
            grids = drop_scales(grids, recipe.drop, ("scales", recipe.seed, step))
        extra: dict[str, Tensor] = {}
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            out = model(x, grids)
        picture = out.picture.float()
        losses = {"mse": F.mse_loss(picture, x), "vq": out.vq}
        if "teacher" in batch:
            losses["semantic"] = (1 - F.cosine_similarity(out.semantic.float(), batch["teacher"], dim=1)).mean()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            if self.lpips is not None:
                losses["lpips"] = self.lpips(picture, x).mean()
            if isinstance(model, Adversarial) and step >= recipe.gan_from:
                losses["gan"], losses["judged"], extra = model.losses(x, picture)
        weights = {name: getattr(recipe, f"{name}_weight", 1.0) for name in losses}
        total = sum((weights[name] * value for name, value in losses.items()), start=x.new_zeros(()))
        return total * count, count, {name: value.detach() for name, value in {**losses, **extra}.items()}

    def save(self, model: nn.Module, folder: str | Path) -> None:
        """Write the tokenizer's folder; a discriminator is no part of it."""
        tokenizer_of(model).save(folder)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, pictures: Sequence[np.ndarray] | None = None) -> dict[str, float]:
        """Quality after a round trip through stored codes.

        Args:
            model: as `build` gives it.
            pictures: default: those held out, or (at most `JUDGED`) training pictures where none are.

        Returns:
            As `Figures.result`, with semantic_cosine (mean cosine to the teacher's features, where there is one) and
            rest/k: norm of what scales 1 to k leave of the features, as a share of their norm.
        """
        tokenizer = tokenizer_of(model)
        was_training = tokenizer.training
        tokenizer.eval()
        figures = Figures(self.config.codes)
        for picture in self._judged(JUDGED) if pictures is None else pictures:
            grids = self.grids(self._row(picture))
            restored = restore(tokenizer, picture, grids, self.device)
            more = {f"rest/{k}": rest for k, rest in enumerate(remainders(tokenizer, restored), 1)}
            if self.teacher is not None and restored.semantic is not None:
                target = self.teacher(restored.x, grids[-1])
                more["semantic_cosine"] = F.cosine_similarity(restored.semantic, target, dim=1).mean().item()
            figures.add(restored, **more)
        tokenizer.train(was_training)
        return figures.result()

    @torch.no_grad()
    def show(self, model: nn.Module) -> np.ndarray:
        """A sheet of judged pictures (above) and their reconstructions."""
        tokenizer = tokenizer_of(model)
        was_training = tokenizer.training
        tokenizer.eval()
        chosen = self._judged(SHOWN)
        made = [restore(tokenizer, p, self.grids(self._row(p)), self.device) for p in chosen]
        tokenizer.train(was_training)
        lines = [[one.target for one in made], [one.drawn for one in made]]
        return np.asarray(sheet(lines, [""] * len(made), 8))

    def _judged(self, room: int) -> list[np.ndarray]:
        numbers = sorted(self.held) or range(len(self.pictures))
        return [self.pictures[numbers[i]] for i in spread(len(numbers), room)]

    def _held(self, ids: np.ndarray) -> set[int]:
        """Numbers of the pictures that are held out: those with the lowest hashes of their ids."""
        wanted = self.recipe.held
        if wanted >= len(ids):
            raise UserError(
                f"{wanted} of {len(ids)} pictures are to be held out; none would be left", where="held", next="lower it"
            )
        return set(np.argsort(hash64(ids, "held", self.recipe.seed), kind="stable")[:wanted].tolist())

    def _row(self, picture: np.ndarray) -> int:
        return bucket(picture.shape[0], picture.shape[1], self.recipe.scales)

    def _prepare(self, number: int, row: int) -> tuple[Tensor, Tensor | None]:
        (height, width), patch = self.grids(row)[-1], self.config.patch
        x = pixels.to_model(self.pictures[number], height * patch, width * patch)
        x = torch.from_numpy(x).to(self.device)
        return x, None if self.teacher is None else self.teacher(x[None], (height, width))[0]

    def _room(self) -> int:
        """Pictures whose input and features fit into `CACHED_BYTES`."""
        cells = max(h * w for h, w in (self.grids(row)[-1] for row in self.buckets))
        return max(
            self.recipe.batch, CACHED_BYTES // (4 * cells * (3 * self.config.patch**2 + self.config.teacher_dim))
        )
