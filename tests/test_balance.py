"""Balance: what stays of a class, drawn by hashes of keys, the same in any order; every removal with its class."""

import hashlib
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextloom.config import validate
from nextloom.curation.decisions.balance import Balance, table
from nextloom.curation.decisions.categories import tree
from nextloom.errors import UserError
from nextloom.op import ERROR, error_value

BROKEN = error_value("topic", ValueError("no embedding"))


def rows(labels: list, keys: list[str] | None = None, errors=None, kind: pa.DataType | None = None):
    count = len(labels)
    ids = pa.array(range(count), pa.int64())
    errors = pa.array(errors or [None] * count, ERROR)
    kind = kind or (pa.list_(pa.string()) if any(isinstance(label, list) for label in labels) else pa.string())
    return {
        "topic": pa.table({"id": ids, "label": pa.array(labels, kind), "error": errors}),
        "source": pa.table({"id": ids, "key": keys or [f"k{i}.jpg" for i in range(count)]}),
    }


def decide(columns: dict[str, pa.Table], **config) -> list[dict]:
    verdicts = Balance(by="topic.label", **config).decide(columns)
    assert verdicts.schema.equals(pa.schema([("id", pa.int64()), *Balance(by="topic.label", max_rows=1).columns()]))
    return verdicts.to_pylist()


def kept(columns: dict[str, pa.Table], **config) -> set[int]:
    return {row["id"] for row in decide(columns, **config) if row["verdict"] == "kept"}


def draw(key: str, seed: int = 0, by: str = "topic.label") -> float:
    """The draw of a row, worked out in whole numbers: SplitMix64 at the key's hash, started at the names' hash."""
    mask = 2**64 - 1
    base = int.from_bytes(hashlib.blake2b(f"balance\0{seed}\0{by}".encode(), digest_size=8).digest(), "little")
    x = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    x = (base + (x + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) >> 11) / 2**53


def expected(labels: list[list[str]], keys: list[str], cap) -> set[int]:
    """Rows that are among the `cap(class, size)` smallest draws of each of their classes."""
    staying = set(range(len(labels)))
    for name in {name for mine in labels for name in mine}:
        members = sorted((i for i, mine in enumerate(labels) if name in mine), key=lambda i: (draw(keys[i]), i))
        staying -= set(members[cap(name, len(members)) :])
    return staying


def test_draws_are_the_documented_hash():
    """If this fails, other rows are kept than before: bump code_version."""
    assert [round(draw(key), 6) for key in ("k0.jpg", "一.jpg")] == [0.780709, 0.183344]
    columns = rows(["cat"] * 400)
    for rate in (0.0, 0.1, 0.5, 1.0):
        assert kept(columns, rate={"cat": rate}) == {i for i in range(400) if draw(f"k{i}.jpg") < rate}
    assert kept(columns, rate={"cat": 0.5}, seed=7) == {i for i in range(400) if draw(f"k{i}.jpg", 7) < 0.5}


def test_a_cap_keeps_the_smallest_draws_and_says_why_the_others_go():
    found = decide(rows(["cat"] * 5 + ["dog"] * 2), max_rows=3)
    staying = set(sorted(range(5), key=lambda i: draw(f"k{i}.jpg"))[:3])
    for row in found:
        stays = row["id"] in staying or row["id"] >= 5
        assert row["verdict"] == ("kept" if stays else "rejected")
        assert row["reason"] == (None if stays else "cat: 5 of 3")
        assert row["rules"] == ("[]" if stays else '["cat: 5 of 3"]')


@pytest.mark.parametrize(
    ("sizes", "ratio", "cap"),
    [
        ((10, 4, 2), 2.0, 8),
        ((10, 4), 1.0, 7),  # median of two: their mean
        ((10, 3), 0.9, 5),  # 0.9 * 6.5 = 5.85
        ((9, 1, 1, 1), 0.1, 1),  # never below one row
        ((30, 10, 1), 1.1, 11),  # exactly 11, though 1.1 * 10 is more in floating point
    ],
)
def test_max_ratio_is_of_the_median_class(sizes, ratio, cap):
    labels = [f"c{i}" for i, size in enumerate(sizes) for _ in range(size)]
    staying = kept(rows(labels), max_ratio=ratio)
    assert [sum(labels[i] == f"c{c}" for i in staying) for c in range(len(sizes))] == [min(s, cap) for s in sizes]


