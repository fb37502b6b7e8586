"""Reading what a dataset published, from Python: a release as tables, rows, images and tokens.

    import nextloom

    release = nextloom.open("datasets/photos").release("curated")
    release.table(["source.caption", "stats.width"])       a pyarrow.Table
    for image in release.images(): image.key, image.pixels
    for tokens in release.tokens("tokens"): tokens["target"]

A reader is pinned to one version of a release: what is published later changes nothing for it. Rows come in the order
of their ids. All but `table` go through the rows a few hundred at a time, whatever the size of the release; ids are
held, 8 bytes a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from nextloom.config import DEFAULT_ROOT, resolve
from nextloom.errors import UserError, did_you_mean
from nextloom.io import is_uri
from nextloom.store import release as releases
from nextloom.store.dataset import Dataset as Stored
from nextloom.store.originals import Originals

WINDOW = 512
"""Rows in memory at once."""
SOURCE = "source"
TOKENS: dict[str, str] = {"target": "<u2", "input": "<u2", "clean": "<u2", "ids": "<i4"}
"""Field of a column of tokens -> how its numbers lie in bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """One row with its image."""

    id: int
    key: str
    caption: str | None
    bytes: bytes
    """As the source has them."""
    frame: int = 0
    """Which moment of an animation it is."""

    @property
    def pixels(self) -> np.ndarray:
        """(height, width, 3) uint8 sRGB, upright, transparency on white: what ops and models see.

        Raises:
            nextloom.pixels.PictureError: they are no image.
        """
        from nextloom import pixels

        return pixels.decode(self.bytes, self.frame)

    def tensor(self) -> Any:
        """(3, height, width) uint8 torch tensor of `pixels`."""
        import torch

        return torch.from_numpy(self.pixels.copy()).permute(2, 0, 1)


