"""The table of attacks: what a hostile file, table, row, answer or folder tries, and how it ends.

Every entry runs twice: as the product is, where it must not succeed, and with its own guard taken away, where it
must. The second run is the control: it shows that the attack is a real one and that the guard is what stops it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch


@dataclass(frozen=True)
class Outcome:
    """How an attack ended."""

    succeeded: bool
    """Whether the attacker got what he wanted: seen from the effect (a file read, made, deleted; code run; a
    connection; memory or time beyond the budget), never from a message."""
    what: str
    """What a user sees: `error row NotAllowed`, `refused: ...`, `an escaped line`."""


@dataclass(frozen=True)
class Attack:
    """One line of the table."""

    group: str
    """Class of attack, such as `addresses`, `arrow`, `budgets`."""
    name: str
    """What is tried, in a few words."""
    outcome: str
    """Text that `Outcome.what` must contain."""
    strike: Callable[[Path], Outcome]
    """Does it, in an empty folder."""
    without_guard: Callable[[], AbstractContextManager]
    """Takes the guard away for the control run, for instance ``lambda: patched(module, "guard", replacement)``."""


def patched(owner: object, name: str, replacement: object) -> AbstractContextManager:
    """A context in which `owner.name` is `replacement`."""
    return patch.object(owner, name, replacement)
