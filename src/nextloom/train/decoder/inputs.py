"""What a decoder's training reads, checked before anything heavy is imported.

A pack plan, the release it was made for, the tokenizer that made the release's codes and the model must fit each
other. All of it is told by small documents, so a mismatch costs a second and not half a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextloom.errors import UserError
from nextloom.store.release import Release, open_release
from nextloom.tokenize.packing import PackPlan, PackSamples, lengths_digest, open_plan, read_lengths
from nextloom.tokenize.text_tokens import BYTES
from nextloom.tokenize.tokenizer_config import digest as tokenizer_digest
from nextloom.tokenize.tokenizer_config import read_config
from nextloom.train.decoder.recipe import DecoderRecipe

BYTE_IDS = 256


def decoder_inputs(recipe: DecoderRecipe) -> dict[str, Any]:
    """Digests of plan, release and tokenizer, checked against each other.

    Raises:
        UserError: as `open_decoder_data`.
    """
    plan, release = open_decoder_data(recipe)
    return {"plan": plan.fingerprint, "release": release.digest, "tokenizer": tokenizer_digest(recipe.tokenizer)}


def open_decoder_data(recipe: DecoderRecipe) -> tuple[PackPlan, Release]:
    """The plan and the release of a decoder's training, after all checks that need no token.

    Raises:
        UserError: something is absent, or plan, release, tokenizer and model do not belong together.
    """
    plan = open_plan(recipe.dataset, recipe.packs)
    release = open_release(recipe.dataset, recipe.release or plan.receipt["release"])
    if release.digest != plan.receipt["release_digest"]:
        op = PackSamples(**{k: v for k, v in plan.receipt["config"].items() if k != "version"})
        if lengths_digest(read_lengths(op, release)[0]) != plan.receipt["lengths_digest"]:
            raise UserError(
                f"release {release.name} has other lengths than pack plan {plan.name!r}, made for "
                f"{plan.receipt['release']}",
                where="release",
                next="nextloom pack RECIPE, or leave release out",
            )
    _check_tokenizer(recipe, plan, release)
    _check_model(recipe, plan, release)
    return plan, release


def _check_tokenizer(recipe: DecoderRecipe, plan: PackPlan, release: Release) -> None:
    config = read_config(recipe.tokenizer)
    try:
        here = tokenizer_digest(recipe.tokenizer)
    except FileNotFoundError as error:
        raise UserError(f"an incomplete tokenizer: {error}", where="tokenizer", next="nextloom train RECIPE") from None
    there = release.columns[plan.receipt["images"]]["config"].get("tokenizer")
    codes = {name: c["config"]["tokenizer"] for name, c in release.columns.items() if c["op"] == "image_tokens"}
    if len(set(codes.values())) > 1:
        told = ", ".join(f"{name} by {made}" for name, made in codes.items())
        raise UserError(
            f"the columns of release {release.name} were made by different tokenizers: {told}",
            where="release",
            next="nextloom run RECIPE with one tokenizer for all of them, or a release of one of these columns",
        )
    if here != there:
        raise UserError(
            f"{Path(recipe.tokenizer)} has digest {here}, but the codes of release {release.name} were made by a "
            f"tokenizer with digest {there}",
            where="tokenizer",
            next="nextloom run RECIPE, release and pack with this tokenizer, or name the one that made the codes",
        )
    for name in ("codes", "semantic_dim", "pixel_dim"):
        wanted, given = getattr(config, name), getattr(recipe.model, name)
        if wanted != given:
            raise UserError(
                f"the tokenizer has {wanted}, this says {given}",
                where=f"model.{name}",
                next=f"--set model.{name}={wanted}",
            )


def _check_model(recipe: DecoderRecipe, plan: PackPlan, release: Release) -> None:
    """The model has room for the release's scales and, where their number is known, its text ids."""
    model, columns = recipe.model, release.columns
    scales = columns[plan.receipt["images"]]["config"]["scales"]
    if scales > model.max_scales:
        raise UserError(
            f"the pictures of release {release.name} have {scales} scales, this says at most {model.max_scales}",
            where="model.max_scales",
            next=f"--set model.max_scales={scales}",
        )
    text = plan.receipt["text"]
    if text and columns[text]["config"]["tokenizer"] == BYTES and model.text_vocab < BYTE_IDS:
        raise UserError(
            f"captions are bytes, {BYTE_IDS} ids; this says {model.text_vocab}",
            where="model.text_vocab",
            next=f"--set model.text_vocab={BYTE_IDS}",
        )
