"""The published table of scale schedules, entry by entry, and the choice of a row for a picture."""

import csv
import math
from pathlib import Path

import pytest

from nextloom.tokenize.schedule import FINAL_GRIDS, LEVELS, bucket, schedule, tokens

TABLE = [
    [tuple(map(int, cell.split("x"))) for cell in row[1:]]
    for row in list(csv.reader((Path(__file__).parent / "data" / "scale_schedules.csv").open()))[1:]
]
SQUARE = 20


def test_every_entry_of_the_published_table():
    assert len(TABLE) == len(FINAL_GRIDS) == 41
    assert [list(schedule(grid, 18)) for grid in FINAL_GRIDS] == TABLE


@pytest.mark.parametrize("row", range(41))
def test_row_40_minus_i_is_the_transpose_of_row_i(row):
    transposed = tuple((w, h) for h, w in schedule(FINAL_GRIDS[row], 18))
    assert schedule(FINAL_GRIDS[40 - row], 18) == transposed


@pytest.mark.parametrize(
    ("level", "square", "least", "most"),
    [(128, 204, 176, 209), (256, 900, 815, 905), (512, 3684, 3318, 3689), (1024, 10084, 9093, 10089)],
)
def test_published_token_totals(level, square, least, most):
    totals = [tokens(schedule(grid, LEVELS[level])) for grid in FINAL_GRIDS]
    assert (totals[SQUARE], min(totals), max(totals)) == (square, least, most)


def test_any_number_of_scales_is_a_prefix():
    assert schedule((64, 64), 6) == ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6))
    assert tokens(schedule((64, 64), 6)) == 91
    for wrong in (0, 19):
        with pytest.raises(ValueError, match="1 to 18"):
            schedule((64, 64), wrong)


@pytest.mark.parametrize("scales", [1, 4, 6, 8, 12, 16, 18])
def test_the_bucket_has_the_nearest_shape_at_its_own_level(scales):
    for height, width in [(480, 640), (1000, 1000), (300, 1200), (1199, 300), (683, 1024), (77, 70)]:
        wanted = math.log(height / width)
        gaps = [abs(math.log(h / w) - wanted) for h, w in (schedule(g, scales)[-1] for g in FINAL_GRIDS)]
        assert gaps[bucket(height, width, scales)] == pytest.approx(min(gaps))
    assert bucket(500, 500, scales) == SQUARE


def test_the_level_decides_the_bucket_where_coarse_grids_round():
    height, width = 36, 108  # row 6, whose grid at 8 scales is 4 x 14
    assert bucket(height, width, 18) == 6
    h, w = schedule(FINAL_GRIDS[bucket(height, width, 8)], 8)[-1]
    assert (h, w) == (4, 13)


def test_pictures_longer_than_four_to_one_are_refused_beyond_the_tolerance():
    assert bucket(425, 100, 18) == 40
    assert bucket(100, 425, 18) == 0
    for height, width in [(440, 100), (100, 440)]:
        with pytest.raises(ValueError, match="longer than 4:1"):
            bucket(height, width, 18)
