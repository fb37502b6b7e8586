"""Verbs over what a dataset keeps: releases and their check, files, packs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from nextloom.cli.application import AllowShrink, AsJson, RecipeArg, Root, Sets, app, load, named
from nextloom.config import DEFAULT_ROOT
from nextloom.errors import UserError


@app.command()
def release(
    recipe: RecipeArg,
    name: Annotated[str | None, typer.Argument(help="which release of the recipe; default: all")] = None,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    allow_shrink: AllowShrink = False,
) -> None:
    """Publish an immutable manifest of rows and columns."""
    from nextloom.pipelines.release import make_release

    loaded, dataset = load(recipe, root, sets)
    with dataset.lease(f"nextloom release {recipe}"):
        for each in [name] if name else list(loaded.releases):
            made, new = make_release(loaded, dataset, each, allow_shrink=allow_shrink)
            print(f"{made.name}  {len(made.ids):,} rows, {len(made.columns)} columns{'' if new else '  (unchanged)'}")


@app.command()
def verify(
    recipe: RecipeArg,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    name: Annotated[str | None, typer.Option("--release", metavar="NAME", help="default: the newest of each")] = None,
    sample: Annotated[int, typer.Option(metavar="N", help="rows per column that are encoded anew")] = 1000,
    seed: Annotated[int, typer.Option(help="another one looks at other rows")] = 0,
    repair: Annotated[bool, typer.Option("--mend", help="take what differs out, for a run to do again")] = False,
    everything: Annotated[bool, typer.Option("--all", help="every live file, log and document first")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the files of releases by checksum, and their tokens against a fresh encoding; code 1 if any differs."""
    from nextloom.pipelines.verify import mend
    from nextloom.pipelines.verify import verify as check
    from nextloom.store.release import latest, open_release

    loaded, dataset = load(recipe, root, sets)
    if everything:
        _audit(loaded, dataset, as_json)
    newest = [latest(dataset.uri, each) for each, spec in loaded.releases.items() if spec.columns]
    chosen = [r for r in ([open_release(dataset.uri, name)] if name else newest) if r]
    results = [check(loaded, each, sample, seed) for each in chosen]
    if not results and everything:
        return
    if not results:
        raise UserError("no release to verify", where=dataset.uri, next=f"nextloom release {recipe}")
    if as_json:
        print(json.dumps([result.as_dict() for result in results], indent=1))
    for result in results if not as_json else ():
        for finding in result.findings:
            print(f"{finding.column}: {finding.check}: {finding.key}: {finding.what}")
        print(
            f"{result.release}: {result.files:,} files, {result.rows:,} rows, {result.sampled:,} encoded anew, "
            f"{len(result.findings):,} differ"
        )
    wrong = sum(len(result.findings) for result in results)
    if wrong and repair:
        with dataset.lease(f"nextloom verify {recipe} --mend"):
            files = sum(mend(loaded, dataset, r, result.findings) for r, result in zip(chosen, results, strict=True))
        print(f"{files:,} files taken out; next: nextloom run {recipe}, which makes their rows again", file=sys.stderr)
        if unread := sum(finding.check == "picture" for result in results for finding in result.findings):
            raise UserError(
                f"{unread:,} pictures cannot be read; their tokens were left as they are",
                where=results[0].release,
                next="bring the pictures back, then nextloom verify again",
            )
    elif wrong:
        hint = f"nextloom verify {recipe} --mend takes them out, then nextloom run {recipe} makes them again"
        raise UserError(f"{wrong} findings", where=results[0].release, next=hint)


def _audit(loaded: Any, dataset: Any, as_json: bool) -> None:
    """Look at all that lives; a message and code 1 for what is damaged, before anything is built on it."""
    from nextloom.pipelines.audit import audit

    result = audit(loaded, dataset)
    if as_json:
        print(json.dumps(asdict(result), indent=1))
    for finding in result.findings if not as_json else ():
        print(named(f"{finding.where}: {finding.what}; next: {finding.next}"))
    counted = f"{result.tables:,} tables, {result.files:,} files, {result.documents:,} documents"
    print(f"{dataset.name}: {counted}, {len(result.findings):,} damaged", file=sys.stderr if as_json else sys.stdout)
    if result.findings:
        first = result.findings[0]
        raise UserError(f"{len(result.findings)} damaged; the first: {first.what}", where=first.where, next=first.next)


