"""Where each stage of a tokenizer's training begins: first weights, what is frozen, and the frozen teacher.

    pixel     random
    joint     random; pixel encoder, decoder and codebook of a stage-1 tokenizer, semantic encoder of a SigLIP2
    decoder   a finished tokenizer with a new, random pixel decoder, which alone is trained

Random weights follow from the seed whatever replaces them, so two stages that share a part start it alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nextloom.model_files import load_tensors
from nextloom.tokenize import teacher as teachers
from nextloom.tokenize.siglip import SiglipTower
from nextloom.tokenize.teacher import Teacher
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import WEIGHTS_FILE, TokenizerConfig
from nextloom.train.tokenizer.patch_gan import Adversarial, PatchGan
from nextloom.train.tokenizer.recipe import TokenizerRecipe

PIXEL_PARTS = ("pixel_encoder.", "to_pixel.", "quantizer.pixel", "from_pixel.", "pixel_decoder.")
"""Parameters that stage `joint` takes from stage `pixel`."""
NEW_PARTS = ("pixel_decoder.",)
"""Parameters that stage `decoder` makes anew and trains."""


def make_model(recipe: TokenizerRecipe, config: TokenizerConfig) -> nn.Module:
    """The model of a recipe's first step: a `Tokenizer`, or an `Adversarial` that holds one.

    Args:
        recipe: stage, seed and folders of first weights.
        config: of the network, from `nextloom.train.tokenizer.inputs.network`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        tokenizer = Tokenizer(config)
        rival = PatchGan(recipe.gan_channels, recipe.gan_layers) if recipe.gan_weight else None
    start = recipe.init_from
    if start.pixel:
        _take(tokenizer, start.pixel, lambda name: name.startswith(PIXEL_PARTS))
    if start.semantic and isinstance(tokenizer.semantic_encoder, SiglipTower):
        tokenizer.semantic_encoder.load_state_dict(SiglipTower.published(start.semantic).state_dict())
    if start.tokenizer:
        _take(tokenizer, start.tokenizer, lambda name: not name.startswith(NEW_PARTS))
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(recipe.stage != "decoder" or name.startswith(NEW_PARTS))
    return Adversarial(tokenizer, rival) if rival else tokenizer


def make_teacher(recipe: TokenizerRecipe, config: TokenizerConfig, device: torch.device) -> Teacher | None:
    """The frozen teacher of a recipe, None in the stages without a semantic loss."""
    if not recipe.needs_teacher:
        return None
    return teachers.make_teacher(config, recipe.init_from.semantic).to(device).to(memory_format=torch.channels_last)


def _take(tokenizer: Tokenizer, folder: str, wanted: Callable[[str], bool]) -> None:
    """Copy the weights that `wanted` names out of a tokenizer's folder; all of them must be there."""
    own: dict[str, Tensor] = tokenizer.state_dict()
    names = [name for name in own if wanted(name)]
    shapes = {name: tuple(own[name].shape) for name in names}
    found = load_tensors(Path(folder) / WEIGHTS_FILE, shapes, next="train it again: nextloom train RECIPE")
    tokenizer.load_state_dict({**own, **{name: found[name] for name in names}})
