"""The command line: thin verbs over the pipelines and the trainer. Data to stdout, logs and progress to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer
from rich.console import Console
from rich.table import Table

from nextloom.config import DEFAULT_ROOT, local_root, resolve
from nextloom.errors import UserError

app = typer.Typer(
    name="nextloom",
    help="Curate pictures, tokenize and pack them, train NextFlow and draw: each verb takes a recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")]


def _plain(root: str) -> str:
    """A ``file://`` root as the folder it names; others as they are."""
    return url2pathname(urlsplit(root).path) if root.startswith("file://") else root


Root = Annotated[str, typer.Option("--root", help="folder or URI below which everything is written", callback=_plain)]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="change one field; repeatable")]
To = Annotated[str | None, typer.Option("--to", metavar="STEP", help="only this step or release, and what it needs")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Address = Annotated[str | None, typer.Option("--address", help="a running Ray cluster; default: local")]
Retry = Annotated[bool, typer.Option("--retry-errors", help="do failed rows again")]
INTERRUPTED = 130


def load(recipe: str, root: str, sets: list[str] | None) -> tuple[Any, Any]:
    """(Recipe, Dataset) for a verb.

    Raises:
        UserError: a mistake in the recipe, or a root that cannot be opened.
    """
    from obstore.exceptions import BaseError

    from nextloom.pipelines.recipe import Recipe
    from nextloom.store.dataset import Dataset

    loaded = Recipe.load(recipe, root=root, sets=sets)
    dataset = Dataset(resolve(f"datasets/{loaded.dataset}", root))
    try:
        dataset.documents.names("lease")
    except BaseError as error:
        reason = str(error).partition("\n")[0]
        hint = "check the address, and your rights there"
        raise UserError(f"cannot open {dataset.uri}: {reason}", where="--root", next=hint) from None
    return loaded, dataset


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
        raise UserError(
            f"{len(blocked)} of {sum(p.kind != 'release' for p in plans)} steps cannot run",
            where=f"steps.{blocked[0].step}",
            next=blocked[0].cause,
        )


def _show_plan(plans: list[Any]) -> None:
    table = _table("step", "op", "state", "rows to do", "of", "CPU time", "cause")
    for p in plans:
        todo = f"after {p.after}" if p.after else ("" if p.todo is None else f"{p.todo:,}")
        wanted = "?" if p.wanted is None else f"{p.wanted:,}"
        table.add_row(p.step, p.op, p.state, todo, wanted, _duration(p.cpu_seconds), p.cause)
    _show(table)


@app.command()
def run(
    recipe: RecipeArg,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
    to: To = None,
    retry_errors: Retry = False,
    address: Address = None,
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
        made = keep_releases(loaded, dataset, to)
    done = sum(result.done for result in results)
    if not done:
        print(f"{loaded.dataset}: nothing to do, {len(results)} steps are fresh")
    else:
        _show(_counts_table([(r.step, r.done, r.counts) for r in results]))
    for each in made:
        print(f"release {each.name}  {len(each.ids):,} rows, {len(each.columns)} columns")


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
    _show(_counts_table([(label, None, counts) for label, counts in counted]))
    for release in report["releases"]:
        count = "?" if release["rows"] is None else f"{release['rows']:,}"
        print(f"release {release['name']}  {count} rows  {', '.join(release['columns'])}")
    print(f"writer: {report['writer'] or 'none'}")


@app.command()
def report(recipe: RecipeArg, root: Root = DEFAULT_ROOT, sets: Sets = None) -> None:
    """Write one offline HTML file: funnel, failures with reasons, throughput, drawings."""
    from nextloom.pipelines.report import write_report

    loaded, dataset = load(recipe, root, sets)
    print(write_report(loaded, dataset, root=root))


@app.command()
def release(
    recipe: RecipeArg,
    name: Annotated[str | None, typer.Argument(help="which release of the recipe; default: all")] = None,
    root: Root = DEFAULT_ROOT,
    sets: Sets = None,
) -> None:
    """Publish an immutable manifest of rows and columns."""
    from nextloom.pipelines.release import make_release

    loaded, dataset = load(recipe, root, sets)
    with dataset.lease(f"nextloom release {recipe}"):
        for each in [name] if name else list(loaded.releases):
            made, new = make_release(loaded, dataset, each)
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
    as_json: AsJson = False,
) -> None:
    """Check the token columns of releases against checksums, schedules and a fresh encoding; code 1 if any differs."""
    from nextloom.pipelines.verify import mend
    from nextloom.pipelines.verify import verify as check
    from nextloom.store.release import latest, open_release

    loaded, dataset = load(recipe, root, sets)
    newest = [latest(dataset.uri, each) for each, spec in loaded.releases.items() if spec.columns]
    chosen = [r for r in ([open_release(dataset.uri, name)] if name else newest) if r]
    results = [check(loaded, each, sample, seed) for each in chosen]
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
    elif wrong:
        hint = f"nextloom verify {recipe} --mend takes them out, then nextloom run {recipe} makes them again"
        raise UserError(f"{wrong} findings", where=results[0].release, next=hint)


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
        if delete:
            remove(dataset, garbage)
    for table in garbage:
        print(f"{table.table}: {len(table.files):,} files, {table.size:,} bytes")
    count, size = sum(len(t.files) for t in garbage), sum(t.size for t in garbage)
    print(f"{count:,} files, {size:,} bytes {'deleted' if delete else 'can go; --delete deletes them'}")


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

    def show(line: dict[str, Any]) -> None:
        if "loss" in line:
            print(f"  step {line['step']:>6,} of {loaded.steps:,}  loss {line['loss']:.4f}", file=sys.stderr)

    loaded = load_recipe(recipe, root=root, sets=sets)
    summary = launch(loaded, fresh=fresh, address=address, on_line=show)
    print(
        f"{summary['state']}: {loaded.output}, {summary['steps']:,} steps, "
        f"loss {summary['first_loss']:.3f} -> {summary['last_loss']:.3f}, {summary['per_second']:,.0f} per second"
    )
    figures = {name: value for name, value in summary["evaluation"].items() if "/" not in name}
    print("  " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))


