"""How well a tokenizer restores the pictures of a folder, level by level, with the published figures beside it.

Every picture takes the way of extraction: decoded and turned to sRGB, the largest centred box of the level's shape,
resampled by Lanczos, plain codes, stored and read back, decoded, rounded to uint8. By default that shape is square, as
in the published figures; `shape: own` takes each picture's own bucket. A picture smaller than the level is enlarged,
which is easy to restore, and counted. A file that gives no picture is counted and named, not passed over.

The paper's figures stand beside the data set they were measured on (`dataset_name`) and nowhere else: a figure on other
data says nothing about theirs. The paper does not say which SSIM window it used, so both are given.

Source: NextFlow (arXiv 2601.02204), tokenizer comparison: PSNR and SSIM at 512 and 1024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nextloom import pixels
from nextloom.config import Model, RootPath, load_yaml, override, validate
from nextloom.errors import UserError
from nextloom.gpu import cuda
from nextloom.io import is_uri
from nextloom.tokenize.schedule import FINAL_GRIDS, LEVELS, bucket, schedule
from nextloom.tokenize.tokenizer_config import digest as tokenizer_digest
from nextloom.tokenize.tokenizer_config import read_config

Level = Literal[64, 128, 256, 512, 1024]
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic"})
SQUARE = 20
PUBLISHED: dict[str, dict[int, tuple[float, float]]] = {
    "imagenet-1k-val": {512: (25.228, 0.820), 1024: (27.410, 0.884)},
    "in-house": {512: (26.472, 0.870), 1024: (28.038, 0.900)},
}
"""Data set -> level -> PSNR in dB and SSIM that the paper prints."""
NAMED = 20
"""Failures named in the summary; all are counted."""


class ReconstructionRecipe(Model):
    """What to restore with what."""

    evaluate: Literal["reconstruction"] = "reconstruction"
    tokenizer: RootPath
    """Folder of a tokenizer."""
    pictures: RootPath
    """Folder of pictures, searched with all folders below it, in the order of their paths."""
    dataset_name: str = "other"
    """What the pictures are; `imagenet-1k-val` puts the paper's figures beside yours."""
    levels: tuple[Level, ...] = Field((256, 512, 1024), min_length=1)
    """Nominal resolutions; the sides in pixels are `patch` times the level's last grid (16 pixels per code give the
    number itself)."""
    shape: Literal["square", "own"] = "square"
    """Every picture square, or in the bucket nearest to its own shape."""
    limit: int | None = Field(None, gt=0)
    """At most this many pictures, spread evenly over the folder; default: all."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs; codes on a GPU may differ where two tie to about 1e-6."""


def evaluate_recipe(
    path: str,
    *,
    root: str,
    sets: Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Restore what the recipe at `path` names; as `evaluate`."""
    data = override(load_yaml(path), list(sets or []))
    if (kind := data.get("evaluate", "reconstruction")) != "reconstruction":
        raise UserError(f"unknown evaluation {kind!r}; known: reconstruction", where="evaluate")
    return evaluate(validate(ReconstructionRecipe, data, where="", root=root), on_progress)


def evaluate(
    recipe: ReconstructionRecipe, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Figures per level.

    Args:
        recipe: what to restore.
        on_progress: called with the pictures that are restored and the number of files.

    Returns:
        tokenizer (digest), dataset_name, files, failed (their number), failures (path and message of the first
        `NAMED`), and levels, one per level: level, side (pixels of a square picture), pictures, enlarged, too_long
        (beyond 4:1, `own` only), psnr_db, ssim, ssim_uniform, codes_used, perplexity, and paper (psnr_db and ssim, or
        None).

    Raises:
        UserError: no tokenizer, no folder, or no file in it that gives a picture.
    """
    files = _files(recipe)
    read_config(recipe.tokenizer)
    try:
        digest = tokenizer_digest(recipe.tokenizer)
    except FileNotFoundError as error:
        raise UserError(f"an incomplete tokenizer: {error}", where="tokenizer", next="nextloom train RECIPE") from None
    from nextloom.tokenize.tokenizer import Tokenizer
    from nextloom.train.tokenizer.figures import Figures, restore

    device = cuda("device") if recipe.device == "cuda" else "cpu"
    tokenizer = Tokenizer.load(recipe.tokenizer).to(device)
    failures: list[dict[str, str]] = []
    figures = {level: Figures(tokenizer.config.codes) for level in recipe.levels}
    counts = {level: {"pictures": 0, "enlarged": 0, "too_long": 0} for level in recipe.levels}
    for done, rgb in enumerate(_pictures(files, failures)):
        on_progress(done, len(files))
        for level in recipe.levels:
            scales = LEVELS[level]
            try:
                row = SQUARE if recipe.shape == "square" else bucket(rgb.shape[0], rgb.shape[1], scales)
            except ValueError:
                counts[level]["too_long"] += 1
                continue
            restored = restore(tokenizer, rgb, schedule(FINAL_GRIDS[row], scales), device)
            figures[level].add(restored)
            height, width = restored.target.shape[:2]
            counts[level]["pictures"] += 1
            counts[level]["enlarged"] += min(rgb.shape[0] / height, rgb.shape[1] / width) < 1
    published = PUBLISHED.get(recipe.dataset_name, {})
    rows = []
    for level in recipe.levels:
        if not counts[level]["pictures"]:
            raise _nothing(recipe, failures)
        paper = published.get(level)
        rows.append(
            {
                "level": level,
                "side": schedule(FINAL_GRIDS[SQUARE], LEVELS[level])[-1][0] * tokenizer.config.patch,
                **counts[level],
                **figures[level].result(per_scale=False),
                "paper": {"psnr_db": paper[0], "ssim": paper[1]} if paper else None,
            }
        )
    about = {"tokenizer": digest, "dataset_name": recipe.dataset_name, "files": len(files)}
    return {**about, "failed": len(failures), "failures": failures[:NAMED], "levels": rows}


def _files(recipe: ReconstructionRecipe) -> list[Path]:
    if is_uri(recipe.pictures):
        raise UserError("must be a folder of this machine, not a URI", where="pictures")
    files = sorted(p for p in Path(recipe.pictures).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(
            "no pictures here" if Path(recipe.pictures).is_dir() else "no such folder",
            where=f"pictures: {recipe.pictures}",
            next="name a folder of pictures, such as --set pictures=samples (nextloom samples writes it)",
        )
    if recipe.limit is None or recipe.limit >= len(files):
        return files
    return [files[i * len(files) // recipe.limit] for i in range(recipe.limit)]


def _pictures(files: Sequence[Path], failures: list[dict[str, str]]) -> Iterator[Any]:
    """Pixels of every file that has any; the others go to `failures`."""
    for file in files:
        try:
            yield pixels.decode(file.read_bytes())
        except (OSError, pixels.PictureError) as error:
            failures.append({"file": str(file), "message": str(error)})


def _nothing(recipe: ReconstructionRecipe, failures: Sequence[dict[str, str]]) -> UserError:
    first = f"; the first: {failures[0]['file']}: {failures[0]['message']}" if failures else ""
    return UserError(
        f"none of the files gives a picture that can be restored{first}",
        where=f"pictures: {recipe.pictures}",
        next="name another folder, or shape: square",
    )
