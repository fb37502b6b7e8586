"""Drawing pictures from captions, and saying honestly how good they are.

For captions out of a release the picture behind each caption is known, so the sheet shows three rows (the picture,
the tokenizer's reconstruction of it, the drawing) and the summary counts how often a drawing's nearest picture, among
all of the release, is its own. Rows that the decoder's own release has are captions it has seen in training; others
are counted apart. Prompts of one's own have no such figure.

Everything is drawn into `<output>.part` and swapped in as a whole, so a summary and the pictures beside it are of one
drawing. It is fresh while decoder, tokenizer, captions and settings are the same, wherever they lie.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from nextloom import pixels
from nextloom.config import Model, RootPath, load_yaml, override, validate
from nextloom.errors import UserError
from nextloom.io import is_uri
from nextloom.op import digest
from nextloom.store.release import Release, open_release
from nextloom.tokenize.documents import Grid
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.tokenizer_config import digest as folder_digest
from nextloom.train.decoder.prompts import Prompts, encoded, released, trained_release
from nextloom.train.engine.folder import read, replace, write
from nextloom.train.pictures.likeness import chance, own_nearest, psnr
from nextloom.train.pictures.rows import originals
from nextloom.train.pictures.sheet import sheet, spread

if TYPE_CHECKING:
    from nextloom.model.transformer import NextFlow
    from nextloom.tokenize.tokenizer import Tokenizer

CODE_VERSION = 1
"""Bumped by hand when the same recipe and weights would give other pictures or figures."""
SUMMARY, SHEET = "summary.json", "grid.png"


class DrawRecipe(Model):
    """What to draw, with what, and where to."""

    decoder: RootPath
    """Folder of a trained decoder."""
    tokenizer: RootPath
    """Folder of the tokenizer it was trained with."""
    output: RootPath
    """Folder for the PNGs, `grid.png` and `summary.json`; replaced as a whole."""
    dataset: RootPath
    """Folder of the dataset whose release gives captions."""
    release: str | None = None
    """Release of that dataset; default: the one that the decoder was trained on."""
    prompts: tuple[str, ...] = ()
    """Captions of your own; empty: those of the release."""
    text_tokenizer: RootPath | None = None
    """The `tokenizer.json` that the captions were made with, for prompts of your own; bytes need none."""
    schedule: int = Field(20, ge=0, le=40)
    """Aspect ratio of drawings for your own prompts, as a schedule id; 20 is square."""
    guidance: float = 1.5
    """Strength g of classifier-free guidance at the last scale; 0 switches it off."""
    top_k: int = Field(0, ge=0)
    """Draw among the k likeliest codes; 0 for all, 1 for the likeliest."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the likeliest codes of this total probability."""
    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 takes the likeliest code."""
    seed: int = 0
    """Of the draws."""
    batch: int = Field(32, ge=1)
    """Pictures drawn together; not part of the identity."""
    columns: int = Field(16, ge=1)
    """Pictures per line of the grid."""
    lines: int = Field(4, ge=1)
    """Lines of the grid."""

    @model_validator(mode="after")
    def _paths(self) -> DrawRecipe:
        if self.output in (self.decoder, self.tokenizer, self.dataset) or is_uri(self.output):
            raise ValueError("output must be a local folder of its own")
        return self

    def settings(self) -> dict[str, Any]:
        """The fields that change the drawings, without those that name files: their digests stand for them."""
        places = {"decoder", "tokenizer", "output", "dataset", "release", "text_tokenizer", "batch"}
        return self.model_dump(mode="json", exclude=places)


def draw_recipe(path: str, *, root: str, sets: Sequence[str] | None = None) -> dict[str, Any]:
    """Draw what the recipe at `path` says; what is drawn already, with the same weights, is not drawn again.

    Returns:
        The summary: state (drawn or fresh), drawings, grid (path), seconds; for captions of a release also
        reconstruction_psnr of the tokenizer in dB, seen (rows that the decoder was trained on), own_nearest and
        chance among those, and, where there are unseen rows, unseen, own_nearest_unseen and chance_unseen.

    Raises:
        UserError: something is absent or does not belong together, or the output holds other files.
    """
    recipe = validate(DrawRecipe, override(load_yaml(path), list(sets or [])), where="", root=root)
    output = Path(recipe.output)
    about = _about(recipe)
    release = None
    if not recipe.prompts:
        own = trained_release(recipe.dataset, about)
        release = open_release(recipe.dataset, recipe.release) if recipe.release else own
    identity = _identity(recipe, release)
    done = read(output / SUMMARY)
    if done is None and output.is_dir() and any(output.iterdir()):
        raise UserError(
            "this folder holds other files, and drawings replace a folder",
            where=recipe.output,
            next="name another output",
        )
    if done is None or done["identity"] != identity:
        part = output.with_name(f"{output.name}.part")
        done = {**_draw(recipe, release, about, part), "identity": identity}
        write(part / SUMMARY, {**done, "grid": str(output / SHEET)})
        replace(part, output)
        return {**done, "grid": str(output / SHEET), "state": "drawn"}
    return {**done, "grid": str(output / SHEET), "state": "fresh"}


def _about(recipe: DrawRecipe) -> dict[str, Any]:
    """The decoder's `config.json`, checked against the tokenizer."""
    about = json.loads(_need(recipe.decoder, "config.json").read_text())
    for folder in (recipe.decoder, recipe.tokenizer):
        for name in ("config.json", "model.safetensors"):
            _need(folder, name)
    tokenizer = folder_digest(recipe.tokenizer)
    if about["tokenizer"] != tokenizer:
        raise UserError(
            f"the decoder was trained with tokenizer {about['tokenizer'][:12]}, this one is {tokenizer[:12]}",
            where="tokenizer",
            next="name the tokenizer it was trained with, or train the decoder again: nextloom train RECIPE",
        )
    return about


