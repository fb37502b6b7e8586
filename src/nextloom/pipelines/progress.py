"""Progress on stderr: a bar per step on a terminal; without one, plain lines, at most one per step in 30 seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import rich.progress as rp
from rich.console import Console

from nextloom.printable import printable

EVERY_SECONDS = 30.0
"""Without a terminal: time between two lines about a step that goes on."""


@dataclass
class _Step:
    """What is known of a step that has begun."""

    done: int
    wanted: int
    failed: int = 0
    fresh: int = 0
    """Rows done since it began."""
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)


class Progress:
    """A progress line per step; also prints the resume line, which says what is done and what is left."""

    def __init__(self, show: bool = True) -> None:
        self._console = Console(stderr=True, quiet=not show, highlight=False)
        self._bars: rp.Progress | None = None
        self._tasks: dict[str, rp.TaskID] = {}
        self._steps: dict[str, _Step] = {}

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
        self._steps[step] = _Step(done, wanted)
        if 0 < done < wanted:
            self.say(f"resume {step}: {done:,} of {wanted:,} rows done, {wanted - done:,} left")
        if self._bars:
            self._tasks[step] = self._bars.add_task(step, completed=done, total=wanted, note="")

    def say(self, text: str) -> None:
        """A line of its own; it may hold what strangers wrote."""
        self._console.print(f"  {printable(text)}", markup=False, soft_wrap=True)

    def advance(self, step: str, rows: int, errors: int) -> None:
        """`rows` more are settled, `errors` of them as error rows."""
        state = self._steps[step]
        state.done, state.fresh, state.failed = state.done + rows, state.fresh + rows, state.failed + errors
        if self._bars:
            note = f"{state.failed:,} failed" if state.failed else ""
            self._bars.update(self._tasks[step], advance=rows, note=note)
        else:
            self.tick()

    def tick(self) -> None:
        """Time has passed: without a terminal, say how far the steps are that have not said so for a while."""
        now = time.monotonic()
        for step, state in self._steps.items():
            if not self._bars and state.done < state.wanted and now - state.said >= EVERY_SECONDS:
                self.say(_line(step, state))
                state.said = now

    def finish(self, step: str, counts: dict[str, int]) -> None:
        """The step is complete: its counts on one line."""
        text = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name in ("kept", "values"))
        self._steps.pop(step, None)
        if self._bars:
            self._bars.update(self._tasks[step], completed=counts.get("rows", 0), note=text)
        else:
            self._console.print(f"  {step:<14} {text}")


def _line(step: str, state: _Step) -> str:
    """``stats           1,024 of 9,000 rows, 12 failed, 34.1 rows/s, 4 min left``."""
    rate = state.fresh / max(time.monotonic() - state.began, 1e-9)
    failed = f", {state.failed:,} failed" if state.failed else ""
    left = f"{_duration((state.wanted - state.done) / rate)} left" if rate else "no row yet"
    return f"{step:<14} {state.done:,} of {state.wanted:,} rows{failed}, {rate:.3g} rows/s, {left}"


def _duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.2 h``, ``2.1 days``."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86400:.1f} days"