def test_quota_names_classes_and_a_star_the_others():
    labels = ["cat"] * 6 + ["dog"] * 6 + ["owl"] * 6
    count = lambda staying: [sum(labels[i] == name for i in staying) for name in ("cat", "dog", "owl")]  # noqa: E731
    assert count(kept(rows(labels), quota={"cat": 4, "*": 2})) == [4, 2, 2]
    assert count(kept(rows(labels), quota={"cat": 4})) == [4, 6, 6]
    assert count(kept(rows(labels), quota={"cat": 0, "owl": 100})) == [0, 6, 6]


def test_the_papers_rates_halve_two_classes():
    """NextFlow 5.4: half of the clips with a person, half of the television news broadcasts; some are both."""
    drawn = np.random.default_rng(0).random
    labels = [
        [name for name, often in (("person", 0.4), ("television news broadcast", 0.2), ("dog", 0.1)) if drawn() < often]
        for _ in range(4000)
    ]
    found = decide(rows(labels), rate={"person": 0.5, "television news broadcast": 0.5})
    touched = [bool({"person", "television news broadcast"} & set(mine)) for mine in labels]
    for row, mine, hit in zip(found, labels, touched, strict=True):
        stays = not hit or draw(f"k{row['id']}.jpg") < 0.5  # both labels: still one half, not a quarter
        assert row["verdict"] == ("kept" if stays else "rejected")
        if not stays:
            sizes = {name: sum(name in other for other in labels) for name in mine}
            spoken = [f"{name}: {sizes[name]} at rate 0.5" for name in mine if name != "dog"]
            assert row["reason"] == spoken[0]
            assert json.loads(row["rules"]) == spoken
    share = sum(row["verdict"] == "kept" for row, hit in zip(found, touched, strict=True) if hit) / sum(touched)
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / sum(touched))


LABELS = st.lists(st.lists(st.sampled_from("abcd"), max_size=3), min_size=1, max_size=40)


@given(LABELS, st.integers(1, 6), st.randoms())
def test_several_labels_against_the_rule_by_hand_in_any_order(labels, cap, random):
    keys = [f"k{i}.jpg" for i in range(len(labels))]
    columns = rows(labels, kind=pa.list_(pa.string()))
    staying = kept(columns, max_rows=cap)
    assert staying == expected(labels, keys, lambda name, size: cap)
    assert all(sum(name in labels[i] for i in staying) <= cap for name in "abcd")
    assert staying <= kept(columns, max_rows=cap + 1), "a higher cap took a row away"
    order = random.sample(range(len(labels)), len(labels))
    assert kept({name: table.take(order) for name, table in columns.items()}, max_rows=cap) == staying


