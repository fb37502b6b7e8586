"""Topics: how many rows of each class there were before a Select, and are after, in two levels where there are two.

A step has topics where it has a column `label` (with `primary`, the two-level tree) or a list `labels`; so has any
column that a balance evens out. They are shown for every Select whose rows all have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.curation.decisions.balance import Balance
from nextloom.curation.decisions.categories import Category, tree
from nextloom.op import Select
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE, Step
from nextloom.pipelines.report.picked import spans, table_of
from nextloom.store.files import read_files, take_ids

MOST = 200
"""Categories shown, of each level; the rest are told as a number."""
FEW_LABELS = 5000
"""A column of more different values than this names its rows, not their topics."""


def topics(planner: Planner, step: Step) -> list[dict[str, Any]]:
    """Trees of topics before and after a Select: `by` (step.column), `reads` (it decides by it), `categories`, `more`.

    Nothing where the Select has no verdicts.
    """
    found = []
    files = planner.table(step.name).files()
    columns = list(_label_columns(planner, step)) if files else []
    raw = {other for name, *_ in columns if name != SOURCE for other in planner.graph[name].reads}
    for name, first, second in columns:
        if name in raw and name not in step.reads:
            continue  # the scores that another step makes topics of
        try:
            counts = _count(planner, step, name, first, second)
        except LookupError:  # a column lacks rows that were judged: the step is stale
            continue
        if counts is None or not counts.num_rows:
            continue
        categories = tree(counts["primary"], counts["label"], counts["verdict"], counts["count"])
        found.append(
            {
                "by": f"{name}.{second}",
                "reads": name in step.reads,
                "categories": [_plain(c) for c in categories[:MOST]],
                "more": len(categories[MOST:]),
            }
        )
    return found


def _label_columns(planner: Planner, step: Step) -> Iterator[tuple[str, str | None, str]]:
    """(step, column of the first level or None, column) of the topics that the rows of `step` have."""
    named = tuple(step.op.by.split(".")) if isinstance(step.op, Balance) else ("", "")
    for other in planner.graph:
        if isinstance(other.op, Select) or other.name not in planner.fingerprints or not _covers(planner, other, step):
            continue
        schema = other.op.columns() if other.kind != "expand" else pa.schema([])
        texts = [f.name for f in schema if _is_label(f.type)]
        own = named[1] if other.name == named[0] else ""
        for column in dict.fromkeys([own, "label", "labels", "primary"]):
            if column in texts:
                yield other.name, "primary" if column == "label" and "primary" in texts else None, column
                break
    if named[0] == SOURCE:
        yield SOURCE, None, named[1]


def _covers(planner: Planner, other: Step, step: Step) -> bool:
    """Whether every row of `step` is one of `other`: same domain, same rows or a wider set."""
    rows = step.rows
    while rows != other.rows and rows not in (SOURCE, step.domain):
        rows = planner.graph[rows].rows
    return other.domain == step.domain and rows == other.rows


def _is_label(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or (pa.types.is_list(kind) and pa.types.is_string(kind.value_type))


def _count(planner: Planner, step: Step, name: str, first: str | None, second: str) -> pa.Table | None:
    """table(primary, label, verdict, count); None where there are too many labels for topics."""
    verdicts = planner.table(step.name)
    files = verdicts.files()
    table, _ = table_of(planner, name, step.domain)
    labelled, parts = table.files(), []
    for low, high in spans(verdicts):
        judged = read_files(verdicts.uri, files, ["id", "verdict"], low=low, high=high)
        data = take_ids(table.uri, labelled, judged["id"].to_numpy(), [second, *([first] if first else [])])
        label, verdict = data[second].combine_chunks(), judged["verdict"].combine_chunks()
        if pa.types.is_list(label.type):
            label, place = pc.list_flatten(label), pc.list_parent_indices(label)
            verdict = verdict.take(place)
        primary = data[first].combine_chunks() if first else pa.nulls(len(label), pa.string())
        rows = pa.table({"primary": primary, "label": label.cast(pa.string()), "verdict": verdict})
        parts.append(rows.group_by(["primary", "label", "verdict"]).aggregate([([], "count_all")]))
        if sum(part.num_rows for part in parts) > FEW_LABELS * 3:
            return None
    counts = pa.concat_tables(parts).rename_columns({"count_all": "count"}) if parts else None
    few = counts is None or len(np.unique(counts["label"].to_numpy(zero_copy_only=False).astype(str))) <= FEW_LABELS
    return counts if few else None


def _plain(category: Category) -> dict[str, Any]:
    return {
        "name": category.name,
        "before": category.before,
        "after": category.after,
        "share_before": category.share_before,
        "share_after": category.share_after,
        "subs": [_plain(sub) for sub in category.subs[:MOST]],
        "more": len(category.subs[MOST:]),
    }
