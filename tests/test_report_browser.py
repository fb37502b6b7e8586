"""The report in headless Chromium: a dragged threshold moves counts and thumbnails, and nothing else is loaded or run.

What the page counts is compared with the verdicts of a recipe whose threshold really is where it was dragged to.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import toy_report
from engine import build, contents, run
from nextloom.hashing import hash64
from nextloom.pipelines.report import thresholds, write_report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on PATH: apt-get install chromium, or set CHROMIUM"),
]

WHERE = "stats.width >= {width} and stats.brightness between 0.2 and 0.7 and not duplicate.hit"
HOSTILE = '<img src=x onerror="window.hurt=1"></script><script>window.hurt=1</script>'


def steps(width: int) -> dict:
    return {
        "stats": {"op": "image_stats"},
        "phash": {"op": "perceptual_hash"},
        "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 0},
        "keep": {"op": "select", "where": WHERE.format(width=width)},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_local):
    """(root, recipe, dataset, rows by step) of a run over toy pictures, some with hostile names."""
    root = tmp_path_factory.mktemp("browser")
    toy_report.write(root / "pics")
    for number in (1, 62):
        name = root / "pics" / toy_report.FOLDERS[number % 2] / f"{toy_report.SUBJECTS[number % 3]}{number:03d}.png"
        hurtful = name.parent / (HOSTILE + name.name)
        hurtful.parent.mkdir(parents=True, exist_ok=True)
        name.rename(hurtful)
    recipe, dataset = build(root, steps(60))
    run(recipe, dataset)
    return root, recipe, dataset, contents(recipe, dataset)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """An empty page; at the end, nothing was asked of a network, and nothing was wrong."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append("dialog"))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    yield page
    page.close()
    assert wrong == []


def open_report(page, recipe, dataset, root) -> Path:
    path = Path(write_report(recipe, dataset, root=str(root)))
    assert path.stat().st_size < 10_000_000
    page.goto(path.as_uri())
    return path


def number(page, selector: str) -> int:
    return int(re.sub(r"[≈,\s]", "", page.locator(selector).first.text_content()))


def settle(page) -> None:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def keys(page, column: str, side: str) -> list[str]:
    """Keys of the pictures on one side of a column's first threshold, the nearest first."""
    threshold = page.locator(f'[data-column="{column}"] .threshold').first
    return threshold.locator(f".side.{side} img").evaluate_all("images => images.map(i => i.alt)")


def nearest(rows, threshold: int, *, passes: bool) -> list[int]:
    """Widths next to a threshold."""
    widths = [r["width"] for r in rows["stats"] if not r["error"] and (r["width"] >= threshold) == passes]
    return sorted(widths, key=lambda w: abs(w - threshold))[: thresholds.NEAREST]


def width_of(rows) -> dict[str, int]:
    return {r["key"]: r["width"] for r in rows["stats"]}


