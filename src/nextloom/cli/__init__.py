"""The command line: thin verbs over the pipelines and the trainer. Data to stdout, logs and progress to stderr.

Importing a module of verbs adds them to `app`, so `--help` lists them in the order of these imports.
"""

from nextloom.cli import curate, keep, learn, out
from nextloom.cli.application import app, call, load

__all__ = ["app", "call", "curate", "keep", "learn", "load", "main", "out"]


def main() -> None:
    """Console script `nextloom`."""
    call(app)
