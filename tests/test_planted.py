"""Planted defects in real pictures: what each scorer finds, misses and calls by mistake."""

from __future__ import annotations

import pytest

from engine import build, contents, run
from planted import plant

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = {
    "stats": {"op": "image_stats"},
    "quality": {"op": "quality"},
    "words": {"op": "text_area"},
    "phash": {"op": "perceptual_hash"},
    "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 6},
}
RULES = {
    "blurred": ("sharpness < 60, not dark", lambda r: r["stats"]["sharpness"] < 60 and r["stats"]["brightness"] > 0.12),
    "noisy": (
        "quality > 52, sharp, no text",
        lambda r: r["quality"]["score"] > 52 and r["stats"]["sharpness"] > 2000 and r["words"]["share"] < 0.3,
    ),
    "dark": ("brightness < 0.12", lambda r: r["stats"]["brightness"] < 0.12),
    "framed": ("border > 0.1", lambda r: r["stats"]["border"] > 0.1),
    "texts": ("text share > 0.3", lambda r: r["words"]["share"] > 0.3),
    "copies": ("near duplicate, 6 bits", lambda r: r["duplicate"]["hit"]),
}
MISTAKES = {"noisy": {"recompressed2.jpg"}, "copies": {"texts1.jpg"}}
"""A copy at JPEG quality 40 of fine foliage: its blocks are noise to BRISQUE, and not to the eye's first look. And one
of two photographs that the same lines of text cover: 4 bits apart, and alike in colour."""


def test_what_is_found_missed_and_called_by_mistake(tmp_path):
    truth = plant(tmp_path / "pics")
    recipe, dataset = build(tmp_path, STEPS)
    result = run(recipe, dataset)
    rows: dict[str, dict] = {}
    broken = set()
    for step, values in contents(recipe, dataset).items():
        for row in values:
            if row["error"]:
                broken.add(row["key"])
            else:
                rows.setdefault(row["key"], {})[step] = row
    assert broken == truth["broken"], "a cut file fails everywhere, and no other does"
    assert all(counts["values"] + counts["errors"] == counts["rows"] for counts in result.values())
    print("\ndefect    rule                         planted  found  missed  false")
    figures = {}
    for defect, (text, rule) in RULES.items():
        called = {key for key, row in rows.items() if rule(row)}
        found, missed, false = called & truth[defect], truth[defect] - called, called - truth[defect]
        figures[defect] = (found, missed, false)
        print(f"{defect:<10}{text:<29}{len(truth[defect]):>7}{len(found):>7}{len(missed):>8}{len(false):>7}", *false)
    print(f"{'broken':<10}{'does not decode':<29}{len(truth['broken']):>7}{len(broken):>7}{0:>8}{0:>7}")
    for defect, (found, missed, false) in figures.items():
        assert (found, missed, false) == (truth[defect], set(), MISTAKES.get(defect, set())), defect
