"""What is particular to training a decoder; the loop that drives it is shared with every other training.

A step's packs are laid out as one sequence: attention keeps documents apart, so it is the same sum of losses, in
larger matrix products. The caption carries no loss, the picture does, with its scales reweighted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nextloom.errors import UserError
from nextloom.hashing import hash64
from nextloom.model.config import ModelConfig
from nextloom.model.layout import lay_out
from nextloom.model.transformer import Batch, NextFlow
from nextloom.model_files import check_shapes, load_tensors, read_json
from nextloom.tokenize.documents import Document
from nextloom.tokenize.tokenizer_config import CONFIG_FILE, WEIGHTS_FILE
from nextloom.tokenize.tokenizer_config import digest as tokenizer_digest
from nextloom.train.decoder.data import PackedData
from nextloom.train.decoder.inputs import open_decoder_data
from nextloom.train.decoder.recipe import DecoderRecipe
from nextloom.train.engine.loop import Metrics

EVALUATED = 256
"""Samples that `evaluate` reads at most."""


class DecoderTask:
    """Decoder training over packs.

    Args:
        recipe: what to train.
        data: its documents.
        codebook: (codes, semantic_dim + pixel_dim) row-normalised, where the code vectors start.
        about: what the saved model says about its data, besides its own configuration.
        device: where batches are built.
    """

    def __init__(
        self,
        recipe: DecoderRecipe,
        data: PackedData,
        codebook: Tensor,
        about: dict[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.recipe, self.data, self.codebook = recipe, data, codebook
        self.about, self.device = about or {}, torch.device(device)

    @classmethod
    def open(cls, recipe: DecoderRecipe, device: str | torch.device = "cpu") -> DecoderTask:
        """The task of a recipe; everything it names is opened and checked."""
        from nextloom.tokenize.tokenizer import Tokenizer

        plan, release = open_decoder_data(recipe)
        images, text = plan.receipt["images"], plan.receipt["text"]
        about = {
            "tokenizer": tokenizer_digest(recipe.tokenizer),
            "release": release.name,
            "release_digest": release.digest,
            "images": {"step": images, **release.columns[images]},
            "text": {"step": text, **release.columns[text]} if text else None,
        }
        codebook = Tokenizer.load(recipe.tokenizer).codebook()
        return cls(recipe, PackedData(plan, release, recipe.seed, recipe.null_prompt), codebook, about, device)

    def build(self) -> nn.Module:
        """A fresh decoder whose weights follow from the seed and the codebook."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            model = NextFlow(self.recipe.model)
        model.init_codes(self.codebook)
        return model.to(self.device)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """This worker's packs of step `step`: a pure function of its arguments."""
        packs = self.data.packs_of(step, self.recipe.packs_per_step, rank, world)
        return self.layout([document for epoch, pack in packs for document in self.data.documents(pack, epoch)])

    def layout(self, documents: Sequence[Document]) -> Batch:
        """Documents as one sequence on the device.

        Raises:
            UserError: ids or codes beyond the model's vocabulary, or more scales than it has.
        """
        try:
            layout = lay_out(documents, self.recipe.model, self.recipe.alpha)
        except ValueError as error:
            raise UserError(
                str(error), where="model", next="--set model.text_vocab=..., large enough for the captions' tokenizer"
            ) from error
        return Batch.of(layout, self.device)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, int, Metrics]:
        """Weighted sum of the codes' cross entropies in nats, their number, and the mean per scale, unweighted."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            out = model(batch)
        pairs = zip(out.scale_sums, out.scale_counts, strict=True)
        return out.total, out.supervised, {f"scale_{k}": pair for k, pair in enumerate(pairs) if k}

    def save(self, model: nn.Module, folder: str | Path) -> None:
        """Write `config.json` (the model, and what its data were) and `model.safetensors`."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        config = {"model": self.recipe.model.model_dump(mode="json"), "alpha": self.recipe.alpha, **self.about}
        (path / CONFIG_FILE).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, path / WEIGHTS_FILE)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss per code on (at most `EVALUATED`) training samples, with their captions and with each other's.

        Returns:
            loss: weighted as in training; loss_shuffled: the same with every caption given to another sample, by a
            hashed cyclic order; scale_k: unweighted, with right captions. Without captions the second is absent.
        """
        chosen = [int(s) for pack in range(len(self.data)) for s in self.data.samples(pack)][:EVALUATED]
        order = np.asarray(chosen)[np.argsort(hash64(np.asarray(chosen), "shuffle", self.recipe.seed))]
        other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
        right = self._mean(model, [self.data.document(s) for s in chosen])
        if self.data.plan.receipt["text"] is None:
            return right
        wrong = self._mean(model, [self.data.document(s, caption_of=other[s]) for s in chosen])
        return {**right, "loss_shuffled": wrong["loss"]}

    def _mean(self, model: nn.Module, documents: Sequence[Document], size: int = 16) -> dict[str, float]:
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for start in range(0, len(documents), size):
            total, count, metrics = self.loss(model, self.layout(documents[start : start + size]), 0)
            for name, (value, weight) in {"loss": (total, count), **metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
                counts[name] = counts.get(name, 0.0) + float(weight)
        return {name: sums[name] / counts[name] for name in sums if counts[name]}


def load_decoder(folder: str | Path) -> tuple[NextFlow, dict[str, Any]]:
    """The decoder in a folder, in evaluation mode and frozen, and its `config.json`.

    Raises:
        UserError: there is none, or configuration and weights do not fit; nothing of their size is allocated before.
    """
    path, weights = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise UserError("no decoder in this folder", where=str(folder), next="nextloom train RECIPE")
    config, again = read_json(path), "train it again: nextloom train RECIPE"
    try:
        sizes = ModelConfig.model_validate(config.get("model"))
    except ValueError as error:
        raise UserError(f"no configuration of a decoder: {error}", where=str(path), next=again) from None
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in NextFlow(sizes).state_dict().items()}
    check_shapes(weights, wanted, next=again)
    model = NextFlow(sizes)
    model.load_state_dict(load_tensors(weights, wanted, next=again))
    return model.requires_grad_(False).eval(), config
