"""The plan warns where a recipe may lose a group of duplicates with a good row in it, and only there."""

from __future__ import annotations

import pytest

from engine import build, contents, plans, run, write_pictures
from nextloom.cli.curate import _show_plan
from nextloom.curation.decisions.certainty import certain
from nextloom.pipelines.recipe import Graph
from nextloom.pipelines.vanishing import warning

STEPS = {
    "stats": {"op": "image_stats"},
    "phash": {"op": "perceptual_hash"},
    "near": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 0},
    "alike": {"op": "near_duplicate", "reads": ["phash", "stats"], "keep": "best", "by": "stats.entropy"},
}
GOOD = "stats.width > 1"


def warned(root, last: str, **steps) -> str:
    recipe, _ = build(root, {**STEPS, **steps})
    graph = Graph(recipe)
    return warning(graph, graph[last])


def select(where: str, **fields) -> dict:
    return {"op": "select", "where": where, **fields}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trap")
    (folder / "pics").mkdir()
    return folder


@pytest.mark.parametrize(
    ("where", "instead"),
    [
        (f"{GOOD} and not near.hit", f'where: "{GOOD}", distinct: near.group'),
        (f"not near.hit and {GOOD}", f'where: "{GOOD}", distinct: near.group'),
        (f"near.hit = false and {GOOD}", f'where: "{GOOD}", distinct: near.group'),
        (f"{GOOD} and near.hit is not true", "distinct: near.group"),
        (f"{GOOD} and not coalesce(near.hit, false)", "distinct: near.group"),
        (f"{GOOD} and case when near.hit then false else true end", "distinct: near.group"),
        (f"not (near.hit or {GOOD})", "distinct: near.group"),
        (f"({GOOD} or stats.height > 1) and (not near.hit or near.distance > 3)", "distinct: near.group"),
        ("not near.hit and (stats.width is null or stats.width > 1)", "distinct: near.group"),
        (f"{GOOD} and not alike.hit", "distinct: alike.group, best: stats.entropy"),
        ("not near.hit and not alike.hit", 'where: "not alike.hit", distinct: near.group'),
    ],
)
def test_a_rule_over_hit_beside_others_is_told_and_what_to_write(root, where, instead):
    told = warned(root, "keep", keep=select(where))
    assert "is decided over all rows of source" in told and instead in told


@pytest.mark.parametrize(
    "where",
    [
        GOOD,
        "not near.hit",
        "not near.hit and near.size < 9",  # the same for all of a group
        "near.hit and stats.width > 1",  # who asks for copies gets them
        f"not near.hit or {GOOD}",
        "(not near.hit or near.distance > 3)",
    ],
)
def test_what_loses_no_group_is_not_told(root, where):
    assert warned(root, "keep", keep=select(where)) == ""
    assert warned(root, "keep", keep=select(GOOD, distinct="near.group")) == ""


def test_a_trap_of_two_steps_is_told(root):
    first = select(GOOD)
    assert "rejected by the select 'good'" in warned(root, "one", good=first, one=select("not near.hit", rows="good"))
    late = {"near2": {"op": "near_duplicate", "rows": "good", "reads": ["phash"]}, "good": first}
    assert warned(root, "one", **late, one=select("not near2.hit", rows="good")) == "", "elected among the good"
    told = warned(root, "good", one=select("not near.hit"), good=select(GOOD, rows="one"))
    assert "one has already kept one of each group" in told and "`distinct: near.group` in good" in told
    told = warned(root, "good", one=select(GOOD, distinct=["near.group", "alike.group"]), good=select(GOOD, rows="one"))
    assert "`distinct: [near.group, alike.group]` in good" in told


def test_a_later_rule_over_what_only_the_kept_rows_have_is_no_trap(root):
    """Text is looked for in one of each group alone: to ask all of them would cost what `distinct` saves."""
    steps = {
        "one": select(GOOD, distinct="near.group"),
        "words": {"op": "text_area", "rows": "one"},
        "few": select("words.share < 0.5", rows="one"),
    }
    assert warned(root, "few", **steps) == ""


def test_the_plan_shows_it_and_says_it_before_anything_runs(root, capsys):
    recipe, dataset = build(root, {**STEPS, "keep": select(f"{GOOD} and not near.hit")})
    _show_plan(list(plans(recipe, dataset).values()))
    out = capsys.readouterr().out
    assert "warning      keep: near.hit is decided over all rows" in out and "distinct: near.group" in out


@pytest.mark.parametrize(
    ("sql", "hit", "expected"),
    [
        ("not a.hit", True, False),
        ("not a.hit", False, True),
        ("a.hit and b.x > 1", False, False),
        ("a.hit and b.x > 1", True, None),
        ("a.hit or b.x > 1", True, True),
        ("not (a.hit or b.x > 1)", True, False),
        ("not (a.hit or b.x > 1)", False, None),
        ("coalesce(a.hit, true) = false", False, True),
        ("a.hit::int > 0", True, True),
        ("b.x > 1", True, None),
        ("null and a.hit", False, False),
    ],
)
def test_what_a_rule_comes_to_with_one_column_known(sql, hit, expected):
    assert certain(sql, {("a", "hit"): hit}) is expected


def test_a_run_keeps_the_copy_that_is_good(tmp_path, ray_local):
    """Two equal pictures, the older with a caption that the rule rejects."""
    write_pictures(tmp_path / "pics", 3)
    first = sorted((tmp_path / "pics").rglob("*.png"))[0]
    (tmp_path / "pics" / "zz_copy.png").write_bytes(first.read_bytes())
    where = f"source.key <> '{first.relative_to(tmp_path / 'pics')}'"
    old, dataset = build(tmp_path, {**STEPS, "keep": select(f"{where} and not near.hit")})
    run(old, dataset)
    kept = [row["key"] for row in contents(old, dataset)["keep"] if row["verdict"] == "kept"]
    assert "zz_copy.png" not in kept, "the whole group is lost"
    recipe, dataset = build(tmp_path, {**STEPS, "keep": select(where, distinct="near.group", best="stats.entropy")})
    planned = plans(recipe, dataset)["keep"]
    assert planned.cause.startswith("CONFIG where") and not planned.warning
    run(recipe, dataset)
    rows = {row["key"]: row for row in contents(recipe, dataset)["keep"]}
    assert rows["zz_copy.png"]["verdict"] == "kept" and rows["zz_copy.png"]["survivor"] == rows["zz_copy.png"]["id"]
    assert plans(recipe, dataset)["keep"].state == "fresh"
