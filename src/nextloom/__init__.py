"""NextLoom: the data pipeline and training system around the NextFlow model (arXiv 2601.02204).

    nextloom.open("datasets/photos").release("curated")     reads what was published (`nextloom.reader`)
    nextloom.Recipe(dataset=..., source=..., steps=...)     builds and runs a recipe (`nextloom.api`)

Importing this package imports neither of them: they come when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextloom.api import Recipe as Recipe
    from nextloom.errors import UserError as UserError
    from nextloom.reader import open as open

__version__ = "0.1.0"
_LAZY = {"Recipe": "nextloom.api", "UserError": "nextloom.errors", "open": "nextloom.reader"}


def __getattr__(name: str) -> Any:
    """What this package offers, imported with the first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'nextloom' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
