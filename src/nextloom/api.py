"""Recipes from Python: built, planned, run, released and exported; the same objects as those that YAML makes.

recipe = nextloom.Recipe(
    dataset="photos",
    source={"op": "files", "path": "photos"},
    steps={"stats": {"op": "image_stats"}, "keep": {"op": "select", "where": "stats.short_side >= 256"}},
    releases={"curated": {"rows": "keep", "columns": ["stats"]}},
)
recipe.run()
recipe.release("curated").table(["stats.width"])
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nextloom import reader
from nextloom.config import DEFAULT_ROOT, resolve
from nextloom.errors import UserError
from nextloom.pipelines import recipe as recipes
from nextloom.pipelines.plan import StepPlan
from nextloom.store.dataset import Dataset


class Recipe:
    """A recipe with the root it is run in. Fields are those of a recipe file; relative paths begin at `root`.

    Args:
        dataset: its name.
        source: ``{"op": "files", ...}``, or a source object.
        steps: name -> ``{"op": ..., ...}``, or an op object.
        releases, packs, run, execution: as in a file.
        root: folder or URI below which everything is written.

    Raises:
        UserError: a mistake, with its config path.
    """

    def __init__(
        self,
        dataset: str,
        source: Any,
        steps: Mapping[str, Any] | None = None,
        *,
        root: str | os.PathLike[str] = DEFAULT_ROOT,
        **sections: Any,
    ) -> None:
        data = {"dataset": dataset, "source": source, "steps": dict(steps or {}), **sections}
        self._set(recipes.Recipe.build(data, root=os.fspath(root)), os.fspath(root))

    @classmethod
    def load(cls, path: str, *, root: str | os.PathLike[str] = DEFAULT_ROOT, sets: Sequence[str] = ()) -> Recipe:
        """A recipe file, or one that ships with the package; `sets` are ``["a.b=c"]`` as behind ``--set``."""
        made = cls.__new__(cls)
        made._set(recipes.Recipe.load(path, root=os.fspath(root), sets=list(sets)), os.fspath(root))
        return made

    def _set(self, spec: recipes.Recipe, root: str) -> None:
        self.spec, self.root = spec, root
        self._dataset = Dataset(resolve(f"datasets/{spec.dataset}", root))

    def __repr__(self) -> str:
        return f"<recipe {self.spec.dataset}: {', '.join(self.spec.steps)}>"

    def plan(self, to: str | None = None, *, retry_errors: bool = False) -> list[StepPlan]:
        """What is stale, why, and how many rows there are to do; writes nothing. As ``nextloom plan``."""
        from nextloom.pipelines.release import plan_with_releases

        return plan_with_releases(self.spec, self._dataset, to=to, retry_errors=retry_errors)

    def run(
        self,
        to: str | None = None,
        *,
        retry_errors: bool = False,
        address: str | None = None,
        show: bool = False,
        allow_shrink: bool = False,
    ) -> dict[str, dict[str, int]]:
        """Do what the plan says, only missing rows; go on after an interruption. As ``nextloom run``.

        Args:
            to: only this step or release, and what it needs.
            retry_errors: do failed rows again.
            address: a running Ray cluster; default: a local one.
            show: progress on stderr.
            allow_shrink: publish a release also with less than half of the rows it had.

        Returns:
            step -> counts of its rows.

        Raises:
            UserError: a step cannot run, or another writer holds the dataset.
        """
        from nextloom.pipelines.progress import Progress
        from nextloom.pipelines.release import keep_releases
        from nextloom.pipelines.run import Run

        with self._dataset.lease("nextloom.Recipe.run"), Progress(show=show) as progress:
            job = Run(self.spec, self._dataset, to=to, retry_errors=retry_errors, address=address, progress=progress)
            results = job.execute()
            _, refused = keep_releases(self.spec, self._dataset, to, allow_shrink=allow_shrink)
        if refused:
            raise refused[0]
        return {result.step: dict(result.counts) for result in results}

    def release(self, name: str | None = None, *, allow_shrink: bool = False) -> reader.Release:
        """Publish a release of what was run, and open it. As ``nextloom release``.

        Args:
            name: of the release in the recipe; default: its first.
            allow_shrink: as in `run`.
        """
        from nextloom.pipelines.release import make_release

        if name is None and not self.spec.releases:
            raise UserError("the recipe has no release", where="releases")
        with self._dataset.lease("nextloom.Recipe.release"):
            wanted = name or next(iter(self.spec.releases))
            made, _ = make_release(self.spec, self._dataset, wanted, allow_shrink=allow_shrink)
        return reader.Release(made)

    def open(self) -> reader.Dataset:
        """Its dataset, for reading."""
        return reader.open(self._dataset.uri)

    def export(
        self,
        folder: str | os.PathLike[str],
        to: str,
        *,
        release: str | None = None,
        rows: str | None = None,
        columns: Sequence[str] | str = (),
        **options: Any,
    ) -> Any:
        """Write kept rows with their original bytes. As ``nextloom export``.

        Args:
            folder: not there yet, empty, or holding this very export.
            to: webdataset, parquet, hf or keys.
            release: a published one; default: the newest of the recipe's first.
            rows: a step whose rows are written instead.
            columns: ``step.field``; default: all but bytes.
            options: `shard_mb`, `shard_rows`, `frames`, see `nextloom.pipelines.export.Options`.

        Returns:
            A `Summary`: rows written and failed, where the manifest lies.
        """
        from nextloom.pipelines.export import Chosen, Options, check_apart, export, find_release, rows_of

        columns = (columns,) if isinstance(columns, str) else columns
        check_apart(folder, root=self.root, sources=self.spec.source.places())
        if rows is None:
            found = find_release(self.spec, self._dataset, release)
        else:
            found = rows_of(self.spec, self._dataset, rows, columns)
        return export(Chosen.of(found, columns), folder, Options(to, **options))
