"""Near duplicates: the banded index finds exactly the groups that comparing every pair finds."""

import time

import numpy as np
import pyarrow as pa
import pytest

from nextloom.config import validate
from nextloom.curation import near_duplicate
from nextloom.curation.near_duplicate import NearDuplicate, representatives
from nextloom.errors import UserError
from nextloom.op import ERROR


def brute_force(hashes: list[int], max_distance: int) -> list[int]:
    """First member of each hash's group, by walking over every pair."""
    leader = [-1] * len(hashes)
    for start in range(len(hashes)):
        pending = [start] if leader[start] < 0 else []
        while pending:
            here = pending.pop()
            leader[here] = start
            near = (i for i, h in enumerate(hashes) if leader[i] < 0 and (h ^ hashes[here]).bit_count() <= max_distance)
            pending.extend(near)
    return leader


def clustered(rng, count: int, flips: int) -> np.ndarray:
    """Hashes of which most lie a few flipped bits from another one."""
    hashes = list(rng.integers(0, 2**64, count // 4, dtype=np.uint64))
    while len(hashes) < count:
        near = hashes[rng.integers(len(hashes))]
        for bit in rng.choice(64, rng.integers(0, flips + 1), replace=False):
            near ^= np.uint64(1) << np.uint64(bit)
        hashes.append(near)
    return rng.permutation(np.array(hashes, np.uint64))


@pytest.mark.parametrize("max_distance", range(9))
def test_groups_equal_those_of_every_pair(max_distance):
    hashes = clustered(np.random.default_rng(max_distance), 300, max_distance + 2)
    expected = brute_force([int(h) for h in hashes], max_distance)
    assert len(set(expected)) < 290, "the test data holds duplicates"
    assert representatives(hashes, max_distance).tolist() == expected


@pytest.mark.parametrize("max_distance", [1, 3, 4, 7, 8])
def test_a_pair_at_the_limit_is_found_and_one_beyond_is_not(max_distance):
    rng = np.random.default_rng(1)
    for _ in range(30):
        base = rng.integers(0, 2**64, dtype=np.uint64)
        bits = rng.permutation(64)[: max_distance + 1]
        flip = [
            np.bitwise_or.reduce(np.uint64(1) << bits[:n].astype(np.uint64)) for n in (max_distance, max_distance + 1)
        ]
        assert representatives(np.array([base, base ^ flip[0]]), max_distance).tolist() == [0, 0]
        assert representatives(np.array([base, base ^ flip[1]]), max_distance).tolist() == [0, 1]


def test_lots_of_pairs_do_not_change_the_groups(monkeypatch):
    hashes = clustered(np.random.default_rng(5), 400, 6)
    whole = representatives(hashes, 6)
    monkeypatch.setattr(near_duplicate, "PAIRS_AT_ONCE", 7)
    assert (representatives(hashes, 6) == whole).all()


def table(hashes: list[int | None], ids: list[int]) -> pa.Table:
    columns = {"id": pa.array(ids, pa.int64()), "hash": pa.array(hashes, pa.int64())}
    return pa.table({**columns, "error": pa.nulls(len(ids), ERROR)})


def test_columns_of_a_chain():
    chain = [-1, -1 ^ 0b11, -1 ^ 0b1111, 0, None, 0]
    op = NearDuplicate(reads=("phash",), max_distance=2)
    result = op.reduce({"phash": table(chain, [10, 11, 12, 20, 21, 22])})
    assert result.schema.names == ["id", *op.columns().names]
    assert [tuple(row.values()) for row in result.to_pylist()] == [
        (10, 10, False, 0),
        (11, 10, True, 2),
        (12, 10, True, 4),  # linked through 11
        (20, 20, False, 0),
        (21, None, None, None),  # a row without a hash is a row of the result
        (22, 20, True, 0),
    ]
    assert result.drop_columns("id").schema.equals(op.columns())


def test_no_rows_and_one_row():
    op = NearDuplicate(reads=("phash",))
    assert op.reduce({"phash": table([], [])}).num_rows == 0
    assert op.reduce({"phash": table([None], [3])})["group"].to_pylist() == [None]
    assert op.reduce({"phash": table([5], [3])}).to_pylist() == [{"id": 3, "group": 3, "hit": False, "distance": 0}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reads": []}, r"duplicate\.reads: .*exactly one step"),
        ({"reads": ["a"], "max_distance": 9}, r"duplicate\.max_distance: .*less than or equal to 8"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        validate(NearDuplicate, fields, where="duplicate")


def test_a_missing_column_is_named():
    with pytest.raises(UserError, match="did you mean 'hash'"):
        NearDuplicate(reads=("phash",), column="hsh").reduce({"phash": table([1], [1])})


def test_a_plan_refuses_a_step_without_the_column():
    op = NearDuplicate(reads=("stats",), column="hsh")
    op.check({"stats": ["id", "hsh"]}, "steps.duplicate")
    with pytest.raises(UserError, match=r"^steps\.duplicate\.reads: 'stats' has no column 'hsh'; did you mean 'hash'"):
        op.check({"stats": ["id", "hash"]}, "steps.duplicate")


@pytest.mark.parametrize(("max_distance", "count"), [(6, 100_000), (8, 40_000)])
def test_many_random_hashes_take_seconds(max_distance, count):
    rng = np.random.default_rng(7)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    hashes[20_000:20_100] = hashes[:100] ^ np.uint64(0b101010 << 30)
    start = time.process_time()
    leader = representatives(hashes, max_distance)
    assert time.process_time() - start < 12
    assert (leader[20_000:20_100] == np.arange(100)).all()
    assert 100 <= (leader != np.arange(count)).sum() <= 110, "chance adds one or two at 8 bits"
