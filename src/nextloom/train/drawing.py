"""Drawing pictures from captions, and saying honestly how good they are.

For captions out of a release the picture behind each caption is known, so the grid shows three rows (the picture,
the tokenizer's reconstruction of it, the drawing) and the summary counts how often a drawing's nearest picture, among
all of the release, is its own. Those are captions the decoder has seen in training; free prompts have no such figure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field, model_validator

from nextloom import pixels
from nextloom.config import Model, RootPath, load_yaml, override, validate
from nextloom.errors import UserError
from nextloom.io import Folder, digest_path, fetch
from nextloom.op import Row, digest
from nextloom.store.release import Release, open_release
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.text_tokens import ID_DTYPE, TextTokens

if TYPE_CHECKING:
    from nextloom.model.transformer import NextFlow
    from nextloom.tokenize.tokenizer import Tokenizer

SUMMARY = "summary.json"


class DrawRecipe(Model):
    """What to draw, with what, and where to."""

    decoder: RootPath
    """Folder of a trained decoder."""
    tokenizer: RootPath
    """Folder of the tokenizer it was trained with."""
    output: RootPath
    """Folder for the PNGs, `grid.png` and `summary.json`."""
    dataset: RootPath
    """Folder of the dataset whose release gives captions, and the text tokenizer for free prompts."""
    release: str = "tokens"
    """Release of that dataset."""
    text: str = "text"
    """Its column of text tokens."""
    images: str = "tokens"
    """Its column of image tokens: says how many scales."""
    prompts: tuple[str, ...] = ()
    """Captions of your own; empty: those of the release."""
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
    batch: int = Field(32, ge=1)
    """Pictures drawn together; does not change them."""
    columns: int = Field(16, ge=1)
    """Pictures per line of the grid."""
    lines: int = Field(4, ge=1)
    """Lines of the grid."""

    @model_validator(mode="after")
    def _paths(self) -> DrawRecipe:
        if self.output in (self.decoder, self.tokenizer):
            raise ValueError("output must be a folder of its own")
        return self


def draw_recipe(path: str, *, root: str, sets: Sequence[str] | None = None) -> dict[str, Any]:
    """Draw what the recipe at `path` says; what is drawn already, with the same weights, is not drawn again.

    Returns:
        The summary: drawings, and for captions of a release own_nearest, chance and psnr of the tokenizer in dB.
    """
    data = override(load_yaml(path), list(sets or []))
    recipe = validate(DrawRecipe, data, where="", root=root)
    release = open_release(recipe.dataset, recipe.release)
    identity = _identity(recipe, release)
    done = Folder(recipe.output).read(SUMMARY) if Path(recipe.output).is_dir() else None
    if done and done["identity"] == identity:
        return {**done, "state": "fresh"}
    summary = {**_draw(recipe, release), "identity": identity}
    Folder(recipe.output).write(SUMMARY, summary)
    return {**summary, "state": "drawn"}


def _identity(recipe: DrawRecipe, release: Release) -> str:
    decoder = json.loads((_need(recipe.decoder, "config.json")).read_text())
    _need(recipe.tokenizer, "config.json")
    tokenizer = digest_path(recipe.tokenizer)
    if decoder["tokenizer"] != tokenizer:
        raise UserError(
            f"the decoder was trained with tokenizer {decoder['tokenizer'][:12]}, this one is {tokenizer[:12]}",
            where="tokenizer",
            next="name the tokenizer it was trained with, or train the decoder again: nextloom train RECIPE",
        )
    return digest([recipe.model_dump(mode="json"), digest_path(recipe.decoder), tokenizer, release.digest])


def _need(folder: str, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"no {name} here: nothing was trained yet", where=folder, next="nextloom train RECIPE")
    return path


def _draw(recipe: DrawRecipe, release: Release) -> dict[str, Any]:
    from nextloom.tokenize.tokenizer import Tokenizer
    from nextloom.train.decoder import load_decoder

    start = time.monotonic()
    tokenizer, decoder = Tokenizer.load(recipe.tokenizer), load_decoder(recipe.decoder)[0]
    column = release.columns[recipe.images]["config"]
    if recipe.prompts:
        captions, prompts = list(recipe.prompts), _encode(recipe, release)
        rows = np.full(len(prompts), recipe.schedule)
        originals = None
    else:
        text, images = release.column(recipe.text), release.column(recipe.images, ["schedule", "error"])
        good = text["error"].is_null().to_numpy(False) & images["error"].is_null().to_numpy(False)
        table = release.rows(release.ids[good])
        captions = table["caption"].to_pylist()
        prompts = [np.frombuffer(raw, ID_DTYPE).tolist() for raw in text.filter(good)["ids"].to_pylist()]
        rows = images.filter(good)["schedule"].to_numpy()
        originals = [pixels.decode(fetch(uri)) for uri in table["uri"].to_pylist()]
    keys = range(len(prompts))
    drawings: list[np.ndarray] = [np.empty(0)] * len(prompts)
    targets, copies = list(drawings), list(drawings)
    for row in sorted(set(rows.tolist())):
        grids = schedule(FINAL_GRIDS[row], column["scales"])
        mine = [k for k in keys if rows[k] == row]
        for at in range(0, len(mine), recipe.batch):
            part = mine[at : at + recipe.batch]
            for k, picture in zip(part, _pictures(recipe, decoder, tokenizer, grids, prompts, part), strict=True):
                drawings[k] = picture
        if originals is not None:
            for k in mine:
                targets[k], copies[k] = _reconstruct(tokenizer, grids, originals[k])
    folder = Path(recipe.output)
    folder.mkdir(parents=True, exist_ok=True)
    for k in keys:
        Image.fromarray(drawings[k]).save(folder / f"{k:04d}.png")
    shown = _spread(len(prompts), recipe.columns * recipe.lines)
    lines = [drawings] if originals is None else [targets, copies, drawings]
    grid([[line[k] for k in shown] for line in lines], [captions[k] for k in shown], recipe.columns).save(
        folder / "grid.png"
    )
    summary: dict[str, Any] = {"drawings": len(prompts), "grid": str(folder / "grid.png")}
    if originals is not None:
        summary |= {
            "own_nearest": round(own_nearest(drawings, targets), 4),
            "chance": round(1 / len(prompts), 4),
            "reconstruction_psnr": round(float(np.mean([psnr(a, b) for a, b in zip(targets, copies, strict=True)])), 2),
        }
    return {**summary, "seconds": round(time.monotonic() - start, 1)}


def _encode(recipe: DrawRecipe, release: Release) -> list[list[int]]:
    config = {k: v for k, v in release.columns[recipe.text]["config"].items() if k in TextTokens.model_fields}
    op = TextTokens(**config)
    op.setup()
    values = [op.measure(Row(id=k, key="", source={op.column: prompt})) for k, prompt in enumerate(recipe.prompts)]
    return [np.frombuffer(value["ids"], ID_DTYPE).tolist() for value in values]


def _pictures(
    recipe: DrawRecipe, decoder: NextFlow, tokenizer: Tokenizer, grids: Any, prompts: list[list[int]], part: list[int]
) -> list[np.ndarray]:
    import torch

    from nextloom.model.generate import draw

    codes = draw(
        decoder,
        [prompts[k] for k in part],
        grids,
        guidance=recipe.guidance,
        top_k=recipe.top_k,
        top_p=recipe.top_p,
        temperature=recipe.temperature,
        seed=recipe.seed,
        keys=part,
    )
    x = tokenizer.decode_codes(torch.from_numpy(np.stack(codes)), grids)
    return [pixels.from_model(picture.float().numpy()) for picture in x]


def _reconstruct(tokenizer: Tokenizer, grids: Any, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture as the tokenizer sees it, and its reconstruction from plain codes."""
    import torch

    (h, w), patch = grids[-1], tokenizer.config.patch
    x = torch.from_numpy(pixels.to_model(rgb, h * patch, w * patch))[None]
    codes, _ = tokenizer.tokenize(x, grids)
    return pixels.from_model(x[0].numpy()), pixels.from_model(tokenizer.decode_codes(codes, grids)[0].float().numpy())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures; 99 for equal ones."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def own_nearest(drawings: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> float:
    """Share of drawings whose nearest target (squared error, same shape) is their own; ties count as a miss."""
    hits = 0
    for k, drawing in enumerate(drawings):
        near = [
            np.sum((drawing.astype(np.int64) - target) ** 2) if target.shape == drawing.shape else np.inf
            for target in targets
        ]
        hits += int(near[k] < min((d for j, d in enumerate(near) if j != k), default=np.inf))
    return hits / len(drawings)


