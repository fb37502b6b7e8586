"""One of each group among the rows that meet the rule: no group with a good row is lost, and none keeps two."""

from __future__ import annotations

import json
import time

import numpy as np
import pyarrow as pa
import pytest

from nextloom.config import validate
from nextloom.curation.decisions.select import SelectWhere
from nextloom.errors import UserError
from nextloom.op import ERROR, error_value

BROKEN = error_value("score", ValueError("the file is empty"))


def column(values: dict, errors: list | None = None) -> pa.Table:
    count = len(next(iter(values.values())))
    error = pa.array(errors or [None] * count, ERROR)
    return pa.table({"id": pa.array(range(count), pa.int64()), **values, "error": error})


def decide(columns: dict[str, pa.Table], where: str = "score.x > 0.92", **fields) -> list[tuple]:
    op = SelectWhere(where=where, **{"distinct": "dup.group", "best": "score.x", **fields})
    table = op.decide(columns)
    assert table.schema.equals(pa.schema([("id", pa.int64()), *op.columns()]))
    return [tuple(row.values()) for row in table.to_pylist()]


def verdicts(*args, **fields) -> list[str]:
    return [row[1] for row in decide(*args, **fields)]


def test_a_copy_of_a_row_that_fails_another_rule_is_kept():
    """Before: a was the representative of both (the smaller id), failed 0.92, and b was rejected as its copy."""
    columns = {"score": column({"x": [0.90, 0.95]}), "dup": column({"group": [0, 0], "hit": [False, True]})}
    assert decide(columns) == [
        (0, "rejected", "score.x > 0.92", '["score.x > 0.92"]', 1),
        (1, "kept", None, "[]", 1),
    ]
    old = SelectWhere(where="score.x > 0.92 and not dup.hit").decide(columns)
    assert old["verdict"].to_pylist() == ["rejected", "rejected"], "what a rule over `hit` does"


def test_a_rejected_copy_names_the_reason_and_the_survivor():
    columns = {"score": column({"x": [0.95, 0.99, 0.97, 0.5]}), "dup": column({"group": [0, 0, 0, 3]})}
    assert decide(columns) == [
        (0, "rejected", "distinct dup.group", '["distinct dup.group"]', 1),
        (1, "kept", None, "[]", 1),
        (2, "rejected", "distinct dup.group", '["distinct dup.group"]', 1),
        (3, "rejected", "score.x > 0.92", '["score.x > 0.92"]', None),
    ]


def test_failed_rows_fail_and_elect_nobody():
    columns = {
        "score": column({"x": [None, 0.95]}, [BROKEN, None]),
        "dup": column({"group": [0, 0]}),
    }
    assert decide(columns) == [
        (0, "failed", "score: ValueError: the file is empty", None, None),
        (1, "kept", None, "[]", 1),
    ]
    columns["dup"] = column({"group": [0, None]}, [None, BROKEN])
    assert verdicts(columns) == ["failed", "failed"], "an error of the groups or of the score is an error of the row"


def test_rows_without_a_group_are_groups_of_their_own():
    columns = {"score": column({"x": [0.95, 0.99, 0.97]}), "dup": column({"group": pa.nulls(3, pa.int64())})}
    assert verdicts(columns) == ["kept"] * 3
    assert [row[4] for row in decide(columns)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("best", "scores", "other", "kept"),
    [
        ((), [0.95, 0.99], [0, 0], 0),  # no best: the older
        ("score.x", [0.95, 0.99], [0, 0], 1),
        ("score.x desc", [0.95, 0.99], [0, 0], 1),
        ("score.x ASC", [0.95, 0.99], [0, 0], 0),
        ("score.y", [0.95, 0.99], [None, 0.1], 1),  # null is the last, whichever way
        ("score.y asc", [0.95, 0.99], [None, 0.1], 1),
        ("score.y", [0.95, 0.99], [float("nan"), 0.1], 1),
        ("score.y asc", [0.95, 0.99], [float("nan"), 0.1], 1),
        (["score.y", "score.x"], [0.95, 0.99], [1, 1], 1),
        (["score.y asc", "score.x desc"], [0.95, 0.99], [1, 2], 0),
        ("score.x * -1", [0.95, 0.99], [0, 0], 0),
        ("case when score.y > 1 then 1 else 0 end", [0.95, 0.99], [2, 1], 0),
    ],
)
def test_what_is_best(best, scores, other, kept):
    table = column({"x": scores, "y": pa.array(other, pa.float64())})
    rows = decide({"score": table, "dup": column({"group": [0, 0]})}, best=best)
    assert [row[0] for row in rows if row[1] == "kept"] == [kept]


