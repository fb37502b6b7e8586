"""Groups by cosine: against every pair in numpy, above and below the size where cells are searched, and on pictures."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from nextloom.curation.duplicates.semantic_duplicate import SemanticDuplicate
from nextloom.errors import UserError
from nextloom.op import ERROR


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def table(vectors, ids=None) -> pa.Table:
    raw = [None if v is None else np.asarray(v, "<f4").tobytes() for v in vectors]
    ids = list(range(len(raw))) if ids is None else ids
    return pa.table({"id": ids, "embedding": pa.array(raw, pa.binary()), "error": pa.nulls(len(raw), ERROR)})


def op(**fields) -> SemanticDuplicate:
    return SemanticDuplicate(reads=("embed",), **fields)


def planted(count: int, copies: int, cosine: float, seed: int = 0, width: int = 48) -> np.ndarray:
    """Random directions; the last `copies` rows lie at `cosine` from the first ones."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((count, width)))
    for at in range(copies):
        other = rng.standard_normal(width)
        other -= (other @ vectors[at]) * vectors[at]
        vectors[count - 1 - at] = cosine * vectors[at] + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)
    return unit(vectors)


def by_every_pair(vectors: np.ndarray, limit: float) -> list[int]:
    """Smallest member of each row's group, by links between all pairs."""
    near = vectors.astype(np.float64) @ vectors.T.astype(np.float64) >= limit
    first = list(range(len(vectors)))
    changed = True
    while changed:
        changed = False
        for i, row in enumerate(near):
            least = min(first[j] for j in np.flatnonzero(row))
            if least < first[i]:
                first[i], changed = least, True
    return first


@pytest.mark.parametrize("seed", range(4))
def test_groups_equal_those_of_every_pair(seed):
    vectors = planted(120, 40, 0.9, seed, width=8)  # few dimensions: links chain
    out = op(min_similarity=0.85).reduce({"embed": table(vectors)})
    assert out["group"].to_pylist() == by_every_pair(vectors, 0.85)
    group = out["group"].to_numpy()
    exact = np.einsum("nd,nd->n", vectors.astype(float), vectors[group].astype(float))
    assert np.allclose(out["similarity"].to_numpy(), exact, atol=1e-6)
    assert out["hit"].to_pylist() == [g != i for i, g in enumerate(group)]
    assert out["size"].to_pylist() == [int((group == g).sum()) for g in group]


def test_order_of_rows_and_a_second_run_change_nothing():
    vectors = planted(300, 60, 0.97)
    once = op().reduce({"embed": table(vectors)})
    assert once.equals(op().reduce({"embed": table(vectors)}))
    turned = np.random.default_rng(5).permutation(300)
    again = op().reduce({"embed": table(vectors[turned], turned.tolist())})
    assert again.drop(["similarity"]).equals(once.drop(["similarity"]))


def test_cells_find_nearly_all_that_every_pair_finds():
    vectors = planted(6000, 1000, 0.96, width=64)
    exact = op().reduce({"embed": table(vectors)})
    cells = op(exact_up_to=100).reduce({"embed": table(vectors)})
    hits = [set(np.flatnonzero(out["hit"].to_numpy(zero_copy_only=False))) for out in (exact, cells)]
    assert len(hits[0]) == 1000 and hits[1] <= hits[0], "what cells link is a link"
    assert len(hits[1]) >= 990
    assert cells.equals(op(exact_up_to=100).reduce({"embed": table(vectors)}))


def test_the_best_of_a_group_stays():
    vectors = unit(np.array([[1, 0], [1, 0.001], [0, 1], [1, 0.002]]))
    scores = pa.table({"id": [0, 1, 2, 3], "score": [0.1, None, 0.9, 0.5], "error": pa.nulls(4, ERROR)})
    best = SemanticDuplicate(reads=("embed", "s"), keep="best", by="s.score")
    out = best.reduce({"embed": table(vectors), "s": scores})
    assert out["group"].to_pylist() == [0, 0, 2, 0] and out["hit"].to_pylist() == [True, True, False, False]


def test_rows_without_an_embedding_and_none_at_all():
    out = op().reduce({"embed": table([[1.0, 0.0], None, [1.0, 0.0]])})
    assert out["group"].to_pylist() == [0, None, 0] and out["hit"].to_pylist() == [False, None, True]
    assert op().reduce({"embed": table([])}).num_rows == 0


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 0.0], [3.0, 4.0]], "row 1 has length 5, not 1"),
        ([[1.0, 0.0], [1.0, 0.0, 0.0]], "row 0 has 8 bytes, of row 1 12"),
        ([[1.0, 0.0], [float("nan"), 0.0]], "row 1 has length nan"),
    ],
)
def test_what_is_no_embedding_is_refused(vectors, message):
    with pytest.raises(UserError, match=message):
        op().reduce({"embed": table(vectors)})


def test_a_step_of_other_columns_is_refused_when_the_recipe_is_read():
    with pytest.raises(UserError, match=r"steps.alike.reads: 'stats' has no column 'embedding'"):
        SemanticDuplicate(reads=("stats",)).check({"stats": ["id", "width"]}, "steps.alike")
