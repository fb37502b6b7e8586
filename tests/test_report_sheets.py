"""What the report shows of decisions: contact sheets, groups without a survivor, changes since a release, failures."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

import toy_report
from engine import build, contents, run
from nextloom.hashing import hash64
from nextloom.pipelines.release import make_release
from nextloom.pipelines.report import gather, sheet, write_report

pytestmark = pytest.mark.usefixtures("ray_local")

GOOD = "stats.width >= 40"
TRAP = f"{GOOD} and source.key not like 'camera/%004%' and not duplicate.hit"
STEPS = {
    "stats": {"op": "image_stats"},
    "phash": {"op": "perceptual_hash"},
    "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 0},
    "keep": {"op": "select", "where": TRAP.replace("40", "10")},
    "few": {"op": "select", "rows": "keep", "where": "stats.width < 60", "distinct": "duplicate.group"},
}
RELEASES = {"curated": {"rows": "few", "columns": ["stats"]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_local):
    """(root, recipe, dataset, report, rows by step): 122 pictures and an empty file, two of them copies; captions."""
    root = tmp_path_factory.mktemp("sheets")
    toy_report.write(root / "pics")
    for number in range(0, 120, 2):
        name = f"{toy_report.SUBJECTS[number % 3]}{number:03d}"
        (root / "pics" / "camera" / f"{name}.txt").write_text(f"picture <b>{number}</b> " + "x" * (300 * (number == 8)))
    recipe, dataset = build(root, STEPS, releases=RELEASES)
    run(recipe, dataset)
    return root, recipe, dataset, gather(recipe, dataset, root=str(root)), contents(recipe, dataset)


def select(report: dict, name: str) -> dict:
    return next(s for s in report["selects"] if s["step"] == name)


def test_a_contact_sheet_shows_kept_and_rejected_rows_of_each_rule(made):
    *_, report, rows = made
    strips = {strip["title"]: strip for strip in select(report, "few")["sheet"]}
    assert list(strips) == ["kept", "stats.width < 60"]
    for title, most in (("kept", sheet.KEPT), ("stats.width < 60", sheet.REMOVED)):
        ids = [r["id"] for r in rows["few"] if (r["reason"] or "kept") == title]
        chosen = np.array(ids)[np.argsort(hash64(np.array(ids), "sheet"))][:most]
        keys = {r["id"]: r["key"] for r in rows["few"]}
        assert strips[title]["count"] == len(ids) > most
        assert [row["key"] for row in strips[title]["rows"]] == [keys[i] for i in chosen.tolist()]
        assert all(row["picture"].startswith("data:image/webp;base64,") for row in strips[title]["rows"])
    captions = {row["key"]: row["caption"] for strip in strips.values() for row in strip["rows"]}
    camera = [key for key in captions if key.startswith("camera/")]
    assert camera and all(captions[key].startswith("picture <b>") for key in camera)
    assert all(captions[key] == "" for key in captions if key.startswith("web/"))


def test_captions_are_text_and_short_and_pictures_stand_in_the_page_without_its_script(made):
    root, recipe, dataset, report, _ = made
    page = Path(write_report(recipe, dataset, root=str(root))).read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    text, data = page.split('<script type="application/json"')
    assert "picture <b>" not in page and "picture &lt;b&gt;" in text
    assert "x" * 161 not in text and "x" * 200 not in data
    shown = [r for s in report["selects"] for strip in s["sheet"] for r in strip["rows"] if r["picture"]]
    assert all(row["picture"] in text for row in shown)
    for slot, (_, uri) in json.loads(re.search(r"\{.*\}", data.partition("</script>")[0]).group())["pictures"].items():
        assert uri or f'data-slot="{slot}"' in text, "each picture is somewhere"
        assert not uri or uri not in text, "and in one place"


def test_groups_without_a_survivor_are_counted_and_the_lost_ones_shown(made):
    """camera/dog004 represents itself and its copy in web, and fails for its name; the copy fails `hit` alone."""
    root, recipe, dataset, report, rows = made
    (pair,) = select(report, "keep")["survivors"]
    told = {k: pair[k] for k in ("step", "groups", "one", "several", "none", "lost")}
    assert told == {"step": "duplicate", "groups": 2, "one": 1, "several": 0, "none": 1, "lost": 1}
    assert [row["key"] for row in pair["rows"]] == ["web/copy-dog004.png"]
    page = html.unescape(Path(write_report(recipe, dataset, root=str(root))).read_text(encoding="utf-8"))
    assert "1 group is lost although a row fails nothing but being a copy" in page
    warning = next(s["warning"] for s in report["steps"] if s["name"] == "keep")
    assert warning in page and "distinct: duplicate.group" in warning
    keys = {r["key"]: r["verdict"] for r in rows["keep"]}
    assert keys["camera/dog004.png"] == keys["web/copy-dog004.png"] == "rejected"
    right = {"op": "select", "where": TRAP.replace(" and not duplicate.hit", ""), "distinct": "duplicate.group"}
    steps = {**STEPS, "keep": right}
    other, _ = build(root, steps, releases=RELEASES)
    try:
        run(other, dataset, to="keep")
        (pair,) = select(gather(other, dataset, root=str(root)), "keep")["survivors"]
        assert (pair["one"], pair["none"], pair["lost"]) == (0, 2, 0), "0 and 4 are too narrow: no row meets the rule"
    finally:
        run(recipe, dataset)


def test_what_a_release_would_gain_and_lose_and_why(made):
    root, recipe, dataset, report, rows = made
    assert report["changes"] == [], "nothing was released"
    with dataset.lease("test"):
        first, _ = make_release(recipe, dataset, "curated")
    (same,) = gather(recipe, dataset, root=str(root))["changes"]
    assert (same["base"], same["state"]) == ("curated-0001", "its first version, and nothing has changed since")
    steps = {
        **STEPS,
        "keep": {"op": "select", "where": STEPS["keep"]["where"] + " and stats.width <> 50"},
        "few": {**STEPS["few"], "where": "stats.width between 33 and 64"},
    }
    other, _ = build(root, steps, releases=RELEASES)
    gone = root / "pics" / "camera" / "dog040.png"  # width 60: was not in it, is not now
    kept = root / "pics" / "web" / "cat015.png"  # width 35
    new = root / "pics" / "web" / "new.png"
    new.write_bytes((root / "pics" / "web" / "cat021.png").read_bytes() + b"\0")
    hidden = [(path, path.read_bytes()) for path in (gone, kept)]
    try:
        for path, _ in hidden:
            path.unlink()
        run(other, dataset)
        now = contents(other, dataset)
        (change,) = gather(other, dataset, root=str(root))["changes"]
        before, after = set(first.ids.tolist()), {r["id"] for r in now["few"] if r["verdict"] == "kept"}
        assert (change["base"], change["now"], change["state"]) == ("curated-0001", "now", "")
        assert (change["before"], change["after"], change["same"]) == (len(before), len(after), len(before & after))
        out = {r["why"]: r["count"] for r in change["out"]}
        came = {r["why"]: r["count"] for r in change["came"]}
        assert sum(out.values()) == len(before - after) and sum(came.values()) == len(after - before)
        narrow = sum(1 for r in rows["stats"] if r["id"] in before and r["width"] < 33)
        assert out == {
            "few: rejected: stats.width between 33 and 64": narrow,
            "keep: rejected: stats.width <> 50": 1,
            "gone from the source, or changed there": 1,
        }
        wide = sum(1 for r in now["few"] if r["verdict"] == "kept" and r["id"] in after - before)
        assert came.pop("was rejected by few: stats.width < 60") == wide - sum(came.values()) > 0
        page = html.unescape(Path(write_report(other, dataset, root=str(root))).read_text(encoding="utf-8"))
        assert "curated: now beside curated-0001" in page and "keep: rejected: stats.width <> 50" in page
        with dataset.lease("test"):
            make_release(other, dataset, "curated")
        (again,) = gather(other, dataset, root=str(root))["changes"]
        assert (again["base"], again["now"]) == ("curated-0001", "curated-0002"), "the last one beside the one before"
        assert (again["out"], again["same"]) == (change["out"], change["same"])
    finally:
        new.unlink()
        for path, raw in hidden:
            path.write_bytes(raw)
        run(recipe, dataset)


def test_failures_are_told_by_kind_with_a_detail(tmp_path):
    toy_report.write(tmp_path / "pics", 12)
    rule = {"op": "select", "where": "odd.width > 1"}
    recipe, dataset = build(tmp_path, {"odd": {"op": "toy_report:Odd"}, "keep": rule})
    run(recipe, dataset)
    report = gather(recipe, dataset, root=str(tmp_path))
    found = [f for f in report["failures"] if f["step"] == "odd"]
    told = [(f["type"], f["message"], f["count"], f["detail"]) for f in found if f["type"] != "BrokenPicture"]
    assert told[0][:3] == ("TooWide", "wider than 25 pixels", 6) and re.fullmatch(r"\d+ pixels<i>", told[0][3])
    page = Path(write_report(recipe, dataset, root=str(tmp_path))).read_text(encoding="utf-8")
    assert f"such as: {html.escape(told[0][3])}" in page and "pixels<i>" not in page
    inherited = [(f["step"], f["message"], f["count"]) for f in report["failures"] if f["inherited"]]
    assert inherited[0] == ("keep", "odd: TooWide: wider than 25 pixels", 6)
    assert page.index("such as: ") < page.index('class="inherited"'), "the cause stands before what follows from it"
