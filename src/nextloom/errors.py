"""Errors meant for the person at the terminal: what, where, why, and the next command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend.

    Args:
        what: the problem in one sentence.
        where: a config path or a file, such as ``steps.keep.where``.
        next: the command or edit that mends it.
    """

    def __init__(self, what: str, *, where: str | None = None, next: str | None = None) -> None:
        self.what, self.where, self.next = what, where, next
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.next:
            lines.append(f"  next: {self.next}")
        return "\n".join(lines)

    def __reduce__(self):  # keyword arguments survive a trip between processes
        return _rebuild, (type(self), self.what, self.where, self.next)


class Damaged(UserError):
    """What lies on disk is not what was written: a file or document is lost, cut, flipped or replaced by a link."""


class Stopped(Exception):
    """A signal ended the work in an orderly way; the message is one line that says how to go on.

    Args:
        message: the line.
        signal: number of the signal; the exit code is 128 more.
    """

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.code = 128 + signal


def _rebuild(kind: type[UserError], what: str, where: str | None, next: str | None) -> UserError:
    return kind(what, where=where, next=next)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: ``did you mean 'x'?``, or the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
