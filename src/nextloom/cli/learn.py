"""Verbs over models: train, judge, draw."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from nextloom.cli.application import Address, AsJson, RecipeArg, Root, Sets, app
from nextloom.cli.pace import Pace
from nextloom.cli.tables import show, table_of
from nextloom.config import DEFAULT_ROOT, local_root


@app.command()
def train(
    recipe: RecipeArg,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    address: Address = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="throw away what the output holds")] = False,
) -> None:
    """Train a tokenizer or a decoder with Ray Train; run again to resume."""
    from nextloom.train.launch import launch
    from nextloom.train.recipe import load as load_recipe

    loaded = load_recipe(recipe, root=root, sets=sets)
    pace, terminal, loss = Pace("step", loaded.steps), sys.stderr.isatty(), ""

    def tell(line: dict[str, Any]) -> None:
        nonlocal loss
        if "loss" in line:
            loss = f", loss {line['loss']:.4f}"
            if terminal:
                print(f"  step {line['step']:>6,} of {loaded.steps:,}  loss {line['loss']:.4f}", file=sys.stderr)
        if line.get("event") in (None, "progress"):
            pace.update(line["step"], more=loss)

    summary = launch(loaded, fresh=fresh, address=address, on_line=tell)
    print(
        f"{summary['state']}: {loaded.output}, {summary['steps']:,} steps, "
        f"loss {summary['first_loss']:.3f} -> {summary['last_loss']:.3f}, {summary['per_second']:,.0f} per second"
    )
    figures = {name: value for name, value in summary["evaluation"].items() if "/" not in name}
    print("  " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))


@app.command()
def evaluate(recipe: RecipeArg, root: Root = DEFAULT_ROOT, sets: Sets = None, as_json: AsJson = False) -> None:
    """Measure how well a tokenizer restores the pictures of a folder, at several resolutions."""
    from nextloom.train.tokenizer.reconstruction import PUBLISHED, evaluate_recipe

    summary = evaluate_recipe(recipe, root=root, sets=sets, on_progress=_pace("picture"))
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    table = table_of("level", "pixels", "pictures", "enlarged", "PSNR dB", "SSIM 11x11", "SSIM 7x7", "codes", "paper")
    for column in table.columns[:-1]:
        column.justify = "right"
    for line in summary["levels"]:
        paper = line["paper"]
        numbers = [f"{line[n]:,}" for n in ("level", "side", "pictures", "enlarged")]
        quality = [f"{line['psnr_db']:.3f}", *(f"{line[n]:.3f}" if n in line else "" for n in ("ssim", "ssim_uniform"))]
        known = summary["dataset_name"] in PUBLISHED
        beside = f"{paper['psnr_db']:.3f} / {paper['ssim']:.3f}" if paper else "none" if known else "other data"
        table.add_row(*numbers, *quality, f"{line['codes_used']:,.0f}", beside)
    show(table)
    if summary["failed"]:
        first = "{file}: {message}".format(**summary["failures"][0])
        print(f"{summary['failed']:,} of {summary['files']:,} files gave no picture; the first: {first}")


@app.command()
def generate(recipe: RecipeArg, root: Root = DEFAULT_ROOT, sets: Sets = None) -> None:
    """Draw pictures from captions; writes PNGs and a grid."""
    from nextloom.train.decoder.drawing import draw_recipe

    local_root(root, "generate")
    summary = draw_recipe(recipe, root=root, sets=sets, on_progress=_pace("drawing"))
    print("\n".join(f"  {name}: {value}" for name, value in summary.items() if name not in ("identity", "files")))


def _pace(noun: str) -> Callable[[int, int], None]:
    """Lines of progress for a verb that calls with what is done and the whole."""
    pace: Pace | None = None

    def tell(done: int, total: int) -> None:
        nonlocal pace
        pace = pace or Pace(noun, total)
        pace.update(done)

    return tell
