"""Helpers for tests of exports: releases straight out of a listing, no run and no Ray; what an export holds."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from nextloom.content import Content
from nextloom.pipelines.export import Chosen, Options, export
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import Recipe
from nextloom.pipelines.release import make_release
from nextloom.store.dataset import Dataset
from nextloom.store.release import Release
from nextloom.untrusted import Door


def recipe_of(root: Path, source: dict[str, Any], **more: Any) -> tuple[Recipe, Dataset]:
    """A recipe over `source` that releases all its rows as `all`."""
    data = {"dataset": "toy", "source": source, "releases": {"all": {"rows": "source"}}, **more}
    return Recipe.build(data, root=str(root)), Dataset(str(root / "datasets" / "toy"))


def published(root: Path, source: dict[str, Any], **more: Any) -> Release:
    """The rows of a source, listed and released."""
    recipe, dataset = recipe_of(root, source, **more)
    with dataset.lease("test"):
        planner = Planner(recipe, dataset)
        planner.sync()
        return make_release(recipe, dataset, "all", planner)[0]


def exported(release: Release, folder: Path, to: str, columns: tuple[str, ...] = (), **options: Any) -> Path:
    """Export it; the folder."""
    export(Chosen.of(release, columns), folder, Options(to, **options))
    return folder


def tar_names(folder: Path) -> list[str]:
    """Names of all members of all tars, in order."""
    names = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    return names


def manifest(folder: Path) -> dict[str, Any]:
    """What the export says of itself."""
    return json.loads((folder / ".nextloom" / "export.json").read_text())


def content_of(folder: Path) -> Content:
    """What reads the bytes of rows below a folder."""
    return Content(Door([str(folder)]))


def listing(source: Any) -> list[dict[str, Any]]:
    """Rows of a source, in order."""
    return [row for unit in source.units() for row in source.items(unit, {}).to_pylist()]
