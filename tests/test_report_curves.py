"""Curves of trainings in the report: every figure over its steps, spikes kept, odd lines told, nothing trusted."""

from __future__ import annotations

import json
import math
from pathlib import Path

from PIL import Image

from nextloom.pipelines.report import curves, runs


def logged(folder: Path, lines: list, name: str = "toy") -> Path:
    place = folder / f"{name}.run"
    place.mkdir(parents=True)
    (place / curves.METRICS).write_text("".join(t if isinstance(t, str) else json.dumps(t) + "\n" for t in lines))
    return place


def line(step: int, **values) -> dict:
    return {"step": step, "loss": 4.0 / step, "lr": 0.001, **values}


def test_a_training_shows_its_figures_over_steps(tmp_path):
    steps = [line(s, **({"held_psnr": 10.0 + s} if s % 50 == 0 else {})) for s in range(1, 201)]
    place = logged(tmp_path, [{"event": "start", "step": 0}, *steps])
    (place / "receipt.json").write_text(json.dumps({"summary": {"steps": 200, "last_loss": 0.02}}))
    (run,) = runs.runs(tmp_path)
    assert (run["name"], run["state"]) == ("toy", "") and run["values"] == {"steps": 200, "last_loss": "0.02"}
    assert [c["name"] for c in run["curves"]] == ["loss", "held_psnr", "lr"], "the loss, what is judged, the rest"
    loss, psnr, lr = run["curves"]
    assert (loss["last"], loss["log"]) == ("0.02", True) and [t["text"] for t in loss["x"]] == ["1", "100", "200"]
    first, last = (tuple(map(float, p.split(","))) for p in (loss["points"].split()[0], loss["points"].split()[-1]))
    assert first == (0, 0) and last == (curves.WIDTH, curves.HEIGHT), "from the top left to the bottom right"
    assert [x for x, _ in psnr["dots"]] == [0, 100, 200, 300] and [t["text"] for t in psnr["y"]] == ["210", "135", "60"]
    assert {y for _, y in (p.split(",") for p in lr["points"].split())} == {f"{curves.HEIGHT / 2:g}"}, "flat"


def test_a_spike_of_one_step_is_seen_in_a_long_training(tmp_path):
    values = [(s, 900.0 if s == 54_321 else 1.0 + s % 7) for s in range(1, 100_001)]
    (chart,) = curves.curves([{"step": s, "loss": v} for s, v in values])
    points = [tuple(map(float, p.split(","))) for p in chart["points"].split()]
    assert len(points) <= curves.POINTS and sum(y == 0 for _, y in points) == 1
    assert next(t for t in chart["y"])["text"] == "900"


def test_lines_that_are_cut_odd_or_not_finite_cost_nothing_but_themselves(tmp_path):
    odd = ['{"step": 3, "lo\n', "[]\n", '{"step": "x"}\n', '{"loss": 2}\n', "\x00\n", '{"step": 4, "loss": NaN}\n']
    odd += ['{"step": 5, "loss": Infinity, "note": "<b>", "ok": true}\n', json.dumps(line(2, loss=7.0)) + "\n"]
    logged(tmp_path, [line(1), line(2), *odd])
    (run,) = runs.runs(tmp_path)
    assert run["state"] == f"not finished: at step 5; 5 lines of {curves.METRICS} cannot be read"
    loss = run["curves"][0]
    assert loss["dropped"] == 2 and loss["last"] == "7", "a repeated step: the last line counts"
    assert {c["name"] for c in run["curves"]} == {"loss", "lr"}
    assert not any(math.isnan(float(n)) for c in run["curves"] for p in c["points"].split() for n in p.split(","))


def test_broken_documents_and_large_pictures(tmp_path):
    place = logged(tmp_path, [line(1)])
    (place / "receipt.json").write_text("{half")
    Image.effect_noise((3000, 900), 90).convert("RGB").save(place / "grid.png")
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings" / "summary.json").write_text(json.dumps({"drawings": 8, "own": 0.123456}))
    found = {run["name"]: run for run in runs.runs(tmp_path)}
    assert found["toy"]["state"] == "receipt.json cannot be read" and len(found["toy"]["curves"]) == 2
    assert found["toy"]["picture"].startswith("data:image/webp") and len(found["toy"]["picture"]) < 1_000_000
    assert found["drawings"]["values"] == {"drawings": 8, "own": "0.1235"} and found["drawings"]["curves"] == []