def _spread(count: int, room: int) -> list[int]:
    """At most `room` numbers spread evenly over range(count)."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, room))})


def grid(lines: list[list[np.ndarray]], captions: list[str], columns: int, cell: int = 72) -> Image.Image:
    """A contact sheet: for each block of `columns` pictures the given lines above each other, captions below."""
    text_height, gap = 22, 10
    blocks = -(-len(captions) // columns)
    height = blocks * (len(lines) * cell + text_height + gap)
    sheet = Image.new("RGB", (min(columns, len(captions)) * cell, height), "white")
    pen = ImageDraw.Draw(sheet)
    for k, caption in enumerate(captions):
        left, top = (k % columns) * cell, (k // columns) * (len(lines) * cell + text_height + gap)
        for row, line in enumerate(lines):
            picture = Image.fromarray(line[k])
            picture.thumbnail((cell - 4, cell - 4))
            scale = min((cell - 4) / picture.width, (cell - 4) / picture.height)
            size = (round(picture.width * scale), round(picture.height * scale))
            sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (left + 2, top + row * cell + 2))
        words = [caption[:13], caption[13:26]]
        for row, words_line in enumerate(words):
            pen.text((left + 2, top + len(lines) * cell + row * 10), words_line, fill="black", font_size=9)
    return sheet