class Release:
    """One version of a release; opened by `Dataset.release`."""

    def __init__(self, stored: releases.Release) -> None:
        self._stored = stored

    @property
    def name(self) -> str:
        """Name and version, such as ``curated-0003``."""
        return self._stored.name

    @property
    def digest(self) -> str:
        """Identity of its rows and columns: equal digests, equal content."""
        return self._stored.digest

    def __len__(self) -> int:
        return len(self._stored.ids)

    def __repr__(self) -> str:
        return f"<release {self.name}: {len(self):,} rows, {', '.join(self.columns) or 'no columns'}>"

    @property
    def columns(self) -> dict[str, dict[str, pa.DataType]]:
        """step -> field -> Arrow type, `source` (what the source said of each row) included."""
        first = self._stored.ids[:1]
        schemas = {SOURCE: self._stored.rows(first).schema}
        schemas |= {step: self._stored.column(step, None, first).schema for step in self._stored.columns}
        return {step: {f.name: f.type for f in schema if f.name != "id"} for step, schema in schemas.items()}

    def table(self, columns: Sequence[str] = ()) -> pa.Table:
        """`id`, `key` and columns of all rows, in memory.

        Args:
            columns: ``step.field``, or ``step`` for all its fields but bytes; of `source` too. Default: all columns of
                the release, without fields of bytes.

        Raises:
            UserError: no such column.
        """
        return pa.concat_tables(self.batches(columns, size=1 << 16))

    def batches(self, columns: Sequence[str] = (), size: int = WINDOW) -> Iterator[pa.Table]:
        """As `table`, in tables of at most `size` rows."""
        by_step = self._chosen(columns)
        ids = self._stored.ids
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            rows = self._stored.rows(part, list(dict.fromkeys(["key", *by_step.get(SOURCE, ())])))
            out = {"id": rows["id"], "key": rows["key"]}
            for step, fields in by_step.items():
                data = rows if step == SOURCE else self._stored.column(step, fields, part)
                out |= {f"{step}.{field}": data[field] for field in fields}
            yield pa.table(out)

    def rows(self, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """As `table`, a row at a time: ``{"id": 0, "key": "a.jpg", "stats.width": 640}``."""
        for batch in self.batches(columns):
            yield from batch.to_pylist()

    def images(self, errors: Literal["raise", "yield"] = "raise") -> Iterator[Any]:
        """Each row with the bytes of its image; pixels are decoded when asked for.

        Args:
            errors: what becomes of a row whose bytes are gone: raise, or yield ``(key, exception)`` in its place.

        Raises:
            UserError: naming the row, where its file is gone or changed since it was listed.
        """
        ids, originals = self._stored.ids, Originals(self._stored)
        for start in range(0, len(ids), WINDOW):
            rows = self._stored.rows(ids[start : start + WINDOW]).to_pylist()
            for row, raw in zip(rows, originals.fetch(rows), strict=True):
                if isinstance(raw, bytes):
                    yield Picked(row["id"], row["key"], row.get("caption"), raw, row.get("frame") or 0)
                elif errors == "yield":
                    yield row["key"], raw
                else:
                    detail = f" ({raw.detail})" if getattr(raw, "detail", None) else ""  # pyrefly: ignore
                    raise UserError(
                        f"{row['key']} of release {self.name} has no bytes any more: {raw}{detail}",
                        where=row["uri"],
                        next='bring the file back, or pass errors="yield"',
                    ) from raw

    def tokens(self, step: str, kind: Literal["numpy", "torch"] = "numpy") -> Iterator[dict[str, Any]]:
        """Each row's tokens: ``{"id": 0, "key": "a.jpg", "target": array, ...}``; rows that failed give None.

        Args:
            step: a column of tokens. Of `image_tokens` the arrays are uint16, of `text_tokens` int32.
            kind: numpy arrays, or torch tensors (16-bit codes become int32, which torch computes with).

        Raises:
            UserError: no such column, or one without tokens.
        """
        fields = [field for field in self._fields(step) if field in TOKENS]
        if not fields:
            raise UserError(
                f"column {step!r} of {self.name} holds no tokens", next=f"it has: {', '.join(self._fields(step))}"
            )
        for batch in self.batches([f"{step}.{field}" for field in fields]):
            for row in batch.to_pylist():
                values = {field: _numbers(row[f"{step}.{field}"], TOKENS[field], kind) for field in fields}
                yield {"id": row["id"], "key": row["key"], **values}

    def _fields(self, step: str) -> dict[str, pa.DataType]:
        known = self.columns
        if step not in known:
            raise UserError(
                f"release {self.name} has no column {step!r}; {did_you_mean(step, known)}",
                next="add it to the columns of the release in the recipe, then nextloom release RECIPE",
            )
        return known[step]

    def _chosen(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """step -> fields, in the order asked for."""
        if isinstance(columns, str):
            columns = (columns,)
        out: dict[str, list[str]] = {}
        for name in columns or list(self._stored.columns):
            step, _, field = name.partition(".")
            known = self._fields(step)
            if field and field not in known:
                raise UserError(f"{step!r} has no field {field!r}; {did_you_mean(field, known)}")
            plain = [f for f, kind in known.items() if f != "error" and not pa.types.is_binary(kind)]
            for each in [field] if field else plain:
                if each not in out.setdefault(step, []):
                    out[step].append(each)
        return out


def _numbers(raw: bytes | None, dtype: str, kind: str) -> Any:
    if raw is None:
        return None
    array = np.frombuffer(raw, dtype).astype(dtype[1:])  # a copy that may be written to
    if kind == "numpy":
        return array
    import torch

    return torch.from_numpy(array.astype(np.int32))


class Dataset:
    """What a recipe made, for reading."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self._stored.uri

    @property
    def releases(self) -> list[str]:
        """All published versions, such as ``["curated-0001", "curated-0002"]``."""
        return [name for name, _ in releases.versions(self._stored.documents)]

    def release(self, name: str) -> Release:
        """Release ``curated``, its newest version now, or ``curated-0001``.

        Raises:
            UserError: there is none.
        """
        return Release(releases.open_release(self.uri, name))

    def __repr__(self) -> str:
        return f"<dataset {self._stored.name}: {', '.join(self.releases) or 'no releases'}>"


def open(dataset: str | os.PathLike[str], root: str = DEFAULT_ROOT) -> Dataset:
    """A dataset.

    Args:
        dataset: its folder or URI, ``datasets/x``, or its name; what is not there as written is looked for in `root`.
        root: what recipes are run with (``--root``).

    Raises:
        UserError: there is no dataset.
    """
    given = os.fspath(dataset)
    places = [given, resolve(given, root), resolve(f"datasets/{given}", root)]
    place = places[0] if is_uri(given) else next(filter(os.path.isdir, places), None)
    if place is None:
        raise UserError(
            f"no dataset {given!r}, neither here nor in {root}",
            next="nextloom run RECIPE makes one: ROOT/datasets/NAME",
        )
    stored = Stored(place.rstrip("/"))
    if not stored.rows.exists():
        raise UserError(f"{place} is no dataset: it has no rows", next="give the folder ROOT/datasets/NAME")
    return Dataset(stored)


__all__ = ["Dataset", "Picked", "Release", "open"]
