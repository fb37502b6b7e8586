"""Progress on the terminal, one line per step, on stderr; plain lines where there is no terminal."""

from __future__ import annotations

import rich.progress as rp
from rich.console import Console

from nextloom.printable import printable


class Progress:
    """A progress line per step; also prints the resume line, which says what is done and what is left."""

    def __init__(self, show: bool = True) -> None:
        self._console = Console(stderr=True, quiet=not show, highlight=False)
        self._bars: rp.Progress | None = None
        self._tasks: dict[str, rp.TaskID] = {}
        self._failed: dict[str, int] = {}

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            columns = [
                rp.TextColumn("  {task.description:<14}"),
                rp.BarColumn(bar_width=30),
                rp.MofNCompleteColumn(),
                rp.TextColumn("{task.fields[note]}"),
                rp.TimeElapsedColumn(),
            ]
            self._bars = rp.Progress(*columns, console=self._console)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()
            self._bars = None

    def start(self, step: str, done: int, wanted: int) -> None:
        """A step begins with `done` of `wanted` rows already there."""
        if 0 < done < wanted:
            self._console.print(f"  resume {step}: {done:,} of {wanted:,} rows done, {wanted - done:,} left")
        if self._bars:
            self._tasks[step] = self._bars.add_task(step, completed=done, total=wanted, note="")

    def say(self, text: str) -> None:
        """A line of its own; it may hold what strangers wrote."""
        self._console.print(f"  {printable(text)}", markup=False)

    def advance(self, step: str, rows: int, errors: int) -> None:
        """`rows` more are settled, `errors` of them as error rows."""
        if self._bars:
            task = self._tasks[step]
            self._failed[step] = self._failed.get(step, 0) + errors
            note = f"{self._failed[step]:,} failed" if self._failed[step] else ""
            self._bars.update(task, advance=rows, note=note)

    def finish(self, step: str, counts: dict[str, int]) -> None:
        """The step is complete: its counts on one line."""
        text = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name in ("kept", "values"))
        if self._bars:
            self._bars.update(self._tasks[step], completed=counts.get("rows", 0), note=text)
        else:
            self._console.print(f"  {step:<14} {text}")
