"""What a decoder is asked to draw: the captions of a release, or prompts of one's own, as its own text ids.

A decoder's `config.json` says which release and which columns it was trained on. Captions must come from a text
column of the same fingerprint, prompts go through the same text tokenizer; anything else is refused, since other ids
would draw other things without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextloom.errors import UserError
from nextloom.op import Row
from nextloom.store.release import Release, open_release
from nextloom.tokenize.text_tokens import BYTES, ID_DTYPE, TextTokens


@dataclass(frozen=True, eq=False)
class Prompts:
    """n prompts in the order in which they are drawn."""

    ids: np.ndarray
    """(n,) int64: rows of the release; their places for prompts of one's own."""
    texts: list[list[int]]
    """Text ids."""
    schedules: np.ndarray
    """(n,) schedule ids: the aspect ratio of each drawing."""


def trained_release(dataset: str, about: Mapping[str, Any]) -> Release:
    """The release that a decoder was trained on.

    Args:
        dataset: folder of the dataset.
        about: the decoder's `config.json`.

    Raises:
        UserError: the dataset has none of this name and content.
    """
    release = open_release(dataset, about["release"])
    if release.digest != about["release_digest"]:
        raise UserError(
            f"release {about['release']} of this dataset is not the one the decoder was trained on",
            where="dataset",
            next="name the dataset it was trained on, or train the decoder again: nextloom train RECIPE",
        )
    return release


def released(release: Release, about: Mapping[str, Any]) -> Prompts:
    """Captions of all rows of a release that have text and picture tokens.

    Raises:
        UserError: the release lacks the decoder's columns, its captions were made by another text tokenizer, or no
            row has both tokens.
    """
    wanted = _text(about)
    text = release.column(wanted["step"], ["ids", "error"])
    images = release.column(about["images"]["step"], ["schedule", "error"])
    there = release.columns[wanted["step"]]["fingerprint"]
    if there != wanted["fingerprint"]:
        raise UserError(
            f"text column {wanted['step']!r} of release {release.name} has fingerprint {there}, the decoder was "
            f"trained on {wanted['fingerprint']}",
            where="release",
            next=f"leave release out to draw {about['release']}, or train the decoder again: nextloom train RECIPE",
        )
    good = text["error"].is_null().to_numpy(False) & images["error"].is_null().to_numpy(False)
    if not good.any():
        raise UserError(
            f"no row of release {release.name} has tokens", where="release", next="nextloom run RECIPE --retry-errors"
        )
    ids = [np.frombuffer(raw, ID_DTYPE).tolist() for raw in text.filter(good)["ids"].to_pylist()]
    return Prompts(text["id"].to_numpy()[good], ids, images.filter(good)["schedule"].to_numpy())


def encoded(prompts: Sequence[str], about: Mapping[str, Any], text_tokenizer: str | None, schedule: int) -> Prompts:
    """Prompts of one's own, through the text tokenizer of the decoder's captions.

    Args:
        prompts: any text.
        about: the decoder's `config.json`.
        text_tokenizer: path of the `tokenizer.json`; not needed for bytes.
        schedule: of every drawing.

    Raises:
        UserError: the decoder learnt no captions, or this is not the file its captions were made with.
    """
    config = _text(about)["config"]
    fields = {name: config[name] for name in ("column", "empty")}
    op = TextTokens(tokenizer=BYTES if config["tokenizer"] == BYTES else text_tokenizer or "", **fields)
    if config["tokenizer"] != BYTES:
        if text_tokenizer is None:
            raise UserError(
                "the decoder's captions were made with a tokenizer.json; prompts need it too",
                where="text_tokenizer",
                next="--set text_tokenizer=PATH",
            )
        here = op.identity()["tokenizer"]
        if here != config["tokenizer"]:
            raise UserError(
                f"this file has digest {here[:12]}, the decoder's captions were made with {config['tokenizer'][:12]}",
                where="text_tokenizer",
                next="name the file that the text_tokens step used",
            )
    op.setup()
    try:
        values = [op.measure(Row(k, "", source={op.column: prompt})) for k, prompt in enumerate(prompts)]
    except ValueError:
        raise UserError("an empty prompt; the decoder's captions are not", where="prompts") from None
    texts = [np.frombuffer(value["ids"], ID_DTYPE).tolist() for value in values]
    return Prompts(np.arange(len(texts)), texts, np.full(len(texts), schedule))


def _text(about: Mapping[str, Any]) -> Mapping[str, Any]:
    if about["text"] is None:
        raise UserError(
            "this decoder was trained without captions", where="decoder", next="train it on a plan with text"
        )
    return about["text"]
