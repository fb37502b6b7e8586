"""Weights that ship inside a Python package: where they lie, without importing the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def packaged(package: str, inner: str) -> str:
    """Path of a file or folder of an installed package; a text that names the package where it is not installed.

    The text is a path to nothing, so it ends as the usual "no weights at ..." of a plan.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return f"package {package} (not installed)"
    return str(Path(spec.origin).parent / inner)
