"""Parts of the report against what plain Python finds in the same columns: removals, thresholds, topics, duplicates."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import toy_report
from engine import build, contents, plans, run
from nextloom.hashing import hash64
from nextloom.pipelines.report import album, gather, thresholds, write_report
from nextloom.pipelines.report.histogram import Histogram

pytestmark = pytest.mark.usefixtures("ray_local")

RULES = (
    "stats.width >= 60",
    "stats.brightness between 0.2 and 0.7",
    "(stats.entropy > 5.25 or stats.height > 30)",
    "not duplicate.hit",
)
STEPS = {
    "stats": {"op": "image_stats"},
    "topic": {"op": "toy_report:Subject"},
    "phash": {"op": "perceptual_hash"},
    "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 0},
    "keep": {"op": "select", "where": " and ".join(RULES)},
    "balanced": {"op": "balance", "rows": "keep", "by": "topic.label", "max_rows": 12},
    "cut": {"op": "quantile", "reads": ["stats"], "column": "width", "top": 0.25},
    "wide": {"op": "select", "where": "cut.hit and stats.brightness < 0.6"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_local):
    """(root, recipe, dataset, what the report gathers, rows by step) of a run over toy pictures."""
    root = tmp_path_factory.mktemp("parts")
    toy_report.write(root / "pics")
    recipe, dataset = build(root, STEPS)
    run(recipe, dataset)
    return root, recipe, dataset, gather(recipe, dataset, root=str(root)), contents(recipe, dataset)


def select(report: dict, name: str) -> dict:
    return next(s for s in report["selects"] if s["step"] == name)


def unmet(rows) -> list[list[int]]:
    """Per judged row the numbers of the rules that are not met, worked out from the values themselves."""
    out = []
    for stats, duplicate in zip(rows["stats"], rows["duplicate"], strict=True):
        if stats["error"]:
            continue
        met = (
            stats["width"] >= 60,
            0.2 <= stats["brightness"] <= 0.7,
            stats["entropy"] > 5.25 or stats["height"] > 30,
            not duplicate["hit"],
        )
        out.append([i for i, true in enumerate(met) if not true])
    return out


def test_marginal_joint_and_unique_removals(made):
    *_, report, rows = made
    keep, failed = select(report, "keep"), unmet(rows)
    assert (keep["rows"], keep["failed"]) == (123, 1)
    assert keep["kept"] == sum(not f for f in failed) and keep["rejected"] == sum(bool(f) for f in failed)
    left = len(failed)
    for i, line in enumerate(keep["rules"]):
        assert line["rule"] == RULES[i].strip("()")
        assert line["fails"] == sum(i in f for f in failed) > 0
        assert line["first"] == sum(f[:1] == [i] for f in failed)
        assert line["unique"] == sum(f == [i] for f in failed)
        left -= line["first"]
        assert line["after"] == left
        assert keep["joint"][i] == [sum(i in f and j in f for f in failed) for j in range(len(RULES))]
    assert left == keep["kept"] and keep["overlap"]


def test_a_rule_that_is_null_counts_as_its_rule(tmp_path):
    toy_report.write(tmp_path / "pics", 12)
    recipe, dataset = build(tmp_path, {"keep": {"op": "select", "where": "source.caption <> 'x' and source.size > 0"}})
    run(recipe, dataset)
    keep = select(gather(recipe, dataset, root=str(tmp_path)), "keep")
    assert [(r["rule"], r["fails"], r["null"], r["unique"]) for r in keep["rules"]] == [
        ("source.caption <> 'x'", 15, 15, 14),
        ("source.size > 0", 1, 0, 0),
    ]


def test_a_balance_has_a_rule_per_class(made):
    *_, report, rows = made
    kept = {row["id"] for row in rows["keep"] if row["verdict"] == "kept"}
    sizes = Counter(row["label"] for row in rows["topic"] if row["id"] in kept)
    balanced = select(report, "balanced")
    assert {r["rule"]: r["fails"] for r in balanced["rules"]} == {
        f"{name}: {size} of 12": size - 12 for name, size in sizes.items() if size > 12
    }
    assert balanced["rules"] and not balanced["overlap"] and balanced["moved"] is None


def test_histograms_hold_every_judged_row(made):
    *_, report, rows = made
    moved = select(report, "keep")["moved"]
    verdicts = {row["id"]: row["verdict"] for row in rows["keep"]}
    assert [c["name"] for c in moved["columns"]] == ["stats.width", "stats.brightness", "stats.entropy", "stats.height"]
    for column in moved["columns"]:
        name, edges = column["name"].partition(".")[2], column["edges"]
        assert edges == sorted(set(edges))
        for verdict in ("kept", "rejected"):
            values = [row[name] for row in rows["stats"] if verdicts[row["id"]] == verdict]
            inside = [sum(a <= v < b for v in values) for a, b in pairwise(edges)]
            inside[0] += sum(v < edges[0] for v in values)
            inside[-1] += sum(v >= edges[-1] for v in values)
            assert column[verdict] == inside and sum(inside) == len(values)


def test_thresholds_are_found_with_the_rows_next_to_them(made):
    *_, report, rows = made
    moved = select(report, "keep")["moved"]
    told = [(moved["columns"][t["column"]]["name"], t["operator"], t["value"], t["alone"]) for t in moved["thresholds"]]
    assert told == [
        ("stats.width", ">=", 60, True),
        ("stats.brightness", ">=", 0.2, True),
        ("stats.brightness", "<=", 0.7, True),
        ("stats.entropy", ">", 5.25, False),
        ("stats.height", ">", 30, False),
    ]
    pictures = report["data"]["pictures"]
    shown = {pictures[slot][0] for slot in moved["slots"] if slot in pictures}
    widths = {row["key"]: row["width"] for row in rows["stats"] if not row["error"]}
    for side in ([w for w in widths.values() if w < 60], [w for w in widths.values() if w >= 60]):
        nearest = sorted(side, key=lambda w: abs(w - 60))[: thresholds.NEAREST]
        assert {key for key, w in widths.items() if w in nearest} <= shown


def test_the_sample_says_what_the_verdicts_say(made):
    *_, report, rows = made
    moved = select(report, "keep")["moved"]
    assert moved["judged"] == moved["sample"] == 122
    assert Counter(moved["unmet"]) == Counter("".join("01"[i in f] for i in range(4)) for f in unmet(rows))
    width = dict(zip(moved["slots"], moved["values"][0], strict=True))
    keys = {slot: key for slot, (key, _) in report["data"]["pictures"].items()}
    by_key = {row["key"]: row["width"] for row in rows["stats"]}
    assert {keys[s]: v for s, v in width.items()} == {keys[s]: by_key[keys[s]] for s in width}


def test_a_sample_is_the_smallest_hashes(made, monkeypatch):
    root, recipe, dataset, _, rows = made
    monkeypatch.setattr(thresholds, "SAMPLE", 40)
    monkeypatch.setattr(thresholds, "PICTURED", 10)
    moved = select(gather(recipe, dataset, root=str(root)), "keep")["moved"]
    judged = np.array([row["id"] for row in rows["keep"] if row["verdict"] != "failed"])
    chosen = judged[np.argsort(hash64(judged, "report"))][:40]
    width = {row["id"]: row["width"] for row in rows["stats"]}
    assert (moved["judged"], moved["sample"]) == (122, 40)
    assert moved["values"][0][:40] == [width[i] for i in chosen.tolist()]
    assert len(moved["values"][0]) == len(moved["unmet"]) == len(moved["slots"]) > 40


def test_a_quantile_is_a_threshold_on_the_column_it_ranks(made):
    *_, report, rows = made
    moved = select(report, "wide")["moved"]
    widths = sorted((row["width"] for row in rows["stats"] if not row["error"]), reverse=True)
    assert [c["name"] for c in moved["columns"]] == ["stats.width", "stats.brightness"]
    assert [(t["operator"], t["value"]) for t in moved["thresholds"]] == [(">=", widths[30]), ("<", 0.6)]
    assert moved["parts"] == ["cut.hit", "stats.brightness < 0.6"]


def test_topics_before_and_after(made):
    *_, report, rows = made
    for step, before in (("keep", {"kept", "rejected"}), ("balanced", {"kept", "rejected"})):
        (tree,) = select(report, step)["topics"]
        assert (tree["by"], tree["reads"]) == ("topic.label", step == "balanced")
        label = {row["id"]: row["label"] for row in rows["topic"]}
        counts = {
            name: Counter(label[row["id"]] for row in rows[step] if row["verdict"] in verdicts)
            for name, verdicts in (("before", before), ("after", {"kept"}))
        }
        seen = {sub["name"]: sub for c in tree["categories"] for sub in (c["subs"] or [c])}
        for when in ("before", "after"):
            assert {name: s[when] for name, s in seen.items()} == {name: counts[when][name] for name in seen}
            assert sum(c[f"share_{when}"] for c in tree["categories"]) == pytest.approx(1)
        animal = next(c for c in tree["categories"] if c["name"] == "animal")
        assert animal["before"] == counts["before"]["cat"] + counts["before"]["dog"]


def test_duplicates_across_folders_are_marked(made):
    *_, report, _ = made
    (found,) = report["duplicates"]
    assert (found["groups"], found["copies"], found["spanning"]) == (2, 2, 2)
    assert found["across"] == [{"origins": ["camera", "web"], "groups": 2}]
    for group in found["shown"]:
        stays, copy = group["members"]
        assert stays["stays"] and not copy["stays"] and copy["apart"] == 0
        assert copy["key"] == f"web/copy-{stays['key'].removeprefix('camera/')}"
        assert stays["picture"] == copy["picture"] is not None


def test_thumbnails_are_the_pictures(made):
    root, _, _, report, _ = made
    assert len(report["data"]["pictures"]) == 122, "all but the empty file"
    for key, uri in list(report["data"]["pictures"].values())[:20]:
        small = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))
        original = Image.open(root / "pics" / key)
        assert max(small.size) == min(96, max(original.size))
        assert abs(np.asarray(small.convert("L")).mean() - np.asarray(original).mean()) < 4


def test_pictures_stay_within_the_budget(made, monkeypatch):
    root, recipe, dataset, *_ = made
    monkeypatch.setattr(album, "MOST", 30)
    assert 0 < len(gather(recipe, dataset, root=str(root))["data"]["pictures"]) <= 30
    monkeypatch.setattr(album, "MOST_BYTES", 2000)
    assert sum(len(p) for _, p in gather(recipe, dataset, root=str(root))["data"]["pictures"].values()) <= 2000


def test_rows_that_are_urls_show_what_a_step_fetched(tmp_path):
    steps = {
        "fetched": {"op": "toy_report:Fetched"},
        "stats": {"op": "image_stats", "reads": ["fetched"]},
        "keep": {"op": "select", "where": "stats.brightness > 0.3"},
    }
    recipe, dataset = build(tmp_path, steps, source={"op": "toy_report:Urls"})
    run(recipe, dataset)
    pictures = gather(recipe, dataset, root=str(tmp_path))["data"]["pictures"]
    assert sorted(key for key, _ in pictures.values()) == ["0", "1", "2", "3"]


def test_cost_is_cpu_time_at_a_price(made):
    root, _, dataset, *_ = made
    priced, _ = build(root, STEPS, run={"cpu_hour_price": 3600.0})
    (stats, *_) = gather(priced, dataset, root=str(root))["steps"]
    receipt = dataset.receipt("stats")
    wanted = receipt["cpu_seconds_per_row"] * 123
    assert wanted > 0 and (stats["cost"], stats["cpu_seconds"]) == (pytest.approx(wanted), pytest.approx(wanted))
    assert '<th class="n">cost</th>' in Path(write_report(priced, dataset, root=str(root))).read_text()


def test_a_moved_rule_has_no_verdicts_until_it_has_run(made):
    root, _, dataset, *_ = made
    other, _ = build(root, {**STEPS, "keep": {"op": "select", "where": "stats.width >= 70"}})
    assert plans(other, dataset)["keep"].state == "stale"
    report = gather(other, dataset, root=str(root))
    assert [(s["step"], s["state"]) for s in report["selects"]] == [("balanced", "stale"), ("wide", "fresh")]
    write_report(other, dataset, root=str(root))


def test_verdicts_on_columns_that_lack_rows_are_counted_but_not_drawn(made):
    root, recipe, dataset, *_ = made
    toy_report.write(root / "pics", 125)
    try:
        report = gather(recipe, dataset, root=str(root))
        assert select(report, "keep")["state"] != "fresh" and select(report, "keep")["rows"] == 123
        write_report(recipe, dataset, root=str(root))
    finally:
        for number in range(120, 125):
            (root / "pics" / toy_report.FOLDERS[number % 2] / f"{toy_report.SUBJECTS[number % 3]}{number}.png").unlink()


@pytest.mark.parametrize("ran", [False, True])
def test_nothing_at_all(tmp_path, ran):
    (tmp_path / "pics").mkdir()
    blocked = {"tokens": {"op": "image_tokens", "rows": "keep", "tokenizer": "runs/absent", "scales": 6}}
    recipe, dataset = build(tmp_path, {**STEPS, **blocked})
    if ran:
        run(recipe, dataset, to="wide")
    page = Path(write_report(recipe, dataset, root=str(tmp_path))).read_text(encoding="utf-8")
    assert "No row failed." in page and re.search(r"<td>tokens</td>.*?blocked", page, re.DOTALL)
    assert json.loads(re.search(r'id="data">(.*?)</script>', page).group(1)) == {"selects": [], "pictures": {}}


@pytest.mark.parametrize(
    ("sample", "marks", "integer", "log"),
    [
        ([5.0] * 9, [5.0], True, False),
        ([0.0], [0.0], False, False),
        ([], [4.3], False, False),
        ([-3.0, 8.0, np.nan, np.inf], [0.0], False, False),
        ([float(2**i) for i in range(20)], [100.0], True, True),
        ([0.0, 1.0, 2.0, 5000.0], [1.0], True, False),
    ],
)
def test_axes(sample, marks, integer, log):
    histogram = Histogram(np.array(sample), marks, integer=integer)
    values = np.array([*sample, -1e9, 1e9, np.nan])
    histogram.add(values, np.arange(len(values)) % 2 == 0)
    told = histogram.as_dict()
    edges = told["edges"]
    assert told["log"] == log and edges == sorted(set(edges)) and len(edges) <= 60
    assert edges[0] <= min(marks) and edges[-1] > max(marks), "a threshold can be seen and moved up"
    assert sum(told["kept"]) + sum(told["rejected"]) + told["missing"] == len(values)
    assert told["missing"] == (~np.isfinite(values)).sum()
