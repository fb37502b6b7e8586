"""A driver killed at any point and run again ends with the same columns as one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import build, contents, run, write_pictures
from toy_tokenizers import random_tokenizer

pytestmark = pytest.mark.usefixtures("ray_local")

DATA = {
    "steps": {
        "stats": {"op": "image_stats"},
        "phash": {"op": "perceptual_hash"},
        "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 8},
        "frames": {"op": "gif_frames"},
        "keep": {"op": "select", "where": "stats.brightness > 0.15 and not duplicate.hit"},
        "mean": {"op": "toy_ops:Mean", "rows": "keep", "refuse_below": 60},
        "tokens": {"op": "image_tokens", "rows": "keep", "tokenizer": "tokenizer", "scales": 3},
    },
    "execution": {"chunk_rows": 7},
    "run": {"commit_seconds": 0.001, "workers": 2},
}
RANDOM = random.Random(2601)
POINTS = [
    pytest.param("before_write", "1", marks=pytest.mark.proof),
    pytest.param("committed", "1", marks=pytest.mark.proof),
    ("uncommitted", "4"),
    ("committed", "5"),
    pytest.param("any_time", f"{RANDOM.randint(1, 12)}:{RANDOM.uniform(0, 0.2):.3f}", marks=pytest.mark.proof),
]


def prepare(root: Path) -> Path:
    write_pictures(root / "pics", 60)
    random_tokenizer(0).save(root / "tokenizer")
    (root / "recipe.json").write_text(json.dumps(DATA))
    return root


def without_paths(columns: dict) -> dict:
    return {
        step: [{k: v for k, v in row.items() if k not in ("uri", "version")} for row in rows]
        for step, rows in columns.items()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_local):
    root = prepare(tmp_path_factory.mktemp("undisturbed"))
    recipe, dataset = build(root, **DATA)
    run(recipe, dataset)
    return without_paths(contents(recipe, dataset))


@pytest.mark.parametrize(("point", "number"), POINTS)
def test_killed_and_resumed_equals_undisturbed(tmp_path, undisturbed, point, number):
    root = prepare(tmp_path)
    driver = Path(__file__).with_name("driver.py")
    killed = subprocess.run(
        [sys.executable, driver, root, point, number], check=False, capture_output=True, text=True, timeout=200
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    recipe, dataset = build(root, **DATA)
    counts = run(recipe, dataset)
    columns = without_paths(contents(recipe, dataset))
    for step, rows in columns.items():
        ids = [row["id"] for row in rows]
        assert len(ids) == len(set(ids)), f"{step}: a row twice"
        assert rows == undisturbed[step], step
    if (point, number) == ("committed", "5"):
        assert counts["stats"]["done"] < 60, "what was committed is not done again"
