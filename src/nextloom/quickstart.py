"""The whole chain on real pictures, verb by verb: ``python -m nextloom.quickstart [ROOT]``.

Every line it runs is one a user could type, and is printed before it runs. A second call finds nothing to do.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nextloom import cli
from nextloom.config import DEFAULT_ROOT, local_root

VERBS = (
    ("samples",),
    ("run", "emoji", "--to", "pictures"),
    ("release", "emoji", "pictures"),
    ("train", "tokenizer"),
    ("run", "emoji"),
    ("release", "emoji", "tokens"),
    ("pack", "emoji"),
    ("train", "decoder"),
    ("generate", "drawings"),
    ("report", "emoji"),
)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def run_quickstart(root: Annotated[str, typer.Argument(metavar="ROOT")] = DEFAULT_ROOT) -> None:
    """Run every verb below ROOT, then print what was made."""
    start = time.monotonic()
    local_root(root, "quickstart")
    option = () if root == DEFAULT_ROOT else ("--root", root)
    for verb in VERBS:
        began = time.monotonic()
        print(f"$ nextloom {' '.join((*verb, *option))}", flush=True)
        if code := cli.app([*verb, *option], standalone_mode=False):
            raise typer.Exit(code)  # Ctrl-C in a verb ends the chain
        print(f"  [{time.monotonic() - began:.1f} s]\n", flush=True)
    print(summary(root, time.monotonic() - start))


def summary(root: str, seconds: float) -> str:
    """What the chain made, from the documents it left."""
    from nextloom.pipelines.status import dataset_status

    recipe, dataset = cli.load("emoji", root, None)
    lines = [f"Made in {seconds:.0f} s:", ""]
    for step in dataset_status(recipe, dataset)["steps"]:
        counts = step["counts"]
        kept, failed = counts.get("kept", counts.get("values")), counts.get("failed", counts.get("errors"))
        rejected = counts.get("rejected", 0)
        lines.append(f"  {step['step']:<10} {kept:>6,} kept  {rejected:>6,} rejected  {failed:>4,} failed")
    runs = Path(root) / "runs"
    tokenizer, decoder = (_read(runs / f"{name}.run" / "receipt.json")["summary"] for name in ("tokenizer", "decoder"))
    drawings, told = _read(runs / "drawings" / "summary.json"), decoder["evaluation"]
    lines += [
        "",
        f"  tokenizer  PSNR {drawings['reconstruction_psnr']:.1f} dB on its own training pictures; "
        f"loss {tokenizer['first_loss']:.2f} -> {tokenizer['last_loss']:.2f}",
        f"  decoder    loss {decoder['first_loss']:.2f} -> {decoder['last_loss']:.2f}; with right captions "
        f"{told['loss']:.2f}, with shuffled ones {told['loss_shuffled']:.2f}",
        f"  drawings   {drawings['own_nearest']:.0%} nearest to their own picture, chance {drawings['chance']:.1%}; "
        "these are captions the decoder has seen in training",
        "",
        f"  report     {Path(root) / 'reports' / 'emoji.html'}",
        f"  grid       {runs / 'drawings' / 'grid.png'}   (picture, its reconstruction, drawing from the caption)",
        "",
        "next: change a threshold and see what it costs:",
        '  nextloom plan emoji --set "steps.keep.where=stats.short_side >= 64 and source.caption is not null"',
    ]
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


if __name__ == "__main__":
    cli.call(app)