def _identity(recipe: DrawRecipe, release: Release | None) -> str:
    """The decoder's digest stands for its tokenizer, its own release and its text tokenizer: its config names them."""
    versions = [CODE_VERSION, pixels.DECODE_VERSION, pixels.RESIZE_VERSION]
    return digest([recipe.settings(), folder_digest(recipe.decoder), release.digest if release else None, versions])


def _need(folder: str, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"no {name} here: nothing was trained yet", where=folder, next="nextloom train RECIPE")
    return path


def _draw(recipe: DrawRecipe, release: Release | None, about: dict[str, Any], folder: Path) -> dict[str, Any]:
    from nextloom.tokenize.tokenizer import Tokenizer
    from nextloom.train.decoder.task import load_decoder

    start = time.monotonic()
    if release is None:
        prompts = encoded(recipe.prompts, about, recipe.text_tokenizer, recipe.schedule)
        found, captions = [], list(recipe.prompts)
    else:
        prompts = released(release, about)
        found = list(originals(release, prompts.ids))
        captions = [original.caption for original in found]
    tokenizer, decoder = Tokenizer.load(recipe.tokenizer), load_decoder(recipe.decoder)[0]
    scales = about["images"]["config"]["scales"]
    drawings = _drawings(recipe, decoder, tokenizer, prompts, scales)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for k, drawing in enumerate(drawings):
        Image.fromarray(drawing).save(folder / f"{k:04d}.png")
    lines, summary = [drawings], {"drawings": len(drawings)}
    if release is not None:
        pairs = [
            _reconstruct(tokenizer, schedule(FINAL_GRIDS[row], scales), original.rgb)
            for original, row in zip(found, prompts.schedules.tolist(), strict=True)
        ]
        targets, copies = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        lines = [targets, copies, drawings]
        own = trained_release(recipe.dataset, about)
        seen = np.isin(prompts.ids, released(own, about).ids)
        summary |= {"reconstruction_psnr": round(float(np.mean([psnr(a, b) for a, b in pairs])), 2)}
        summary |= _figures(drawings, targets, seen)
    shown = spread(len(drawings), recipe.columns * recipe.lines)
    chosen = [[line[k] for k in shown] for line in lines]
    sheet(chosen, [captions[k] for k in shown], recipe.columns).save(folder / SHEET)
    return {**summary, "seconds": round(time.monotonic() - start, 1)}


def _figures(drawings: list[np.ndarray], targets: list[np.ndarray], seen: np.ndarray) -> dict[str, float]:
    hits, guess = own_nearest(drawings, targets), chance(targets)
    out: dict[str, float] = {}
    for suffix, mask in (("", seen), ("_unseen", ~seen)):
        if mask.any():
            out["unseen" if suffix else "seen"] = int(mask.sum())
            out[f"own_nearest{suffix}"] = round(float(hits[mask].mean()), 4)
            out[f"chance{suffix}"] = round(float(guess[mask].mean()), 4)
    return out


def _drawings(
    recipe: DrawRecipe, decoder: NextFlow, tokenizer: Tokenizer, prompts: Prompts, scales: int
) -> list[np.ndarray]:
    """uint8 pictures, one per prompt; those of one shape are drawn `batch` at a time."""
    import torch

    from nextloom.model.generate import draw

    out: list[np.ndarray] = [np.empty(0)] * len(prompts.texts)
    for row in sorted(set(prompts.schedules.tolist())):
        grids = schedule(FINAL_GRIDS[row], scales)
        mine = np.flatnonzero(prompts.schedules == row).tolist()
        for at in range(0, len(mine), recipe.batch):
            part = mine[at : at + recipe.batch]
            codes = draw(
                decoder,
                [prompts.texts[k] for k in part],
                grids,
                guidance=recipe.guidance,
                top_k=recipe.top_k,
                top_p=recipe.top_p,
                temperature=recipe.temperature,
                seed=recipe.seed,
                keys=[int(prompts.ids[k]) for k in part],
            )
            x = tokenizer.decode_codes(torch.from_numpy(np.stack(codes)), grids)
            for k, picture in zip(part, x, strict=True):
                out[k] = pixels.from_model(picture.float().numpy())
    return out


def _reconstruct(tokenizer: Tokenizer, grids: Sequence[Grid], rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture as the tokenizer sees it, and its reconstruction from plain codes."""
    import torch

    (h, w), patch = grids[-1], tokenizer.config.patch
    x = torch.from_numpy(pixels.to_model(rgb, h * patch, w * patch))[None]
    codes, _ = tokenizer.tokenize(x, grids)
    return pixels.from_model(x[0].numpy()), pixels.from_model(tokenizer.decode_codes(codes, grids)[0].float().numpy())