def test_counts_and_pictures_follow_a_dragged_threshold(made, page):
    root, recipe, dataset, rows = made
    open_report(page, recipe, dataset, root)
    kept = sum(r["verdict"] == "kept" for r in rows["keep"])
    assert number(page, "[data-live=kept]") == kept
    before = keys(page, "stats.width", "in"), keys(page, "stats.width", "out")
    chart = page.locator('[data-column="stats.width"] svg')
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    line = page.locator('[data-column="stats.width"] line')
    x = box["x"] + float(line.get_attribute("x1")) / 1000 * box["width"]
    page.mouse.move(x, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(x + 60, box["y"] + 50)
    page.mouse.move(x + 200, box["y"] + 50)
    page.mouse.up()
    settle(page)
    moved = int(page.locator('[data-column="stats.width"] input[type=number]').input_value())
    assert moved > 65
    real, _ = build(root, steps(moved))
    counts = run(real, dataset)["keep"]
    lines = contents(real, dataset)["keep"]
    try:
        assert number(page, "[data-live=kept]") == counts["kept"] < kept
        first = sum((r["reason"] or "").startswith("stats.width") for r in lines)
        fails = sum(any(rule.startswith("stats.width") for rule in json.loads(r["rules"] or "[]")) for r in lines)
        assert number(page, "[data-rule='0'] [data-cell=first]") == first
        assert number(page, "[data-rule='0'] [data-cell=fails]") == fails
        assert number(page, "[data-rule='2'] [data-cell=after]") == counts["kept"]
    finally:
        run(recipe, dataset)
    for side, passes, was in (("in", True, before[0]), ("out", False, before[1])):
        shown = keys(page, "stats.width", side)
        assert [width_of(rows)[key] for key in shown] == nearest(rows, moved, passes=passes)
        assert shown != was
    assert WHERE.format(width=moved) in page.locator(".where").text_content()
    page.get_by_role("button", name="Reset").click()
    assert number(page, "[data-live=kept]") == kept
    assert (keys(page, "stats.width", "in"), keys(page, "stats.width", "out")) == before


def test_copies_are_elected_anew_where_a_threshold_is_moved(made, page):
    """What the page counts with `distinct` is what a run with the moved threshold decides."""
    root, _, dataset, _ = made

    def recipe_at(width: int):
        rule = {"op": "select", "where": f"stats.width >= {width} and stats.width < 100"}
        group = {"distinct": "duplicate.group", "best": "stats.width asc"}
        return build(root, {**steps(60), "one": {**rule, **group}})[0]

    run(recipe_at(60), dataset)
    open_report(page, recipe_at(60), dataset, root)
    one = page.locator("section.select[data-step=one]")
    for width in (20, 24, 25):  # the copies are 20 and 24 wide: both kept once, one of them, none
        one.get_by_role("spinbutton", name="stats.width >=").fill(str(width))
        settle(page)
        real = run(recipe_at(width), dataset)["one"]["kept"]
        assert number(page, "section.select[data-step=one] [data-live=kept]") == real
        copies = [r for r in contents(recipe_at(width), dataset)["one"] if r["reason"] == "distinct duplicate.group"]
        assert number(page, "section.select[data-step=one] [data-rule='2'] [data-cell=fails]") == len(copies)
        assert len(copies) == {20: 2, 24: 1, 25: 0}[width]
    assert f"stats.width >= {width} and stats.width < 100" in one.locator(".where").text_content()
    assert "distinct" not in one.locator(".where").text_content()


def test_slider_and_number_work_from_the_keyboard(made, page):
    root, recipe, dataset, rows = made
    open_report(page, recipe, dataset, root)
    slider = page.get_by_role("slider", name="stats.width >=")
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    settle(page)
    field = page.get_by_role("spinbutton", name="stats.width >=")
    assert field.input_value() == slider.get_attribute("aria-valuetext") == "65"
    assert [width_of(rows)[key] for key in keys(page, "stats.width", "in")] == nearest(rows, 65, passes=True)
    field.fill("1000")
    settle(page)
    assert number(page, "[data-live=kept]") == 0 and field.input_value() == "1000"
    assert "no picture here" in page.locator('[data-column="stats.width"] .side.in').text_content()
    field.fill("")
    settle(page)
    assert number(page, "[data-live=kept]") == 0, "no number moves nothing"


def test_a_sample_is_scaled_and_says_so(made, page, monkeypatch):
    root, recipe, dataset, rows = made
    monkeypatch.setattr(thresholds, "SAMPLE", 50)
    open_report(page, recipe, dataset, root)
    verdict = {r["id"]: r["verdict"] for r in rows["keep"]}
    kept, judged = list(verdict.values()).count("kept"), len(verdict) - 1
    assert number(page, "[data-live=kept]") == kept and "≈" not in page.locator("[data-live=kept]").text_content()
    page.get_by_role("spinbutton", name="stats.width >=").fill("90")
    settle(page)
    ids = np.array([i for i, v in verdict.items() if v != "failed"])
    sample = set(ids[np.argsort(hash64(ids, "report"))][:50].tolist())
    lost = sum(r["id"] in sample and verdict[r["id"]] == "kept" and r["width"] < 90 for r in rows["stats"])
    assert lost and number(page, "[data-live=kept]") == round(kept - lost * judged / 50)
    assert "≈" in page.locator("[data-live=kept]").text_content()
    assert f"a sample of 50 of {judged} rows" in page.locator("section.select").text_content()


def test_hostile_names_are_text(made, page):
    root, recipe, dataset, rows = made
    path = open_report(page, recipe, dataset, root)
    assert sum("window.hurt" in r["key"] for r in rows["keep"]) == 2
    assert path.read_text(encoding="utf-8").count("window.hurt") >= 2
    for threshold in ("21", "82"):
        page.get_by_role("spinbutton", name="stats.width >=").fill(threshold)
        settle(page)
        shown = keys(page, "stats.width", "in") + keys(page, "stats.width", "out")
        assert any("<img src=x onerror" in key for key in shown)
    assert page.evaluate("window.hurt") is None
    assert page.locator("img[src='x'], script:not([type])").count() == 1, "the page's own script alone"
    sheets = page.locator("[data-sheet] img").evaluate_all("images => images.map(i => [i.alt, i.naturalWidth])")
    assert any("<img src=x onerror" in key for key, _ in sheets) and all(width > 0 for _, width in sheets)


def test_the_policy_stops_what_escaping_would_let_through(made, browser):
    root, recipe, dataset, _ = made
    path = Path(write_report(recipe, dataset, root=str(root)))
    text = path.read_text(encoding="utf-8").replace("<main>", f"<main>{HOSTILE}<img src='http://x.invalid/a.png'>")
    broken = path.with_name("broken.html")
    broken.write_text(text, encoding="utf-8")
    page, asked = browser.new_page(), []
    page.route("http://**", lambda route: (asked.append(route.request.url), route.abort()))
    page.goto(broken.as_uri())
    assert (page.evaluate("window.hurt"), asked) == (None, [])
    assert number(page, "[data-live=kept]") > 0, "the page itself still works"
    page.close()


def test_it_prints_and_fits_a_phone_in_the_dark(made, browser):
    root, recipe, dataset, _ = made
    path = Path(write_report(recipe, dataset, root=str(root)))
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 150
    page.emulate_media(media="print", color_scheme="light")
    assert not page.get_by_role("slider", name="stats.width >=").is_visible()
    assert page.pdf()[:4] == b"%PDF"
    page.close()


def test_an_empty_dataset_opens(tmp_path, page):
    (tmp_path / "pics").mkdir()
    recipe, dataset = build(tmp_path, steps(60))
    run(recipe, dataset)
    open_report(page, recipe, dataset, tmp_path)
    assert "No row failed." in page.locator("main").text_content()
