"""The report of a run over odd files: whole, offline, and every failure under its own name."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from PIL import Image

import zoo
from engine import build, contents, run, write_pictures
from nextloom.errors import UserError
from nextloom.pipelines.report import gather, write_report

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = {
    "stats": {"op": "image_stats"},
    "frames": {"op": "gif_frames", "max_frames": 3},
    "inside": {"op": "toy_ops:Mean", "rows": "frames", "refuse_below": 100},
    "keep": {"op": "select", "where": "stats.short_side >= 20 and stats.width < 200"},
    "mean": {"op": "toy_ops:Mean", "rows": "keep", "refuse_below": 90},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_local):
    """(root, recipe, dataset, counts) of a run over the zoo and an animation of too many frames."""
    root = tmp_path_factory.mktemp("report")
    (root / "pics").mkdir()
    zoo.write_all(root / "pics")
    first, *rest = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 90, 170, 250)]
    (root / "pics" / "long.gif").write_bytes(zoo.encoded(first, "GIF", save_all=True, append_images=rest))
    recipe, dataset = build(root, STEPS)
    return root, recipe, dataset, run(recipe, dataset)


def expected(recipe, dataset) -> dict[tuple[str, str], set[str]]:
    """(step, message) -> keys of the rows that failed so."""
    failed: dict[tuple[str, str], set[str]] = {}
    rows = contents(recipe, dataset)
    keys = {row["id"]: row["key"] for row in rows["frames"]}
    for step, values in rows.items():
        for row in values:
            if row["error"]:
                key = keys[row["id"]] if step == "inside" else row["key"]
                failed.setdefault((step, row["error"]["message"]), set()).add(key)
    return failed


def test_the_page_is_whole_and_offline(made):
    root, recipe, dataset, counts = made
    text = Path(write_report(recipe, dataset, root=str(root))).read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import""", text)
    assert all(link.startswith(("data:", "#")) for link, _ in links)
    assert "http" not in re.sub(r"<td[^>]*>.*?</td>|http-equiv", "", text)
    assert len(text) < 1_000_000
    plain = html.unescape(text)
    for step, made_counts in counts.items():
        row = re.search(rf"<tr><td>{step}</td>.*?</tr>", plain, re.DOTALL).group()
        cells = [cell.replace(",", "") for cell in re.findall(r'<td class="n">(.*?)</td>', row)]
        kept = made_counts.get("kept", made_counts.get("values"))
        failed = made_counts.get("failed", made_counts.get("errors"))
        assert cells[:4] == [str(n) for n in (made_counts["rows"], kept, made_counts.get("rejected", ""), failed)]
    for (step, message), keys in expected(recipe, dataset).items():
        assert step in plain and message in plain and any(key in plain for key in keys), (step, message)


def test_every_failure_is_counted_and_named_by_its_own_key(made):
    root, recipe, dataset, counts = made
    failures = gather(recipe, dataset, root=str(root))["failures"]
    wanted = expected(recipe, dataset)
    assert {(f["step"], f["message"]): f["count"] for f in failures} == {k: len(v) for k, v in wanted.items()}
    for failure in failures:
        assert set(failure["examples"]) <= wanted[failure["step"], failure["message"]]
    for step in ("stats", "frames", "inside", "mean"):
        assert sum(f["count"] for f in failures if f["step"] == step) == counts[step]["errors"] > 0
    dark = {key for f in failures if f["step"] == "inside" for key in f["examples"]}
    assert "animated.gif#0000" in dark and all("#" in key for key in dark), "red has a mean of 85"
    (long,) = [f for f in failures if f["message"].startswith("more frames than max_frames")]
    assert (long["step"], long["examples"]) == ("frames", ["long.gif"])


def test_only_rows_that_are_wanted_now_count(made):
    root, _, dataset, counts = made
    steps = {**STEPS, "keep": {"op": "select", "where": "stats.short_side >= 33"}}
    narrow, _ = build(root, steps)
    failures = gather(narrow, dataset, root=str(root))["failures"]
    assert not [f for f in failures if f["step"] == "mean"], "the rows that failed are not selected any more"
    assert sum(f["count"] for f in failures if f["step"] == "stats") == counts["stats"]["errors"]


def test_a_step_that_stopped_shows_its_reasons(tmp_path):
    write_pictures(tmp_path / "pics", 20)
    steps = {"mean": {"op": "toy_ops:Mean", "refuse_below": 60, "execution": {"max_error_rate": 0.1}}}
    recipe, dataset = build(tmp_path, steps)
    with pytest.raises(UserError, match="nextloom report RECIPE shows the reasons"):
        run(recipe, dataset)
    failures = gather(recipe, dataset, root=str(tmp_path))["failures"]
    assert sum(f["count"] for f in failures) == 10 and all("too dark" in f["message"] for f in failures)


def test_a_report_is_a_file_of_this_machine(made):
    _, recipe, dataset, _ = made
    with pytest.raises(UserError, match="cannot write to s3://bucket"):
        write_report(recipe, dataset, root="s3://bucket")
