"""What is exported: the rows of a release with chosen columns, a few at a time, each with its bytes or the reason."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from nextloom import pixels
from nextloom.content import WEB
from nextloom.errors import UserError, did_you_mean
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE, Graph, Recipe, ReleaseSpec
from nextloom.pipelines.release import fresh_content
from nextloom.store.dataset import Dataset
from nextloom.store.originals import Originals
from nextloom.store.release import Release, latest, open_release

WINDOW = 512
"""Rows whose columns are in memory at once; of their bytes one row's."""
ROWS_NAME = "rows"


@dataclass(slots=True)
class Sample:
    """One row on its way out."""

    id: int
    key: str
    caption: str | None
    sidecar: str | None
    """JSON text of what the source said, as it was listed."""
    uri: str
    values: dict[str, Any] = field(default_factory=dict)
    """``step.field`` -> value, of the chosen columns."""
    raw: bytes | None = None
    error: Exception | None = None
    """Why there are no bytes."""
    bare: bool = False
    """The row is a frame, which has no file of its own."""


@dataclass(frozen=True)
class Chosen:
    """A release and the columns chosen of it."""

    release: Release
    fields: dict[str, pa.Field]
    """``step.field`` -> its Arrow field, in the order in which they were asked for."""

    @classmethod
    def of(cls, release: Release, columns: Sequence[str] = ()) -> Chosen:
        """Columns by name.

        Args:
            release: whose.
            columns: ``step.field``, or ``step`` for all its fields but bytes; also of `source`. Default: all fields
                but bytes of every column of the release.

        Raises:
            UserError: no such step or field.
        """
        ids = release.ids[:1]
        known = {step: release.column(step, None, ids).drop_columns(["id"]).schema for step in release.columns}
        found: dict[str, pa.Field] = {}
        for name in [part.strip() for column in columns for part in column.split(",") if part.strip()] or list(known):
            step, _, inner = name.partition(".")
            if step == SOURCE and step not in known:
                known[SOURCE] = release.rows(ids).schema
            if step not in known:
                raise UserError(
                    f"release {release.name} has no column {step!r}; {did_you_mean(step, [*known, SOURCE])}",
                    where="--columns",
                    next=f"add {step} to the columns of the release in the recipe, then nextloom release RECIPE",
                )
            schema = known[step]
            if inner and inner not in schema.names:
                raise UserError(
                    f"{step!r} has no field {inner!r}; {did_you_mean(inner, schema.names)}", where="--columns"
                )
            plain = [f.name for f in schema if f.name != "error" and not pa.types.is_binary(f.type)]
            for each in [inner] if inner else plain:
                found[f"{step}.{each}"] = schema.field(each)
        return cls(release, found)

    def expect_bytes(self) -> None:
        """Refuse a release of URLs without the column that downloaded them.

        Raises:
            UserError: the first rows, or all of them, are URLs.
        """
        if any(column.get("content") for column in self.release.columns.values()):
            return
        uris = self.release.rows(self.release.ids[:WINDOW], ["uri"])["uri"].to_pylist()
        if all(uri.startswith(WEB) for uri in uris):
            raise UserError(
                f"rows of {self.release.name} are URLs, and it has no column that brings their bytes",
                where="--release",
                next="add the `download` step to the columns of the release; or --to keys, with --columns source.uri",
            )

    def keys(self) -> Iterator[str]:
        """Keys of all rows, in order."""
        ids = self.release.ids
        for start in range(0, len(ids), 1 << 16):
            yield from self.release.rows(ids[start : start + (1 << 16)], ["key"])["key"].to_pylist()

    def samples(self, start: int, *, bytes_too: bool, frames: bool) -> Iterator[Sample]:
        """Rows from number `start` on, in the order of their ids.

        Args:
            start: 0 for all.
            bytes_too: whether to read what the rows hold.
            frames: whether a frame of an animation is made into a PNG; else it has no bytes of its own.
        """
        ids, originals = self.release.ids, Originals(self.release)
        by_step: dict[str, list[str]] = {}
        for name in self.fields:
            step, _, inner = name.partition(".")
            by_step.setdefault(step, []).append(inner)
        for first in range(start, len(ids), WINDOW):
            part = ids[first : first + WINDOW]
            rows = self.release.rows(part).to_pylist()
            columns = self._columns(part, rows, by_step)
            raws = originals.fetch(rows) if bytes_too else iter([None] * len(rows))
            for row, values, raw in zip(rows, columns, raws, strict=True):
                sample = Sample(row["id"], row["key"], row.get("caption"), row.get("sidecar"), row["uri"], values)
                if row.get("frame") is not None and bytes_too:
                    raw = _frame(raw, row["frame"]) if frames else raw
                    sample.bare = not frames
                sample.raw, sample.error = (None, raw) if isinstance(raw, Exception) else (raw, None)
                yield sample

    def _columns(
        self, ids: np.ndarray, rows: list[dict[str, Any]], by_step: dict[str, list[str]]
    ) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = [{} for _ in rows]
        for step, names in by_step.items():
            cells = rows if step == SOURCE else self.release.column(step, names, ids).to_pylist()
            for values, cell in zip(out, cells, strict=True):
                values.update({f"{step}.{name}": cell[name] for name in names})
        return [{name: values[name] for name in self.fields} for values in out]


