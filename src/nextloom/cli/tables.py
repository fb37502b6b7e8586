"""Tables on stdout: columns by spaces, no boxes, no colour where a program reads."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nextloom.printable import printable


class PlainTable(Table):
    """A table whose cells are text as it is: no markup is read in it, and nothing that a terminal would obey."""

    def add_row(self, *cells: object, **options: object) -> None:  # pyrefly: ignore[bad-override]
        """A row; cells are turned into text."""
        super().add_row(*[Text(printable(str(cell))) for cell in cells], **options)  # pyrefly: ignore[bad-argument-type]


def table_of(*columns: str) -> Table:
    """An empty table; columns of amounts are aligned to the right."""
    table = PlainTable(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in ("rows to do", "of", "CPU time", "done") else "left")
    return table


def counts_table(rows: list[tuple[str, int | None, dict[str, int]]]) -> Table:
    """Of (step, rows done or None, {kind: rows}): a column for every kind that occurs."""
    names = list(dict.fromkeys(name for _, _, counts in rows for name in counts))
    table = table_of("step", "done", *names)
    for column in table.columns[1:]:
        column.justify = "right"
    for step, done, counts in rows:
        cells = [f"{counts[n]:,}" if n in counts else "" for n in names]
        table.add_row(step, "" if done is None else f"{done:,}", *cells)
    return table


def say(text: object) -> None:
    """A line, or lines, on stdout that may hold what strangers wrote."""
    print(printable(str(text), lines=True))


def show(table: Table) -> None:
    """Print it; 200 characters wide where stdout is no terminal."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
