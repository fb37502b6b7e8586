"""The pictures of a release as a sequence: in memory while they are few, decoded when asked for otherwise.

A training must know every picture's shape before its first step, since batches are of one shape. Where the release
carries a column of `image_stats`, its widths and heights tell; otherwise every picture is decoded once at the start.
The first `KEPT_BYTES` of what was decoded stay in memory, which is all of a small release. The price of a larger one:
a picture is read and decoded again each time that a step shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from nextloom.store.release import Release
from nextloom.train.pictures.rows import originals

KEPT_BYTES = 2**30
MEASURED = "image_stats"
"""The op whose columns `width` and `height` are of the upright picture."""


class Gallery(Sequence[np.ndarray]):
    """(height, width, 3) uint8 pictures of all rows, in the order of their ids.

    Args:
        release: whose rows.

    Raises:
        UserError: a file that must be decoded is gone or gives no pixels any more; also by indexing.
    """

    def __init__(self, release: Release) -> None:
        self._release, self._ids = release, release.ids
        self._kept: dict[int, np.ndarray] = {}
        self.shapes: list[tuple[int, int]] = self._told() or [rgb.shape[:2] for rgb in self._decoded()]
        """(height, width) of every picture."""

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, number: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, number: slice) -> list[np.ndarray]: ...
    def __getitem__(self, number: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        if number in self._kept:
            return self._kept[number]
        return next(originals(self._release, self._ids[number : number + 1])).rgb

    def _told(self) -> list[tuple[int, int]] | None:
        """Shapes out of a column that has all of them."""
        step = next((step for step, column in self._release.columns.items() if column["op"] == MEASURED), None)
        if step is None or not len(self):
            return None
        table = self._release.column(step, ["height", "width"])
        if table["height"].null_count:
            return None
        return list(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))

    def _decoded(self) -> Iterator[np.ndarray]:
        size = 0
        for number, original in enumerate(originals(self._release)):
            size += original.rgb.nbytes
            if size <= KEPT_BYTES:
                self._kept[number] = original.rgb
            yield original.rgb
