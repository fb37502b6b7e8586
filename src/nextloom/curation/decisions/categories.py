"""Categories in two levels, as in the paper's figure of topics: how large each was before a selection, and is after.

animal          412 -> 240
  cat           300 -> 150
  dog           112 ->  90
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Category:
    """One node of the tree; shares are of all rows counted, 0..1, so those of a level add up to 1."""

    name: str
    before: int
    after: int
    share_before: float
    share_after: float
    subs: tuple[Category, ...] = ()
    """Its sub-categories; none where the category is its own only label."""


Column = pa.Array | pa.ChunkedArray
UNLABELLED = "(no label)"


def tree(primary: Column, label: Column, verdicts: Column, counts: Column | None = None) -> list[Category]:
    """The two-level tree of labels, largest category first, then by name, at both levels.

    Args:
        primary: first level of each row; null where the labels are a flat list, and the label itself is the category.
        label: second level of each row; null where it has none.
        verdicts: kept, rejected or failed; failed rows are not counted, since their label is not known.
        counts: rows that each entry stands for, where equal rows were counted before; default 1.

    Returns:
        The categories. Rows with neither are counted under ``(no label)``.

    Raises:
        ValueError: columns of different lengths.
    """
    if len({len(primary), len(label), len(verdicts)}) > 1:
        raise ValueError("columns of different lengths")
    before: Counter[tuple[str, str]] = Counter()
    after: Counter[tuple[str, str]] = Counter()
    rows = pa.table({"primary": primary, "label": label, "verdict": verdicts})
    counted = rows.append_column("count", pa.repeat(1, rows.num_rows) if counts is None else counts)
    for first, second, verdict, count in _rows(counted.group_by(rows.column_names).aggregate([("count", "sum")])):
        if verdict == "failed":
            continue
        top = first if first is not None else second if second is not None else UNLABELLED
        place = (top, second if second is not None else top)
        before[place] += count
        after[place] += count if verdict == "kept" else 0
    totals = (before.total(), after.total())
    tops = {top: [place for place in before if place[0] == top] for top, _ in before}
    return _sorted(
        _category(
            top,
            sum(before[place] for place in places),
            sum(after[place] for place in places),
            totals,
            _sorted(_category(place[1], before[place], after[place], totals) for place in places)
            if places != [(top, top)]
            else [],
        )
        for top, places in tops.items()
    )


def _rows(table: pa.Table) -> Iterable[tuple]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _category(name: str, before: int, after: int, totals: tuple[int, int], subs: Iterable[Category] = ()) -> Category:
    return Category(name, before, after, before / max(1, totals[0]), after / max(1, totals[1]), tuple(subs))


def _sorted(categories: Iterable[Category]) -> list[Category]:
    return sorted(categories, key=lambda category: (-category.before, category.name))
