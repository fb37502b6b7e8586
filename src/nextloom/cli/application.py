"""The application and what its verbs share: options, opening a recipe with its dataset, and how the process ends."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import sys
import traceback
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

from nextloom.config import DEFAULT_ROOT, resolve
from nextloom.errors import Stopped, UserError
from nextloom.inside import refuse_links
from nextloom.io import is_uri
from nextloom.printable import PrintableFormatter, printable, redacted
from nextloom.problems import TRACEBACK, explain, unforeseen

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
AllowShrink = Annotated[
    bool, typer.Option("--allow-shrink", help="publish a release also with less than half of its rows")
]
INTERRUPTED, TERMINATED = 130, 143
_asked = ""
"""The recipe of this process and its options, as typed."""


def load(recipe: str, root: str, sets: list[str] | None) -> tuple[Any, Any]:
    """(Recipe, Dataset) for a verb.

    Raises:
        UserError: a mistake in the recipe, or a root that cannot be opened.
    """
    from obstore.exceptions import BaseError

    from nextloom.pipelines.recipe import Recipe
    from nextloom.store.dataset import Dataset

    global _asked  # noqa: PLW0603  (what a message at the end of the process names)
    loaded = Recipe.load(recipe, root=root, sets=sets)
    given = ["--root", root] if root != DEFAULT_ROOT else []
    _asked = shlex.join([recipe, *given, *(part for each in sets or () for part in ("--set", each))])
    if not is_uri(root):
        refuse_links(root, "datasets", loaded.dataset)
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

    Exit codes: 0; 1 and a message with the next step for errors the user can mend, and for those that nobody foresaw
    (their traceback is shown with NEXTLOOM_TRACEBACK=1); 2 for a wrong command line; 130 after Ctrl-C, which Typer
    turns into an exit of that code; 143 after SIGTERM. Either way what is
    done is committed, and a training writes a checkpoint, first.
    """
    terminated = _on_sigterm()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("nextloom").setLevel(logging.INFO)
    try:
        command()
    except Stopped as end:
        print(end, file=sys.stderr)
        sys.exit(end.code)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        how, code = ("terminated", TERMINATED) if terminated else ("interrupted", INTERRUPTED)
        print(f"{how}; run the same command again to go on", file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        tell(error)
        sys.exit(1)


def tell(error: BaseException) -> None:
    """Print what went wrong, where, why, and the next command for the recipe that was asked about."""
    told = explain(error)
    if os.environ.get(TRACEBACK) == "1" and not isinstance(error, UserError):
        print(printable(redacted("".join(traceback.format_exception(error))), lines=True), file=sys.stderr)
    text = named(str(told)) if told else unforeseen(error)
    print(f"error: {printable(redacted(text), lines=True)}", file=sys.stderr)


def named(text: str) -> str:
    """`text` with the recipe that this process was asked about, and its options, in the commands it names."""
    return re.sub(r"(nextloom \w+ )RECIPE\b", lambda found: found[1] + _asked, text) if _asked else text


def _on_sigterm() -> list[bool]:
    """Have SIGTERM end the process as Ctrl-C does; the list is no longer empty once it has come."""
    come: list[bool] = []

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would cut off the commit of what is done
        come.append(True)
        raise KeyboardInterrupt  # Ray's waiting calls let this one pass, and turn a SystemExit into another

    signal.signal(signal.SIGTERM, end)
    return come
