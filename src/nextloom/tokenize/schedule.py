"""The scale schedule of a picture: from one code to the final grid, in up to 18 steps.

NextFlow's Table 14 lists 41 aspect ratios x 18 grids. Every entry equals `(round(H * s / 64), round(W * s /
64))`, halves to even, for the 18th grid (H, W) and a step s, the first forced to (1, 1). So 21 grids and
their transposes say everything, and a row's number here is its `schedule id`: 0 is 1:4 (wide), 20 square, 40
is 4:1 (tall), and 40 - i is the transpose of i. The table's "resolution" column contradicts its own grids in
32 rows; grids decide.

A level is a prefix: 256 px is the first 12 scales, so a picture at that level is `patch` times the 12th grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from nextloom.tokenize.documents import Grid

STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)
"""Sixty-fourths of the 18th grid, one per scale."""

LEVELS = {64: 4, 128: 8, 256: 12, 512: 16, 1024: 18}
"""Nominal resolution in pixels at 16 pixels per code -> number of scales."""

_WIDE: tuple[Grid, ...] = (
    *((32, 128), (32, 124), (32, 120), (32, 116), (36, 112), (36, 104), (36, 108)),
    *((40, 100), (40, 96), (44, 92), (44, 88), (44, 84), (48, 84), (48, 80)),
    *((52, 76), (52, 72), (56, 72), (56, 68), (60, 68), (60, 64), (64, 64)),
)
FINAL_GRIDS: tuple[Grid, ...] = (*_WIDE, *((w, h) for h, w in reversed(_WIDE[:-1])))
"""The 18th grid (rows, columns) of each schedule id, in the order of the published table."""

MAX_RATIO = 4.0
RATIO_TOLERANCE = 0.08
"""How far beyond 4:1 a picture may be: as much as the worst crop between two neighbouring rows."""


class TooElongated(ValueError):
    """An image that no schedule fits; the message is the same for all, `detail` says its size."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__(f"longer than {MAX_RATIO:g}:1, the longest schedule")
        self.detail = f"{height} x {width} pixels (height x width)"

    def __reduce__(self):  # its message is no argument
        height, _, width, *_ = self.detail.split()
        return TooElongated, (int(height), int(width))


@lru_cache(maxsize=1024)
def schedule(final_grid18: Grid, scales: int) -> tuple[Grid, ...]:
    """The first `scales` grids of the schedule whose 18th grid is `final_grid18`.

    Args:
        final_grid18: (rows, columns) of the 18th scale, usually `FINAL_GRIDS[schedule_id]`.
        scales: 1 to 18; any number is allowed, not only those of `LEVELS`.

    Source: NextFlow, Table 14.
    """
    if not 1 <= scales <= len(STEPS):
        raise ValueError(f"{scales} scales; a schedule has 1 to {len(STEPS)}")
    height, width = final_grid18
    return ((1, 1), *((round(height * s / 64), round(width * s / 64)) for s in STEPS[1:scales]))


def tokens(grids: Sequence[Grid]) -> int:
    """Number of codes of one picture: the sum of rows x columns over its scales."""
    return sum(h * w for h, w in grids)


def bucket(height: int, width: int, scales: int) -> int:
    """Schedule id whose final grid at this number of scales is nearest in shape to the picture.

    Nearness is |log ratio| of the level's own final grid, because coarse grids round the row's ratio by up to
    29 %; among equal grids the row nearest by its 18th grid wins, so a square picture always gets id 20.

    Args:
        height, width: of the picture in pixels, at least 1.
        scales: number of scales, 1 to 18.

    Raises:
        TooElongated: the picture is longer than 4:1 by more than `RATIO_TOLERANCE`.
    """
    if max(height, width) > min(height, width) * MAX_RATIO * (1 + RATIO_TOLERANCE):
        raise TooElongated(height, width)
    ratio = math.log(height / width)

    def distance(row: int) -> tuple[float, float, int]:
        h, w = schedule(FINAL_GRIDS[row], scales)[-1]
        full_h, full_w = FINAL_GRIDS[row]
        return round(abs(ratio - math.log(h / w)), 9), abs(ratio - math.log(full_h / full_w)), row

    return min(range(len(FINAL_GRIDS)), key=distance)