def test_ties_go_to_the_larger_area_where_it_is_read_and_then_to_the_older():
    columns = {
        "score": column({"x": [0.95] * 3}),
        "dup": column({"group": [0] * 3}),
        "stats": column({"width": [10, 20, 20], "height": [10, 10, 10]}),
    }
    assert verdicts(columns, "score.x > 0.92 and stats.width > 1") == ["rejected", "kept", "rejected"]
    assert verdicts(columns) == ["kept", "rejected", "rejected"], "the rule does not read the size"


def test_texts_name_groups_too():
    source = column({"caption": ["a cat", "A CAT", "a cat", None, None]}).drop_columns(["error"])
    rows = verdicts(
        {"source": source, "score": column({"x": [1, 2, 3, 4, 5]})}, "score.x > 1", distinct="source.caption"
    )
    assert rows == ["rejected", "kept", "kept", "kept", "kept"]


def test_several_columns_of_groups_are_connected():
    """0 and 1 are near, 1 and 2 alike: one group, whether or not 1 meets the rule."""
    columns = {
        "score": column({"x": [0.95, 0.1, 0.97, 0.93]}),
        "near": column({"group": [0, 0, 2, 3]}),
        "alike": column({"group": ["a", "b", "b", None]}),
    }
    both = ("near.group", "alike.group")
    assert [row[1:3] for row in decide(columns, distinct=both)] == [
        ("rejected", "distinct near.group, alike.group"),
        ("rejected", "score.x > 0.92"),
        ("kept", None),
        ("kept", None),
    ]
    assert verdicts(columns, distinct=both[::-1]) == verdicts(columns, distinct=both), "in whichever order"
    assert verdicts(columns, distinct="near.group") == ["kept", "rejected", "kept", "kept"]


@pytest.mark.parametrize("seed", range(6))
def test_every_group_with_a_good_row_keeps_its_best_and_no_other(seed):
    """Against plain Python over random scores and groups; one column of groups and two."""
    rng = np.random.default_rng(seed)
    count = 400
    scores = [None if r < 0.1 else round(float(r), 2) for r in rng.random(count)]  # rounded: many ties
    near = [None if r < 20 else int(r) for r in rng.integers(0, 150, count)]
    alike = [None if r < 300 else int(r) for r in rng.integers(0, 500, count)]
    errors = [BROKEN if r < 0.05 else None for r in rng.random(count)]
    columns = {
        "score": column({"x": pa.array(scores, pa.float64()), "y": rng.random(count).round(1)}, errors),
        "near": column({"group": pa.array(near, pa.int64())}),
        "alike": column({"group": pa.array(alike, pa.int64())}),
    }
    good = [e is None and s is not None and s > 0.5 for e, s in zip(errors, scores, strict=True)]
    y = columns["score"]["y"].to_pylist()
    for names in (["near"], ["near", "alike"]):
        group = list(range(count))  # the slow way to connect: relabel until nothing changes
        labels = [columns[name]["group"].to_pylist() for name in names]
        changed = True
        while changed:
            changed = False
            for mine in labels:
                smallest: dict = {}
                for i, label in enumerate(mine):
                    if label is not None:
                        smallest[label] = min(smallest.get(label, count), group[i])
                for i, label in enumerate(mine):
                    if label is not None and group[i] != smallest[label]:
                        group[i], changed = smallest[label], True
        best: dict[int, int] = {}
        for i in sorted((i for i in range(count) if good[i]), key=lambda i: (y[i], -scores[i], i)):
            best.setdefault(group[i], i)
        distinct = tuple(f"{name}.group" for name in names)
        rows = decide(columns, "score.x > 0.5", distinct=distinct, best=("score.y asc", "score.x"))
        assert {row[0] for row in rows if row[1] == "kept"} == set(best.values())
        assert [row[1] == "failed" for row in rows] == [e is not None for e in errors]
        for row, g in zip(rows, group, strict=True):
            assert row[4] == (None if row[1] == "failed" else best.get(g))
        copies = {row[0] for row in rows if row[2] == f"distinct {', '.join(distinct)}"}
        assert copies == {i for i in range(count) if good[i]} - set(best.values())
        shuffled = {name: table.take(rng.permutation(count)) for name, table in columns.items()}
        assert decide(shuffled, "score.x > 0.5", distinct=distinct, best=("score.y asc", "score.x")) == rows