@app.command()
def evaluate(recipe: RecipeArg, root: Root = DEFAULT_ROOT, sets: Sets = None, as_json: AsJson = False) -> None:
    """Measure how well a tokenizer restores the pictures of a folder, at several resolutions."""
    from nextloom.train.reconstruction import PUBLISHED, evaluate_recipe

    summary = evaluate_recipe(recipe, root=root, sets=sets)
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    table = _table("level", "pixels", "pictures", "enlarged", "PSNR dB", "SSIM 11x11", "SSIM 7x7", "codes", "paper")
    for column in table.columns[:-1]:
        column.justify = "right"
    for line in summary["levels"]:
        paper = line["paper"]
        numbers = [f"{line[n]:,}" for n in ("level", "side", "pictures", "enlarged")]
        quality = [f"{line['psnr_db']:.3f}", *(f"{line[n]:.3f}" if n in line else "" for n in ("ssim", "ssim_uniform"))]
        known = summary["dataset_name"] in PUBLISHED
        beside = f"{paper['psnr_db']:.3f} / {paper['ssim']:.3f}" if paper else "none" if known else "other data"
        table.add_row(*numbers, *quality, f"{line['codes_used']:,.0f}", beside)
    _show(table)
    if summary["failed"]:
        first = "{file}: {message}".format(**summary["failures"][0])
        print(f"{summary['failed']:,} of {summary['files']:,} files gave no picture; the first: {first}")


@app.command()
def generate(recipe: RecipeArg, root: Root = DEFAULT_ROOT, sets: Sets = None) -> None:
    """Draw pictures from captions; writes PNGs and a grid."""
    from nextloom.train.drawing import draw_recipe

    local_root(root, "generate")
    summary = draw_recipe(recipe, root=root, sets=sets)
    print("\n".join(f"  {name}: {value}" for name, value in summary.items() if name != "identity"))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in ("rows to do", "of", "CPU time", "done") else "left")
    return table


def _counts_table(rows: list[tuple[str, int | None, dict[str, int]]]) -> Table:
    names = list(dict.fromkeys(name for _, _, counts in rows for name in counts))
    table = _table("step", "done", *names)
    for column in table.columns[1:]:
        column.justify = "right"
    for step, done, counts in rows:
        cells = [f"{counts[n]:,}" if n in counts else "" for n in names]
        table.add_row(step, "" if done is None else f"{done:,}", *cells)
    return table


def _show(table: Table) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def call(command: typer.Typer) -> None:
    """Run `command` on the arguments of this process, and end the process.

    Exit codes: 0; 1 and a message with the next step for errors the user can mend; 2 for a wrong command line;
    130 after Ctrl-C, which Typer turns into an exit of that code.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("nextloom").setLevel(logging.INFO)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # own ops lie beside the recipe; Ray gives its workers this folder by itself
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("interrupted; run the same command again to go on", file=sys.stderr)
        raise


def main() -> None:
    """Console script `nextloom`."""
    call(app)
