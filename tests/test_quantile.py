"""Quantile: a share of the rows as a threshold, and what it was computed on."""

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextloom.config import validate
from nextloom.curation.decisions.quantile import Quantile
from nextloom.curation.scores.scales import LAION_V2
from nextloom.errors import UserError
from nextloom.op import ERROR


def step(values: list, kind: pa.DataType | None = None) -> dict[str, pa.Table]:
    count = len(values)
    kind = kind or pa.float64()
    ids = pa.array(range(count), pa.int64())
    return {"a": pa.table({"id": ids, "score": pa.array(values, kind), "error": pa.nulls(count, ERROR)})}


def cut(values: list, kind: pa.DataType | None = None, **share: float) -> dict[str, list]:
    op = Quantile(reads=("a",), column="score", **share)
    table = op.reduce(step(values, kind))
    assert table.schema.equals(pa.schema([("id", pa.int64()), *op.columns()]))
    return table.to_pydict()


def test_the_top_and_the_bottom_share():
    values = [0.1 * i for i in (7, 3, 9, 1, 10, 2, 8, 4, 6, 5)]
    found = cut(values, top=0.3)
    assert found["threshold"] == [0.8] * 10
    assert found["hit"] == [value >= 0.8 for value in values]
    assert found["rank"] == pytest.approx([1.1 - value for value in values])
    assert (found["of"][0], found["scale"][0], found["rows"][0]) == ("a.score", None, 10)
    found = cut(values, bottom=0.3)
    assert found["hit"] == [value <= 0.1 * 3 for value in values]
    assert found["rank"] == pytest.approx(values)


def test_all_ties_are_in_and_counted_as_at_least_as_good():
    found = cut([1, 2, 2, 2, 3], pa.int64(), top=0.4)
    assert found["threshold"] == [2.0] * 5
    assert found["hit"] == [False, True, True, True, True]
    assert found["rank"] == [1.0, 0.8, 0.8, 0.8, 0.2]
    assert cut([1, 1, 2], top=0.01)["hit"] == [False, False, True]  # never less than one row
    assert cut([1, 1, 2], top=1)["hit"] == [True, True, True]


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(1, 100), st.booleans(), st.randoms())
def test_against_counting_by_hand_in_any_order(values, percent, top, random):
    share = percent / 100
    found = cut(values, top=share) if top else cut(values, bottom=share)
    better = [sum((other > value) if top else (other < value) for other in values) for value in values]
    within = math.ceil(Fraction(percent, 100) * len(values))
    assert found["hit"] == [count < within for count in better]
    as_good = [sum((other >= value) if top else (other <= value) for other in values) for value in values]
    assert found["rank"] == [count / len(values) for count in as_good]
    assert found["threshold"][0] in values
    order = random.sample(range(len(values)), len(values))
    again = cut([values[i] for i in order], top=share) if top else cut([values[i] for i in order], bottom=share)
    assert [again["hit"][order.index(i)] for i in range(len(values))] == found["hit"]


def test_the_paper_s_threshold_is_numpy_s_quantile():
    """NextFlow 5.4: 4.3 is the top 30% of Koala's aesthetic column; here of numbers with that 70th percentile."""
    values = np.random.default_rng(0).normal(4.0, 0.57, 10_001)
    found = cut(values.tolist(), top=0.3)
    assert found["threshold"][0] == np.quantile(values, 0.7)  # 0.7 * 10,000 is a place of its own
    assert found["threshold"][0] == pytest.approx(4.3, abs=0.02)


def test_rows_without_a_value_have_no_rank_and_large_integers_are_exact():
    found = cut([None, 3.0, None, 1.0], top=0.5)
    assert found["threshold"] == [3.0] * 4
    assert found["hit"] == [None, True, None, False]
    assert found["rank"] == [None, 0.5, None, 1.0]
    assert found["rows"] == [2] * 4
    assert cut([None, None], top=0.5)["threshold"] == [None, None]
    assert cut([], top=0.5)["id"] == []
    assert cut([2**53, 2**53 + 1], pa.int64(), top=0.5)["hit"] == [False, True]


def test_the_scale_it_was_computed_on_is_stored_and_passed_on():
    op = Quantile(reads=("a",), column="score", top=0.5)
    op.check_scales({"a": {"score": LAION_V2}}, "steps.cut")
    assert op.reduce(step([4.0, 5.0])).to_pydict()["scale"] == ["laion-aesthetic-v2"] * 2
    assert op.score_scales()["threshold"] == LAION_V2
    assert op.score_scales()["rank"].name == "share"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"top": 0.3, "bottom": 0.3}, "give either"),
        ({}, "give either"),
        ({"top": 30}, "less than or equal to 1"),
        ({"top": 0}, "greater than 0"),
        ({"top": 0.3, "reads": ["a", "b"]}, "reads exactly one step"),
    ],
)
def test_what_a_quantile_may_not_say(config, message):
    with pytest.raises(UserError, match=rf"^steps\.cut.*{message}"):
        validate(Quantile, {"reads": ["a"], "column": "score", **config}, where="steps.cut")


def test_columns_without_an_order_are_refused():
    with pytest.raises(UserError, match=r"^column: a\.score is string, and a rank needs a number"):
        cut(["x"], pa.string(), top=0.5)
    with pytest.raises(UserError, match=r"^column: a\.score holds infinite or undefined"):
        cut([1.0, math.nan], top=0.5)
    with pytest.raises(UserError, match=r"^steps\.cut\.column: .*did you mean 'score'"):
        Quantile(reads=("a",), column="scor", top=0.5).check({"a": ["id", "score"]}, "steps.cut")
