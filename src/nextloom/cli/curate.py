"""Verbs over a data recipe: what it would do, what it does, what it did."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from nextloom.cli.application import Address, AllowShrink, AsJson, RecipeArg, Retry, Root, Sets, To, app, load, named
from nextloom.cli.tables import counts_table, duration, say, show, table_of
from nextloom.config import DEFAULT_ROOT, local_root
from nextloom.errors import UserError


@app.command()
def samples(folder: Annotated[str | None, typer.Argument(metavar="DIR")] = None, root: Root = DEFAULT_ROOT) -> None:
    """Write real pictures with captions out of installed packages (OpenMoji, scikit-image, scikit-learn)."""
    from nextloom.samples import write_samples

    below = local_root(folder or root, "samples")
    summary = write_samples(below if folder else below / "samples")
    print(f"{summary.folder}: {summary.pictures:,} pictures, {summary.written:,} files written")


@app.command()
def plan(
    recipe: RecipeArg,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    to: To = None,
    retry_errors: Retry = False,
    as_json: AsJson = False,
) -> None:
    """Say what is stale, why, and what it will cost. Writes nothing; ends with code 1 where a step cannot run."""
    from nextloom.pipelines.plan import BLOCKED
    from nextloom.pipelines.release import plan_with_releases

    loaded, dataset = load(recipe, root, sets)
    plans = plan_with_releases(loaded, dataset, to=to, retry_errors=retry_errors)
    if as_json:
        print(json.dumps([p.as_dict() for p in plans], indent=1))
    else:
        _show_plan(plans)
    if blocked := [p for p in plans if p.state == BLOCKED]:
        first = blocked[0]
        raise UserError(
            f"{len(blocked)} of {len(plans)} steps and releases cannot be made; the first: "
            + named(first.cause.removesuffix(f"; {first.next}")),
            where=f"steps.{first.step}" if first.kind != "release" else first.step,
            next=first.next or None,
        )


def _show_plan(plans: list[Any]) -> None:
    table = table_of("step", "op", "state", "rows to do", "of", "CPU time", "cause")
    for p in plans:
        todo = f"after {p.after}" if p.after else ("" if p.todo is None else f"{p.todo:,}")
        wanted = "?" if p.wanted is None else f"{p.wanted:,}"
        table.add_row(p.step, p.op, p.state, todo, wanted, duration(p.cpu_seconds), named(p.cause))
    show(table)
    for p in plans:
        for note in p.notes:
            say(f"note         {p.step}: {note}")
        if p.code:
            say(f"code         {p.step}: {p.code}")
        if p.environment:
            say(f"environment  {p.step}: {', '.join(p.environment)}")
        if p.warning:
            say(f"warning      {p.step}: {p.warning}")


@app.command()
def run(
    recipe: RecipeArg,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    to: To = None,
    retry_errors: Retry = False,
    address: Address = None,
    allow_shrink: AllowShrink = False,
) -> None:
    """Do what the plan says: only missing rows. Interrupt at will, run again to go on.

    A release that was made once gets its next version when what it holds has changed.
    """
    from nextloom.pipelines.progress import Progress
    from nextloom.pipelines.release import keep_releases

    loaded, dataset = load(recipe, root, sets)
    with dataset.lease(f"nextloom run {recipe}"), Progress() as progress:
        from nextloom.pipelines.run import Run

        job = Run(loaded, dataset, to=to, retry_errors=retry_errors, address=address, progress=progress)
        results = job.execute()
        made, refused = keep_releases(loaded, dataset, to, allow_shrink=allow_shrink)
    done = sum(result.done for result in results)
    if not done:
        print(f"{loaded.dataset}: nothing to do, {len(results)} steps are fresh")
    else:
        show(counts_table([(r.step, r.done, r.counts) for r in results]))
    for each in made:
        print(f"release {each.name}  {len(each.ids):,} rows, {len(each.columns)} columns")
    if refused:
        raise refused[0]


@app.command()
def status(recipe: RecipeArg, root: Root = DEFAULT_ROOT, sets: Sets = None, as_json: AsJson = False) -> None:
    """Say what is there: counts per step from the receipts, releases, and who writes at the moment."""
    from nextloom.pipelines.status import dataset_status

    loaded, dataset = load(recipe, root, sets)
    report = dataset_status(loaded, dataset)
    if as_json:
        print(json.dumps(report, indent=1))
        return
    marks = {True: "", False: " (old)", None: " (?)"}  # counts of another config or version; not known
    counted = [(s["step"] + (marks[s["current"]] if s["counts"] else ""), s["counts"]) for s in report["steps"]]
    show(counts_table([(label, None, counts) for label, counts in counted]))
    for release in report["releases"]:
        count = "?" if release["rows"] is None else f"{release['rows']:,}"
        broken = "  (broken)" if release["broken"] else ""
        print(f"release {release['name']}  {count} rows  {', '.join(release['columns'])}{broken}")
    for problem in report["problems"]:
        print(f"damaged: {named(problem)}")
    print(f"writer: {report['writer'] or 'none'}")


@app.command()
def report(recipe: RecipeArg, root: Root = DEFAULT_ROOT, sets: Sets = None) -> None:
    """Write one offline HTML file: funnel, failures with reasons, throughput, drawings."""
    from nextloom.pipelines.report import write_report

    loaded, dataset = load(recipe, root, sets)
    print(write_report(loaded, dataset, root=root))
