"""What takes too long for every change: ten thousand pictures through extraction, killed again and again.

make proofs            PROOF_PICTURES=1000 make proofs for a smaller one
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import build, contents, run, write_pictures
from toy_tokenizers import random_tokenizer

pytestmark = [pytest.mark.proof, pytest.mark.timeout(3000), pytest.mark.usefixtures("ray_local")]

COUNT = int(os.environ.get("PROOF_PICTURES", "10000"))
KILLS = 6
STEPS = {
    "stats": {"op": "image_stats"},
    "keep": {"op": "select", "where": "stats.brightness > 0.1"},
    "tokens": {"op": "image_tokens", "rows": "keep", "tokenizer": "tokenizer", "scales": 5, "draws": 2, "clean": True},
}


def data(chunk: int) -> dict:
    return {"steps": STEPS, "execution": {"chunk_rows": chunk}, "run": {"commit_seconds": 0.5, "workers": 2}}


def prepare(root: Path, chunk: int) -> tuple:
    write_pictures(root / "pics", COUNT)
    random_tokenizer(0).save(root / "tokenizer")
    (root / "recipe.json").write_text(json.dumps(data(chunk)))
    return build(root, **data(chunk))


def columns(recipe, dataset) -> dict:
    out = contents(recipe, dataset)
    return {
        step: [{k: v for k, v in row.items() if k not in ("uri", "version")} for row in out[step]] for step in STEPS
    }


def test_killed_extraction_of_ten_thousand_pictures_gives_the_same_indices(tmp_path):
    recipe, dataset = prepare(tmp_path / "killed", 64)
    driver, rng, killed = Path(__file__).with_name("driver.py"), random.Random(10_000), 0
    for _ in range(KILLS):
        point = f"{rng.randint(1, 6)}:{rng.uniform(0, 3):.2f}"
        command = [sys.executable, driver, tmp_path / "killed", "any_time", point]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=1500)
        if ended.returncode != -signal.SIGKILL:
            assert "the run ended before it was killed" in ended.stderr, ended.stderr[-2000:]
            break
        killed += 1
    assert killed >= 2, "small sets are done before they are killed: raise PROOF_PICTURES"
    run(recipe, dataset)
    disturbed = columns(recipe, dataset)
    assert len(disturbed["tokens"]) > 0.5 * COUNT
    assert len({row["id"] for row in disturbed["tokens"]}) == len(disturbed["tokens"])
    for chunk in (64, 301):
        recipe, dataset = prepare(tmp_path / f"alone{chunk}", chunk)
        run(recipe, dataset)
        assert columns(recipe, dataset) == disturbed, f"undisturbed, {chunk} rows a chunk"
    print(
        f"\n{COUNT} pictures, {killed} kills: {len(disturbed['tokens'])} rows of tokens equal those of two other runs"
    )
