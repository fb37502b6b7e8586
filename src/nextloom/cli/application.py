"""The application and what its verbs share: options, opening a recipe with its dataset, and how the process ends."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

from nextloom.config import resolve
from nextloom.errors import Stopped, UserError
from nextloom.printable import PrintableFormatter, printable, redacted

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


def call(command: typer.Typer) -> None:
    """Run `command` on the arguments of this process, and end the process.

    Exit codes: 0; 1 and a message with the next step for errors the user can mend; 2 for a wrong command line;
    130 after Ctrl-C, which Typer turns into an exit of that code; 128 and the signal where a verb stopped in order.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("nextloom").setLevel(logging.INFO)
    try:
        command()
    except UserError as error:
        print(f"error: {printable(redacted(str(error)), lines=True)}", file=sys.stderr)
        sys.exit(1)
    except Stopped as end:
        print(end, file=sys.stderr)
        sys.exit(end.code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("interrupted; run the same command again to go on", file=sys.stderr)
        raise