def _frame(raw: bytes | Exception | None, frame: int) -> bytes | Exception:
    """A frame as a PNG of the pixels that ops see."""
    from PIL import Image

    if not isinstance(raw, bytes):
        return raw or AssertionError("no bytes were read")
    try:
        out = io.BytesIO()
        Image.fromarray(pixels.decode(raw, frame)).save(out, "PNG")
    except Exception as error:
        return error
    return out.getvalue()


def find_release(recipe: Recipe, dataset: Dataset, name: str | None) -> Release:
    """The release to export.

    Args:
        recipe: whose dataset it is.
        dataset: where it lies.
        name: ``curated`` (its newest version) or ``curated-0003``; default: the newest of the recipe's first.

    Raises:
        UserError: there is none; says which command makes it.
    """
    if name is not None:
        return open_release(dataset.uri, name)
    if not recipe.releases:
        last = next(
            (step for step in reversed(recipe.steps) if recipe.steps[step].columns().names[:1] == ["verdict"]), "STEP"
        )
        raise UserError(
            "the recipe has no release", where="releases", next=f"add one, or export rows without: --rows {last}"
        )
    first = next(iter(recipe.releases))
    if (found := latest(dataset.uri, first)) is None:
        raise UserError(f"no release {first!r} yet", where=dataset.uri, next=f"nextloom release RECIPE {first}")
    return found


def rows_of(recipe: Recipe, dataset: Dataset, step: str, columns: Sequence[str] = ()) -> Release:
    """The rows that a step chooses, as a release that is not published.

    Args:
        recipe, dataset: whose.
        step: a Select or an Expand of the recipe, or `source`.
        columns: as in `Chosen.of`; their steps become the columns of the release.

    Raises:
        UserError: no such step, or one that is not fresh; says the command.
    """
    if step != SOURCE and step not in recipe.steps:
        raise UserError(f"unknown step {step!r}; {did_you_mean(step, recipe.steps)}", where="--rows")
    names = dict.fromkeys(
        name.strip().partition(".")[0] for text in columns for name in text.split(",") if name.strip()
    )
    bringing = [name for name, op in recipe.steps.items() if getattr(op, "content", "") and _covers(recipe, name, step)]
    spec = ReleaseSpec(rows=step, columns=tuple(dict.fromkeys([n for n in names if n != SOURCE] + bringing)))
    draft = recipe.model_copy(update={"releases": {ROWS_NAME: spec}, "packs": {}})
    try:
        Graph(draft)  # names exist, and the columns cover the rows
        content = fresh_content(draft, dataset, ROWS_NAME, Planner(draft, dataset))
    except UserError as error:
        hint = (error.next or "").replace(f"--to {ROWS_NAME}", "" if step == SOURCE else f"--to {step}").strip()
        raise UserError(error.what, where="--rows", next=hint or None) from None
    return Release(dataset.uri, {"name": f"{ROWS_NAME} of {step}", **content})


def _covers(recipe: Recipe, name: str, rows: str) -> bool:
    """Whether the column of step `name` exists for `rows`."""
    wider = recipe.steps[name].rows or SOURCE
    while rows not in (wider, SOURCE):
        rows = recipe.steps[rows].rows or SOURCE
    return rows == wider