@given(LABELS, st.floats(0, 1), st.floats(0, 1))
def test_rates_nest_and_forget_the_other_rows(labels, one, other):
    low, high = sorted((one, other))
    columns = rows(labels, kind=pa.list_(pa.string()))
    staying = kept(columns, rate={"*": low, "a": high})
    assert staying <= kept(columns, rate={"*": high})
    half = {name: table.slice(0, (len(labels) + 1) // 2) for name, table in columns.items()}
    assert kept(half, rate={"*": low, "a": high}) == {i for i in staying if i < (len(labels) + 1) // 2}


def test_equal_keys_share_a_draw_and_the_smaller_id_goes_first():
    columns = rows(["cat"] * 4, keys=["same.jpg"] * 4)
    assert kept(columns, max_rows=2) == {0, 1}
    assert kept(columns, rate={"cat": 0.5}) in (set(), {0, 1, 2, 3})


def test_failed_rows_are_of_no_class_and_rows_without_a_label_stay():
    columns = rows([["cat"], None, [], ["cat", "cat"], [None]], errors=[None, BROKEN, None, None, None])
    found = decide(columns, quota={"*": 0})
    assert [row["verdict"] for row in found] == ["rejected", "failed", "kept", "rejected", "kept"]
    assert found[1]["reason"] == "topic: ValueError: no embedding"
    assert found[1]["rules"] is None
    assert found[3]["rules"] == '["cat: 2 of 0"]'


def test_classes_may_be_numbers_and_rows_may_be_none():
    assert kept(rows([7, 7, 8], kind=pa.int64()), quota={"7": 1, "8": 0}) < {0, 1}
    assert decide(rows([]), max_ratio=2.0) == []
    lost = rows(["a"] * 9 + ["b"] * 3 + ["c"], errors=[None] * 12 + [BROKEN])
    assert decide(lost, max_ratio=1.0)[0]["reason"] in (None, "a: 9 of 6"), "a class of failed rows alone has no size"
    with pytest.raises(UserError, match=r"^by: topic\.label is double, and a class is a string"):
        decide(rows([1.5], kind=pa.float64()), max_rows=1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_rows": 1, "rate": {"a": 1}}, "give one of .* not max_rows and rate"),
        ({}, "give one of .* not none"),
        ({"quota": {}}, "names no class"),
        ({"rate": {"a": 1.5}}, "less than or equal to 1"),
        ({"quota": {"a": -1}}, "greater than or equal to 0"),
        ({"by": "label", "max_rows": 1}, "write step.column"),
        ({"max_ratio": 0}, "greater than 0"),
        ({"cap": 2.0}, "unknown field"),
    ],
)
def test_what_a_balance_may_not_say(config, message):
    with pytest.raises(UserError, match=rf"^steps\.b.*{message}"):
        validate(Balance, {"by": "topic.label", **config}, where="steps.b")


def test_unknown_columns_and_misspelt_classes_are_refused_with_a_suggestion():
    with pytest.raises(UserError, match=r"^steps\.b\.by: .*did you mean 'label'"):
        Balance(by="topic.lable", max_rows=1).check({"topic": ["id", "label"]}, "steps.b")
    with pytest.raises(UserError, match=r"^steps\.b\.by: .*did you mean 'topic'"):
        Balance(by="topics.label", max_rows=1).check({"topic": ["id", "label"]}, "steps.b")
    with pytest.raises(UserError, match=r"^rate: no row .* 'persn'; did you mean 'person'"):
        decide(rows(["person"]), rate={"persn": 0.5})
    assert kept(rows(["person"]), rate={"zebra": 0.5}) == {0}  # a class that has no row yet is none to refuse


def test_the_table_counts_before_and_after():
    labels = pa.array([["a", "b"], ["a"], ["a"], ["b", "b"], None, ["c"]])
    verdicts = pa.array(["kept", "rejected", "kept", "kept", "kept", "failed"])
    assert table(labels, verdicts).to_pylist() == [
        {"class": "a", "before": 3, "after": 2, "share_before": 0.6, "share_after": 0.5},
        {"class": "b", "before": 2, "after": 2, "share_before": 0.4, "share_after": 0.5},
        {"class": "c", "before": 0, "after": 0, "share_before": 0.0, "share_after": 0.0},
    ]
    assert table(labels.slice(0, 0), verdicts.slice(0, 0)).num_rows == 0


def test_the_tree_of_categories():
    primary = pa.array(["animal", "animal", "food", "animal", None, None, "food"])
    label = pa.array(["cat", "dog", "soup", "cat", "other", None, None])
    verdicts = pa.chunked_array([["kept", "rejected", "kept"], ["rejected", "kept", "failed", "kept"]])
    told = [
        (
            c.name,
            c.before,
            c.after,
            round(c.share_before, 3),
            c.share_after,
            [(s.name, s.before, s.after) for s in subs],
        )
        for c in tree(primary, label, verdicts)
        for subs in [c.subs]
    ]
    assert told == [
        ("animal", 3, 1, 0.5, 0.25, [("cat", 2, 1), ("dog", 1, 0)]),
        ("food", 2, 2, 0.333, 0.5, [("food", 1, 1), ("soup", 1, 1)]),
        ("other", 1, 1, 0.167, 0.25, []),
    ]
    with pytest.raises(ValueError, match="different lengths"):
        tree(primary, label, pa.array(["kept"]))


def test_many_rows():
    count = 200_000
    codes = (np.random.default_rng(0).random(count) ** 3 * 50).astype(int)
    columns = rows([f"c{code}" for code in codes.tolist()])
    verdicts = Balance(by="topic.label", max_rows=1000).decide(columns)
    after = np.bincount(codes[verdicts["verdict"].to_numpy(zero_copy_only=False) == "kept"], minlength=50)
    assert (after == np.minimum(np.bincount(codes, minlength=50), 1000)).all()
