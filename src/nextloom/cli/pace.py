"""How far a long verb is, on stderr: done, rate, time left; without a terminal a line every 30 s."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

EVERY_SECONDS = 30.0


class Pace:
    """Prints lines such as ``step 1,200 of 10,000, 3.1 per second, 47 min left``.

    Args:
        noun: what is counted.
        total: how many there will be.
        every: seconds between two lines.
        stream: where they go; default: stderr.
        clock: seconds, rising.
    """

    def __init__(
        self,
        noun: str,
        total: int,
        *,
        every: float = EVERY_SECONDS,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._noun, self._total, self._every = noun, total, every
        self._stream, self._clock = stream or sys.stderr, clock
        self._told = clock()
        self._first: tuple[int, float] | None = None

    def update(self, done: int, *, more: str = "") -> None:
        """Take in that `done` are done; a line with `more` behind it, where one is due.

        The rate is over what was done since the first call, since a resumed run begins in the middle.
        """
        now = self._clock()
        first, since = self._first = self._first or (done, now)
        if now - self._told < self._every:
            return
        self._told = now
        rate = (done - first) / (now - since) if now > since else 0.0
        left = f", {duration((self._total - done) / rate)} left" if rate else ""
        speed = f", {rate:,.3g} per second" if rate else ""
        print(f"  {self._noun} {done:,} of {self._total:,}{speed}{left}{more}", file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
