"""Drawing pictures from captions, and saying honestly how good they are.

For captions out of a release the picture behind each caption is known, so the sheet shows three rows (the picture,
the tokenizer's reconstruction of it, the drawing) and the summary counts how often a drawing's nearest picture, among
all of the release, is its own. Rows that the decoder's own release has are captions it has seen in training; others
are counted apart. Prompts of one's own have no such figure.

Everything is drawn into a folder beside the output and swapped in as a whole, so a summary and the pictures beside it
are of one drawing. It is fresh while decoder, tokenizer, captions and settings are the same, wherever they lie. The
summary names every file with its digest; an output with any other file in it is not replaced (`nextloom.outputs`).
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from nextloom import pixels
from nextloom.config import Model, RootPath, load_yaml, override, validate
from nextloom.errors import UserError
from nextloom.io import is_uri
from nextloom.model_files import read_json
from nextloom.op import digest
from nextloom.outputs import OutputPath, check_ours, check_place, digest_files, remove_own
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
ABOUT = ("model", "tokenizer", "release", "release_digest", "images", "text")
"""What a decoder's `config.json` says."""
MADE = r"\d{4,}\.png|grid\.png|summary\.(json|part)"
"""Names of what is drawn."""


class DrawRecipe(Model):
    """What to draw, with what, and where to."""

    decoder: RootPath
    """Folder of a trained decoder."""
    tokenizer: RootPath
    """Folder of the tokenizer it was trained with."""
    output: OutputPath
    """Folder for the PNGs, `grid.png` and `summary.json`; replaced as a whole, refused if it holds anything else."""
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

    def reads(self) -> dict[str, str]:
        """Field -> path of what is read."""
        names = ("decoder", "tokenizer", "dataset", "text_tokenizer")
        return {name: path for name in names if (path := getattr(self, name))}

    def settings(self) -> dict[str, Any]:
        """The fields that change the drawings, without those that name files: their digests stand for them."""
        places = {"decoder", "tokenizer", "output", "dataset", "release", "text_tokenizer", "batch"}
        return self.model_dump(mode="json", exclude=places)


def draw_recipe(
    path: str,
    *,
    root: str,
    sets: Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Draw what the recipe at `path` says; what is drawn already, with the same weights, is not drawn again.

    Args:
        path, root, sets: the recipe, as in every verb.
        on_progress: called with the pictures that are drawn and their whole number.

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
    check_place(recipe.output, recipe.reads())
    done = read(output / SUMMARY)
    files = _files_of(done)
    if done and done.get("identity") == identity and files and all((output / name).is_file() for name in files):
        return {**done, "grid": str(output / SHEET), "state": "fresh"}
    _check_ours(recipe, files)
    _remove_left_over(output)
    part = output.with_name(f".{output.name}.{uuid.uuid4().hex}.part")
    done = {**_draw(recipe, release, about, part, on_progress), "identity": identity}
    write(part / SUMMARY, {**done, "files": digest_files(part), "grid": str(output / SHEET)})
    _check_ours(recipe, files)  # again: drawing takes its time
    replace(part, output)
    return {**done, "grid": str(output / SHEET), "state": "drawn"}


def _files_of(summary: Any) -> dict[str, str]:
    """Name -> digest of the drawings that a summary of ours names."""
    files = (summary or {}).get("files")
    made = isinstance(files, dict) and all(re.fullmatch(MADE, name) for name in files)
    return files if made and isinstance(summary.get("identity"), str) else {}


def _check_ours(recipe: DrawRecipe, files: dict[str, str]) -> None:
    """Only what the summary names may go, and the summary itself."""
    own = digest_files(Path(recipe.output), [SUMMARY]) if files else {}
    check_ours(recipe.output, files, own, maker="nextloom generate")


def _remove_left_over(output: Path) -> None:
    """Remove what a killed drawing left beside the output: folders of our names, and in them only ours."""
    name = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{32}}\.(part|old)")
    for path in output.parent.glob(".*") if output.parent.is_dir() else ():
        if name.fullmatch(path.name):
            remove_own(path, MADE)


def _about(recipe: DrawRecipe) -> dict[str, Any]:
    """The decoder's `config.json`, checked against the tokenizer."""
    about = read_json(_need(recipe.decoder, "config.json"))
    for folder in (recipe.decoder, recipe.tokenizer):
        for name in ("config.json", "model.safetensors"):
            _need(folder, name)
    tokenizer = folder_digest(recipe.tokenizer)
    if absent := [name for name in ABOUT if name not in about]:
        raise UserError(
            f"this config.json says nothing of {absent[0]}", where=recipe.decoder, next="nextloom train RECIPE"
        )
    if about["tokenizer"] != tokenizer:
        raise UserError(
            f"the decoder was trained with tokenizer {str(about['tokenizer'])[:12]}, this one is {tokenizer[:12]}",
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


def _draw(
    recipe: DrawRecipe,
    release: Release | None,
    about: dict[str, Any],
    folder: Path,
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
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
    drawings = _drawings(recipe, decoder, tokenizer, prompts, scales, on_progress)
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
    recipe: DrawRecipe,
    decoder: NextFlow,
    tokenizer: Tokenizer,
    prompts: Prompts,
    scales: int,
    on_progress: Callable[[int, int], None],
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
            on_progress(sum(len(picture) > 0 for picture in out), len(out))
    return out


def _reconstruct(tokenizer: Tokenizer, grids: Sequence[Grid], rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture as the tokenizer sees it, and its reconstruction from plain codes."""
    import torch

    (h, w), patch = grids[-1], tokenizer.config.patch
    x = torch.from_numpy(pixels.to_model(rgb, h * patch, w * patch))[None]
    codes, _ = tokenizer.tokenize(x, grids)
    return pixels.from_model(x[0].numpy()), pixels.from_model(tokenizer.decode_codes(codes, grids)[0].float().numpy())
