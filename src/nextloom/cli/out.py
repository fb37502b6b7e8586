"""Verbs that take data and knowledge out: an export, the list of ops."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Annotated, Any

import typer

from nextloom.cli.application import AsJson, RecipeArg, Root, Sets, app, load
from nextloom.cli.tables import say, show, table_of
from nextloom.config import DEFAULT_ROOT
from nextloom.errors import UserError

Column = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="STEP.FIELD", help="repeatable, or with commas; default: all but bytes"),
]


@app.command()
def export(
    recipe: RecipeArg,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="not there yet, empty, or holding this very export")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="webdataset, parquet, hf or keys")],
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    release: Annotated[
        str | None, typer.Option(metavar="NAME", help="default: the newest of the recipe's first release")
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="STEP", help="rows that a step keeps now, instead of a release")
    ] = None,
    columns: Column = None,
    shard_mb: Annotated[float, typer.Option(metavar="MB", help="original bytes in a shard")] = 256,
    shard_rows: Annotated[int | None, typer.Option(metavar="N", help="rows in a shard")] = None,
    frames: Annotated[str, typer.Option(metavar="HOW", help="frames of animations: refuse, or png")] = "refuse",
) -> None:
    """Write kept rows as they were found, with captions and columns, in a format that others read. Run again to go on.

    Ends with code 1 where bytes of a row can no longer be read; all other rows are written then.
    """
    from nextloom.pipelines.export import FORMATS, Chosen, Options, check_apart, find_release, rows_of
    from nextloom.pipelines.export import export as write
    from nextloom.pipelines.progress import Progress

    if release and rows:
        raise UserError("give --release or --rows, not both")
    if to not in FORMATS:
        raise UserError(f"unknown format {to!r}; known: {', '.join(FORMATS)}", where="--to")
    if frames not in ("refuse", "png"):
        raise UserError(f"unknown value {frames!r}; known: refuse, png", where="--frames")
    loaded, dataset = load(recipe, root, sets)
    check_apart(folder, root=root, sources=loaded.source.places())
    wanted = columns or []
    found = rows_of(loaded, dataset, rows, wanted) if rows else find_release(loaded, dataset, release)
    chosen = Chosen.of(found, wanted)
    with Progress() as progress:
        progress.start("export", 0, len(found.ids))
        options = Options(to, shard_mb, shard_rows, "png" if frames == "png" else "refuse")
        done = write(chosen, folder, options, lambda count, failed: progress.advance("export", count, failed))
        progress.finish("export", {"rows": done.rows, "written": done.written, "failed": done.failed})
    shards = f"{done.shards:,} {'shard' if done.shards == 1 else 'shards'}"
    fresh = "" if done.made or not done.shards else "  (unchanged)"
    say(
        f"{done.folder}: {done.release}, {done.written:,} of {done.rows:,} rows in {shards}, {done.size:,} bytes{fresh}"
    )
    if done.failed:
        print(f"rows without bytes: {done.errors}", file=sys.stderr)
        raise UserError(
            f"{done.failed:,} of {done.rows:,} rows of {done.release} have no bytes any more; all others were written",
            where=folder,
            next="bring them back and export into an empty folder, or let a run see that they are gone",
        )


@app.command()
def ops(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="one op or source; default: a list of all")] = None,
    as_json: AsJson = False,
) -> None:
    """List ops and sources; of one its fields, defaults, columns and an example."""
    from nextloom.pipelines.manual import page, pages

    found = [page(name)] if name else pages()
    if as_json:
        print(json.dumps([each.as_dict() for each in found], indent=1, ensure_ascii=False))
    elif name:
        say(_page(found[0]))
    else:
        table = table_of("kind", "op", "what it does")
        for each in found:
            table.add_row(each.kind, each.name, each.summary)
        show(table)
        say("\nnextloom ops NAME shows fields, columns and an example of one")


def _page(page: Any) -> str:
    """What is known of one op, as text of at most about 110 columns."""
    lines = [f"{page.name}: {page.kind}, {page.code}", "", page.summary]
    if page.example:
        lines += ["", "example", *textwrap.indent(page.example, "  ").splitlines()]
    for title, fields in (("fields", page.fields), *((f"{name}:", inner) for name, inner in page.inner.items())):
        lines += ["", title]
        for each in fields:
            default = "required" if each.default is None else f"default {each.default}"
            lines.append(f"  {each.name}  {each.type}; {default}")
            lines += textwrap.wrap(each.doc, 106, initial_indent="      ", subsequent_indent="      ")
    if page.columns:
        of = "rows that it makes" if page.kind in ("source", "expand") else "columns"
        lines += ["", of, *(f"  {name}  {kind}" for name, kind in page.columns.items())]
    if page.columns_doc:
        lines += ["", *textwrap.indent(page.columns_doc, "  ").splitlines()]
    return "\n".join([*lines, "", page.text]).rstrip()