def test_a_new_row_takes_no_place_of_an_equal_one():
    old = {"score": column({"x": [0.95, 0.96]}), "dup": column({"group": [0, 1]})}
    new = {"score": column({"x": [0.95, 0.96, 0.96, 0.99]}), "dup": column({"group": [0, 1, 1, 0]})}
    assert verdicts(old) == ["kept", "kept"]
    assert verdicts(new) == ["rejected", "kept", "rejected", "kept"], "an equal one does not, a better one does"


def test_null_in_a_rule_is_rejected_and_may_be_let_through():
    columns = {"score": column({"x": [None, 0.6, 0.4]}), "dup": column({"group": [0, 1, 2]})}
    assert [row[1:3] for row in decide(columns, "score.x > 0.5")] == [
        ("rejected", "score.x > 0.5 is null"),
        ("kept", None),
        ("rejected", "score.x > 0.5"),
    ]
    lenient = "score.x is null or score.x > 0.5"
    assert verdicts(columns, lenient) == ["kept", "kept", "rejected"]
    assert json.loads(decide(columns, lenient)[2][3]) == [lenient]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"best": "score.x"}, "`best` says which row of a group stays"),
        ({"distinct": "group"}, "write step.column, such as duplicate.group, not 'group'|names the step"),
        ({"distinct": "lower(source.caption)"}, "write step.column"),
        ({"distinct": "near.group, alike.group"}, "not a SQL expression|write step.column"),
        ({"distinct": ["near.group", '"near"."group"']}, "named twice"),
        ({"distinct": "dup.group", "best": "max(score.x)"}, "which is about many"),
        ({"distinct": "dup.group", "best": "score.x nulls first"}, "not a SQL expression"),
        ({"distinct": "dup.group", "best": "score.x desc, score.y"}, "not a SQL expression"),
        ({"distinct": "dup.group", "best": "random()"}, "the same verdict every time"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(UserError, match=rf"(?s)^steps\.keep.*({message})"):
        validate(SelectWhere, {"where": "score.x > 1", **fields}, where="steps.keep")


def test_columns_that_are_absent_or_of_no_use_are_refused():
    columns = {"score": column({"x": [1.0], "box": [[1, 2]]}), "dup": column({"group": [0], "distance": [0.5]})}
    with pytest.raises(UserError, match=r"^distinct: 'dup' has no column 'groop'; did you mean 'group'"):
        decide(columns, distinct="dup.groop")
    with pytest.raises(UserError, match=r"^best: no step 'scor'; did you mean 'score'"):
        decide(columns, best="scor.x")
    with pytest.raises(UserError, match=r"^distinct: dup\.distance is DOUBLE"):
        decide(columns, distinct="dup.distance")
    with pytest.raises(UserError, match=r"^best: 'score\.box' is BIGINT\[\]"):
        decide(columns, best="score.box")


def test_a_million_rows():
    count = 1_000_000
    rng = np.random.default_rng(0)
    ids, none = np.arange(count), pa.nulls(count, ERROR)
    score, group = rng.random(count), rng.integers(0, count // 2, count)
    tables = {
        "a": pa.table({"id": ids, "score": score, "error": none}),
        "dup": pa.table({"id": ids, "group": group, "error": none}),
    }
    table = SelectWhere(where="a.score > 0.5", distinct="dup.group", best="a.score").decide(tables)
    kept = table["verdict"].to_numpy(zero_copy_only=False) == "kept"
    assert (np.sort(group[kept]) == np.unique(group[score > 0.5])).all()
    top = np.zeros(count // 2)
    np.maximum.at(top, group, score)
    assert (score[kept] == top[group[kept]]).all()


def test_a_pattern_that_backtracks_elsewhere_takes_linear_time_here():
    start = time.monotonic()
    source = column({"caption": ["a" * 200_000 + "!"]}).drop_columns(["error"])
    rule = SelectWhere(where="regexp_matches(source.caption, '^(a+)+$')")
    assert rule.decide({"source": source})["verdict"].to_pylist() == ["rejected"]
    assert time.monotonic() - start < 5, "Python's `re` needs 2^200,000 steps"