@app.command()
def rebuild(
    recipe: RecipeArg,
    name: Annotated[str, typer.Argument(help="source, a step, a pack plan, or a release such as r-0001")],
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
) -> None:
    """Repair what `verify --all` found damaged: from a second copy, or by taking it out for a run to make anew."""
    from nextloom.pipelines.rebuild import rebuild as repair

    loaded, dataset = load(recipe, root, sets)
    with dataset.lease(f"nextloom rebuild {recipe} {name}"):
        done = repair(loaded, dataset, name)
    for line in done:
        print(named(line))
    after = f"next: nextloom run {recipe}, then nextloom verify {recipe} --all"
    print(after if done else f"{name}: nothing is damaged", file=sys.stderr)


@app.command()
def compact(recipe: RecipeArg, root: Root = DEFAULT_ROOT, sets: Sets = None) -> None:
    """Merge the small files that many runs left; no value, id or state changes."""
    from nextloom.pipelines.compact import compact as merge

    loaded, dataset = load(recipe, root, sets)
    with dataset.lease(f"nextloom compact {recipe}"):
        tables = merge(loaded, dataset)
    before, after = sum(t.before for t in tables), sum(t.after for t in tables)
    for table in tables:
        if table.before != table.after:
            print(f"{table.table}: {table.before:,} files -> {table.after:,}")
    print(f"{before:,} files -> {after:,}")


@app.command()
def vacuum(
    recipe: RecipeArg,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    older_than: Annotated[float, typer.Option(metavar="HOURS", help="only files that old")] = 1.0,
    delete: Annotated[bool, typer.Option("--delete", help="delete them; without it they are only listed")] = False,
) -> None:
    """List, or delete, files that no column, pack plan or release names any more."""
    from nextloom.pipelines.plan import wanted_fingerprints
    from nextloom.store.vacuum import find_garbage
    from nextloom.store.vacuum import vacuum as remove

    loaded, dataset = load(recipe, root, sets)
    wanted = wanted_fingerprints(loaded, dataset)
    with dataset.lease(f"nextloom vacuum {recipe}"):
        garbage = find_garbage(dataset, wanted, older_than)
        deleted = set(remove(dataset, garbage)) if delete else None
    for table in garbage:
        print(f"{table.table}: {len(table.files):,} files, {table.size:,} bytes")
        for path in table.files:
            print(f"  {path}{'' if deleted is None or path in deleted else '  (left: it was replaced meanwhile)'}")
    going = [t.files[p][1] for t in garbage for p in t.files if deleted is None or p in deleted]
    print(f"{len(going):,} files, {sum(going):,} bytes {'deleted' if delete else 'can go; --delete deletes them'}")


@app.command()
def pack(recipe: RecipeArg, root: Root = DEFAULT_ROOT, sets: Sets = None) -> None:
    """Cut releases into packs of equal cost under a token cap."""
    from nextloom.store.release import open_release
    from nextloom.tokenize.packing import write_plan

    loaded, dataset = load(recipe, root, sets)
    with dataset.lease(f"nextloom pack {recipe}"):
        for name, op in loaded.packs.items():
            result = write_plan(dataset, name, op, open_release(dataset.uri, op.release))
            print(f"{name}: {result.state}, " + ", ".join(f"{k} {v:,}" for k, v in result.counts.items()))


@app.command()
def unlock(
    recipe: RecipeArg,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    yes: Annotated[bool, typer.Option("--yes", help="no other writer is at work: take the lease from it")] = False,
) -> None:
    """Take the lease from a writer that cannot be asked: a machine that is gone, a lease that cannot be read."""
    from nextloom.store.lease import describe_holder
    from nextloom.store.lease import unlock as take
    from nextloom.store.vacuum import all_tables

    _, dataset = load(recipe, root, sets)
    had = describe_holder(dataset.documents)
    if had and not yes:
        raise UserError(
            f"the lease is held by {had}",
            where=dataset.uri,
            next="make sure that it does not write any more, then nextloom unlock RECIPE --yes",
        )
    take(dataset.documents, max((dataset.table(table).epoch() for table in all_tables(dataset)), default=0))
    print(f"{dataset.name}: the lease is free{f'; it was held by {had}' if had else ''}")
