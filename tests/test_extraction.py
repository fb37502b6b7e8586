"""Extraction beside a GPU: where work is placed, who reads, decodes and resizes, and that the codes stay the same.

There is no GPU here. Ray is told of one, so that placement is real; the arithmetic is the CPU's, under a switch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine import build, contents, run, write_pictures
from nextloom import content, pixels
from nextloom.errors import UserError
from nextloom.op import Row
from nextloom.pipelines import worker
from nextloom.pipelines.plan import Planner
from nextloom.store.files import File, read_files
from nextloom.tokenize.image_tokens import ImageTokens
from nextloom.untrusted import Door
from toy_tokenizers import random_tokenizer

STEPS = {
    "stats": {"op": "image_stats"},
    "tokens": {"op": "image_tokens", "tokenizer": "tokenizer", "scales": 4, "draws": 2},
}
ON_GPU = """
import json, os, sys, ray
ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="error",
         object_store_memory=128 * 2**20)
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from nextloom.pipelines import pool
root = Path(sys.argv[1])
class Placed(pool.Keeper):
    def run(self, chunk):
        try:
            (root / "died").touch(exist_ok=False)
        except FileExistsError:
            out = super().run(chunk)
            held = ray.get_runtime_context().get_assigned_resources()
            seen = os.environ["CUDA_VISIBLE_DEVICES"]
            line = f"{held['CPU']:g} {held['GPU']:g} {ray.get_gpu_ids()} {seen} {os.getpid()}"
            (root / "placed.txt").open("a").write(line + chr(10))
            return out
        os._exit(1)
Placed.__module__ = "__main__"
pool.Keeper = Placed
from engine import build, run
recipe, dataset = build(root, **json.loads(sys.argv[2]))
print(json.dumps([run(recipe, dataset)["tokens"], dataset.receipt("tokens")["waiting"]]))
"""


def prepare(root: Path, count: int) -> None:
    write_pictures(root / "pics", count)
    Image.new("RGB", (90, 10)).save(root / "pics" / "strip.png")
    (root / "pics" / "text.png").write_bytes(b"no picture")
    random_tokenizer(0).save(root / "tokenizer")


def on_gpu(**execution) -> dict:
    return {**STEPS, "tokens": {**STEPS["tokens"], "execution": {"num_gpus": 1, "num_cpus": 2, **execution}}}


def values(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in ("uri", "version")} for row in rows]


@pytest.mark.proof
def test_workers_with_a_gpu_one_of_which_dies_give_the_same_codes_as_those_without(tmp_path, ray_local):
    for name in ("cpu", "gpu"):
        prepare(tmp_path / name, 12)
    recipe, dataset = build(tmp_path / "cpu", STEPS)
    run(recipe, dataset)
    data = {"steps": on_gpu(device="cpu"), "execution": {"chunk_rows": 5}}
    command = [sys.executable, "-c", ON_GPU, tmp_path / "gpu", json.dumps(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    counts, waiting = json.loads(done.stdout.splitlines()[-1])
    assert counts == {"rows": 14, "values": 12, "errors": 2, "done": 14}
    placed = [line.rpartition(" ") for line in (tmp_path / "gpu" / "placed.txt").read_text().splitlines()]
    assert {where for where, _, _ in placed} == {"2 1 [0] 0"}, "it holds 2 CPUs and the GPU, and sees it"
    assert len(placed) == 3 and len({pid for _, _, pid in placed}) == 1, "one GPU, one worker, whatever the CPUs"
    assert "a worker is gone (ActorDiedError); what it had is run again" in done.stderr
    assert 0 < waiting < 1
    gpu_recipe, gpu_dataset = build(tmp_path / "gpu", **data)
    expected, found = contents(recipe, dataset), contents(gpu_recipe, gpu_dataset)
    assert values(found["tokens"]) == values(expected["tokens"])
    assert values(found["stats"]) == values(expected["stats"])


def test_without_a_gpu_the_step_is_refused_and_the_switch_is_named_nowhere_else(tmp_path):
    prepare(tmp_path, 1)
    recipe, _ = build(tmp_path, on_gpu())
    with pytest.raises(UserError, match=r"execution\.num_gpus: a GPU is asked for, but torch .* sees none"):
        worker.Task("tokens", recipe.steps["tokens"], "nowhere").setup()
    assert recipe.steps["tokens"].identity() == build(tmp_path, STEPS)[0].steps["tokens"].identity()


def test_many_threads_are_kept_busy_and_pixels_go_once_they_are_resized(tmp_path, monkeypatch):
    prepare(tmp_path, 20)
    alone = {k: v for k, v in on_gpu(num_cpus=6, device="cpu").items() if k == "tokens"}
    made, chunk, uri = _worker(tmp_path, alone)
    flying, most, seen = 0, 0, []
    original = worker.Worker._run

    def watched(self, task, rows):
        seen.extend((row.pixels, row.prepared.keys()) for row in rows)
        return original(self, task, rows)

    decode = pixels.decode

    def decoded(*args):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        try:
            time.sleep(0.02)
            return decode(*args)
        finally:
            flying -= 1

    monkeypatch.setattr(worker.Worker, "_run", watched)
    monkeypatch.setattr(worker.pixels, "decode", decoded)
    (record,) = made(chunk).to_pylist()
    assert (record["rows"], record["errors"]) == (22, 2)
    assert most >= 4, "six readers, and not one row at a time"
    assert len(seen) == 22 and all(not kept for kept, _ in seen)
    file = File(**{name: record[name] for name in File.__dataclass_fields__})
    by_id = {row["id"]: row for row in read_files(uri, [file]).to_pylist()}
    op = ImageTokens(tokenizer=str(tmp_path / "tokenizer"), scales=4, draws=2)
    op.setup()
    rgb = np.asarray(Image.open(tmp_path / "pics" / "p003.png"))
    want = op.measure(Row(3, "p003.png", pixels=rgb))
    assert {name: by_id[3][name] for name in want} == want
    kinds = {row["error"]["stage"]: row["error"]["type"] for row in by_id.values() if row["error"]}
    assert kinds == {"tokens": "TooElongated", "decode": "NotAPicture"}


def test_reading_threads_share_an_opened_shard(tmp_path, monkeypatch):
    cells, opened = [bytes([i % 251]) * 50 for i in range(400)], []
    for name in ("a", "b"):
        pq.write_table(pa.table({"jpg": cells}), tmp_path / f"{name}.parquet", row_group_size=100)
    monkeypatch.setattr(content, "_Cells", lambda *args, make=content._Cells: opened.append(args) or make(*args))
    door, place = Door(["/"]), {name: str(tmp_path / f"{name}.parquet") for name in ("a", "b")}
    rows = [
        {"uri": uri, "member": f"jpg#{i}", "version": door.open(uri).stamp}
        for uri in place.values()
        for i in range(len(cells))
    ]
    shared = content.Content(door)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(shared.fetch, rows)) == cells * 2
    assert len(opened) < 8, "not once per thread"


def _worker(root: Path, steps: dict):
    """A worker of one step as a pass would build it, the chunk with all rows, and where it writes."""
    recipe, dataset = build(root, steps)
    with dataset.lease("test"):
        planner = Planner(recipe, dataset)
        planner.sync()
        (step,) = planner.graph
        planner.judge(step)
        uri = planner.table(step.name).uri
        made = worker.Worker(
            [worker.Task(step.name, step.op, uri)],
            worker.Source(dataset.rows.uri, tuple(dataset.rows.files()), recipe.source.door()),
        )
        ids = dataset.live_rows([])["id"]
    return made, pa.table({"id": ids, step.name: [True] * len(ids)}), uri
