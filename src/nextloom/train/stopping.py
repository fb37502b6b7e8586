"""Stopping a training by SIGTERM or Ctrl-C: the first signal asks, the second ends the process at once.

The first one sets a flag that the loop reads once a step (`Signals.asked`), and on Ray Train writes a document that
the first worker looks for. The step ends, a checkpoint is written, and `launch` raises `Stopped`, whose exit code is
that of the signal. Ray puts handlers of its own in place when it starts; `install` puts ours back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from nextloom.errors import Stopped

NUMBERS = (signal.SIGTERM, signal.SIGINT)
AGAIN = "run the same command again to go on"


class Signals:
    """Handlers of both signals inside a `with`; outside of the main thread, where there can be none, it does nothing.

    Args:
        on_first: called on the first signal, on the main thread.
    """

    def __init__(self, on_first: Callable[[], None] = lambda: None) -> None:
        self._on_first = on_first
        self._before: dict[int, Any] = {}
        self.number: int | None = None
        """The first signal that came."""

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in NUMBERS}
            self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Put the handlers in place, again where something replaced them."""
        for number in self._before:
            signal.signal(number, self._handle)

    def asked(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def stopped(self, step: int, steps: int) -> Stopped:
        """What `launch` raises: after `step` of `steps`, which a checkpoint holds."""
        assert self.number is not None
        where = f"after step {step:,} of {steps:,}, which is in a checkpoint" if step else "before the first step"
        if step == steps:
            where = f"after all {steps:,} steps, before the model was judged and put in its place"
        return Stopped(f"stopped {where}; {AGAIN}", signal=self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            _say(f"stopped at once; {AGAIN} from the newest checkpoint\n")
            os._exit(128 + number)
        self.number = number
        if sys.stderr.isatty():
            _say("stopping after this step; a second signal stops at once\n")
        self._on_first()


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
