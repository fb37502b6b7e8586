"""Removals: what each rule of a Select takes away, alone and together with the others.

    fails    rows that do not meet the rule (marginal): what it would remove were it the only one
    first    of those, rows that met every rule before it: what `reason` says
    unique   rows that meet every other rule: what dropping this one would bring back
    joint    rows that fail both rules of a pair; large beside `fails`, the two say the same

Counted over the rows that were judged; a failed row met no rule and is in none of the numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from nextloom.curation.decisions.select import SelectWhere
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import Step
from nextloom.pipelines.report.picked import spans
from nextloom.store.files import read_files

MOST_RULES = 24
"""Rules that are told apart; a balance has one per class. The rest share the last line."""
REST = "all other rules"
NULL = " is null"


def removals(planner: Planner, step: Step) -> dict[str, Any] | None:
    """Counts of a Select and its rules; None before its first verdict.

    Returns:
        step, rows, kept, rejected, failed; `rules`: per rule rule, fails, null (of those, rows where the rule is
        null), first, unique, after (rows that meet it and all before it); `joint`: square matrix, diagonal = fails;
        `overlap`: whether any row fails two rules.
    """
    verdicts, combinations = _count(planner, step)
    if not verdicts:
        return None
    rules = list(step.op.rules()) if isinstance(step.op, SelectWhere) else _most_common(combinations)
    place = {rule: i for i, rule in enumerate(rules)}
    lines = [{"rule": rule, "fails": 0, "null": 0, "first": 0, "unique": 0} for rule in rules]
    joint = [[0] * len(rules) for _ in rules]
    for listed, count in combinations.items():
        failed = [_place(place, rule) for rule in listed]
        met = sorted({i for i, _ in failed})
        lines[failed[0][0]]["first"] += count
        for i, null in dict(failed).items():
            lines[i]["fails"] += count
            lines[i]["null"] += count if null else 0
            lines[i]["unique"] += count if len(met) == 1 else 0
            for other in met:
                joint[i][other] += count
    left = verdicts["kept"] + verdicts["rejected"]
    for line in lines:
        left -= line["first"]
        line["after"] = left
    counts = {name: verdicts[name] for name in ("kept", "rejected", "failed")}
    overlap = any(count for i, row in enumerate(joint) for j, count in enumerate(row) if i != j)
    found = {"rules": lines, "joint": joint, "overlap": overlap}
    return {"step": step.name, "rows": sum(verdicts.values()), **counts, **found}


def _count(planner: Planner, step: Step) -> tuple[Counter[str], Counter[tuple[str, ...]]]:
    """Rows per verdict, and per list of rules that are not met."""
    table = planner.table(step.name)
    found = table.files()
    verdicts: Counter[str] = Counter()
    combinations: Counter[tuple[str, ...]] = Counter()
    for low, high in spans(table):
        data = read_files(table.uri, found, ["id", "verdict", "rules"], low=low, high=high)
        grouped = data.group_by(["verdict", "rules"]).aggregate([([], "count_all")]).to_pylist()
        for group in grouped:
            verdicts[group["verdict"]] += group["count_all"]
            if group["verdict"] == "rejected":
                combinations[tuple(json.loads(group["rules"] or "[]")) or (REST,)] += group["count_all"]
    return verdicts, combinations


def _most_common(combinations: Counter[tuple[str, ...]]) -> list[str]:
    counts: Counter[str] = Counter()
    for listed, count in combinations.items():
        counts.update(dict.fromkeys(listed, count))
    names = [rule for rule, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if rule != REST]
    return [*names[:MOST_RULES], REST] if len(names) > MOST_RULES or REST in counts else names


def _place(place: dict[str, int], rule: str) -> tuple[int, bool]:
    """Index of a rule as a verdict names it, and whether it was null there."""
    if rule in place:
        return place[rule], False
    if rule.endswith(NULL) and rule.removesuffix(NULL) in place:
        return place[rule.removesuffix(NULL)], True
    return place[REST], False
