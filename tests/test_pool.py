"""The worker pool: rows that die, hang, grow or fork cost only themselves; lost workers are replaced; nothing of Ray
reaches the user, or others the local Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from engine import build, contents, plans, run, write_pictures
from nextloom.errors import UserError
from nextloom.op import Execution
from nextloom.pipelines import pool, progress
from nextloom.pipelines.desk import DECODE, FETCH, Desk, Note, load_code
from nextloom.pipelines.keeper import ROW_TIMEOUT, WORKER_DIED, Lost
from nextloom.pipelines.losses import Work, divide
from nextloom.pipelines.worker import Source, Task
from toy_ops import KeyLength, Mean
from toy_trouble import WAYS

TESTS = Path(__file__).parent
DIES = {"exit": "exit code 0", "segfault": "SIGSEGV", "kill": "SIGKILL"}
HANGS = ("loop", "regex", "fifo", "daemon", "close_all", "stop_answering")


def trouble(ways: dict[int, str], op: str = "Trouble", **more) -> dict:
    execution = {"row_seconds": 1.5, "row_memory": 0.2, **more.pop("execution", {})}
    return {"op": f"toy_trouble:{op}", "ways": ways, "execution": execution, **more}


# ---- what becomes of the rows of a lost chunk


def chunk(first: int, last: int, **steps: bool) -> pa.Table:
    ids = list(range(first, last + 1))
    return pa.table({"id": ids, **{name: [wants] * len(ids) for name, wants in steps.items()}})


TASKS = [Task("mean", Mean(), "a"), Task("length", KeyLength(), "b")]


def ids(works: list[Work]) -> list[list[int]]:
    return [work.chunk["id"].to_pylist() for work in works]


def test_a_row_that_overran_is_an_error_and_its_neighbours_are_not():
    note = Note(0, 0.0, 5, 5, 0)
    parts, failed = divide(Work(chunk(1, 9, mean=True, length=True)), Lost(ROW_TIMEOUT, "9 s", (note,)), TASKS)
    assert ids(parts) == [[1, 2, 3, 4], [5], [6, 7, 8, 9]]
    assert parts[1].chunk["mean"].to_pylist() == [False] and parts[1].chunk["length"].to_pylist() == [True]
    assert [(row.step, row.id, row.kind, row.stage) for row in failed] == [("mean", 5, "RowTimeout", "mean")]


def test_a_row_that_killed_its_worker_gets_a_second_try_alone():
    loss = Lost(WORKER_DIED, "SIGSEGV", (Note(0, 0.0, 1, 1, load_code(0, DECODE)),))
    parts, failed = divide(Work(chunk(1, 2, mean=True, length=True)), loss, TASKS)
    assert (ids(parts), failed) == ([[1], [2]], [])
    parts, failed = divide(parts[0], loss, TASKS)
    assert [(row.step, row.stage) for row in failed] == [("mean", "decode")], "the other op looks at no pixels"
    assert ids(parts) == [[1]] and parts[0].chunk["length"].to_pylist() == [True]


def test_nobody_is_blamed_for_company():
    batch = Lost(ROW_TIMEOUT, "9 s", (Note(0, 0.0, 3, 5, 0),))
    threads = Lost(WORKER_DIED, "SIGSEGV", tuple(Note(i, 0.0, i, i, load_code(0, FETCH)) for i in (3, 4, 5)))
    for loss in (batch, threads):
        parts, failed = divide(Work(chunk(1, 9, mean=True)), loss, TASKS)
        assert (ids(parts), failed) == ([[1, 2], [3], [4], [5], [6, 7, 8, 9]], [])


@pytest.mark.parametrize("deadly", [{1}, {7}, {1, 2, 3}, set(range(1, 10))])
@pytest.mark.parametrize("seen", ["row", "batch", "nothing"])
def test_every_row_is_settled_whatever_is_known_of_a_loss(deadly, seen):
    queue, values, errors = [Work(chunk(1, 9, mean=True, length=True))], Counter(), Counter()
    for _ in range(500):
        if not queue:
            break
        work = queue.pop(0)
        rows = work.chunk.to_pylist()
        killer = next((row["id"] for row in rows if row["id"] in deadly and row["mean"]), None)
        if killer is None:
            values.update((row["id"], step) for row in rows for step in ("mean", "length") if row[step])
            continue
        first, last = (killer, killer) if seen == "row" else (rows[0]["id"], rows[-1]["id"])
        notes = () if seen == "nothing" else (Note(0, 0.0, first, last, 0),)
        parts, failed = divide(work, Lost(WORKER_DIED, "SIGKILL", notes), TASKS)
        queue = parts + queue
        errors.update((row.id, row.step) for row in failed)
    assert not queue
    assert errors == Counter((i, "mean") for i in deadly)
    assert values == Counter((i, step) for i in range(1, 10) for step in ("mean", "length")) - errors


def test_a_note_costs_next_to_nothing(tmp_path):
    with open(tmp_path / "desk", "w+b") as file:
        file.truncate(2**16)
        desk, began = Desk(file.fileno()), time.perf_counter()
        for i in range(20_000):
            with desk.at(0, i, i):
                pass
        with desk.at(1, 7, 9):
            assert [(n.code, n.first, n.last) for n in desk.notes()] == [(1, 7, 9)]
        assert desk.notes() == []
    assert (time.perf_counter() - began) / 20_000 < 100e-6, "a few microseconds on a quiet machine"


# ---- on Ray


def test_rows_that_die_hang_and_grow_are_error_rows(tmp_path, ray_local):
    ways = dict(zip(range(1, 40, 3), [*DIES, *HANGS, "grow", "grow_below", "many", "fork"], strict=True))
    assert set(ways.values()) | {"nap", "kill_keeper"} == set(WAYS)
    write_pictures(tmp_path / "pics", 42, size=4)
    steps = {"length": trouble(ways, tell=str(tmp_path / "told")), "mean": {"op": "toy_ops:Mean"}}
    recipe, dataset = build(tmp_path, steps, execution={"workers": 1})
    result = run(recipe, dataset)
    assert result["mean"] == {"rows": 42, "values": 42, "errors": 0, "done": 42}, "another step loses nothing"
    errors = {int(row["key"][1:4]): row["error"] for row in contents(recipe, dataset)["length"] if row["error"]}
    kinds = {ways[number]: error["type"] for number, error in errors.items()}
    assert len(kinds) == len(errors) == 12
    assert {way: kinds[way] for way in DIES} == dict.fromkeys(DIES, "WorkerDied")
    for number, way in ways.items():
        if way in DIES:
            assert DIES[way] in errors[number]["detail"]
            assert errors[number]["message"] == "the row killed its worker twice"
    hung = {way: kinds[way] for way in HANGS if way != "close_all"}
    assert hung == dict.fromkeys(hung, "RowTimeout") and kinds["close_all"] == "WorkerDied"
    for way in ("grow", "grow_below", "many"):
        assert kinds[way] in ("RowMemory", "RowTimeout"), "whichever budget is overrun first"
    assert kinds["grow"] == "RowMemory"
    assert subprocess.run(["pgrep", "-f", "sleep 1000"], capture_output=True).stdout == b"", "nothing is left behind"
    told = Counter(line.split()[1] for line in (tmp_path / "told").read_text().splitlines())
    deaths = sum(2 if kind == "WorkerDied" else 1 for kind in kinds.values())
    assert told["setup"] == deaths + 1, "a model is loaded once per process, also when rows are run apart"


def test_a_keeper_that_is_lost_is_replaced(tmp_path, ray_local):
    write_pictures(tmp_path / "pics", 6, size=4)
    recipe, dataset = build(tmp_path, {"length": trouble({1: "kill_keeper"})}, execution={"chunk_rows": 2})
    assert run(recipe, dataset)["length"] == {"rows": 6, "values": 5, "errors": 1, "done": 6}
    (bad,) = [row for row in contents(recipe, dataset)["length"] if row["error"]]
    assert (bad["key"], bad["error"]["type"]) == ("p001.png", "WorkerDied")


def test_an_op_that_dies_on_every_row_is_stopped(tmp_path, ray_local, monkeypatch):
    monkeypatch.setattr(pool, "JUDGE_AFTER", 5)
    write_pictures(tmp_path / "pics", 20, size=4)
    recipe, dataset = build(tmp_path, {"length": trouble(dict.fromkeys(range(20), "exit"))})
    with pytest.raises(UserError, match=r"6 rows ended their worker and 0 did not: that is the op, not the rows"):
        run(recipe, dataset)
    assert plans(recipe, dataset)["length"].todo == 14, "what was done is kept"


def test_workers_that_die_while_they_are_set_up(tmp_path, ray_local):
    write_pictures(tmp_path / "pics", 2, size=4)
    recipe, dataset = build(tmp_path, {"length": {"op": "toy_trouble:DiesInSetup"}})
    with pytest.raises(UserError, match=r"steps.length: the process dies while the ops are set up: it ended with exit"):
        run(recipe, dataset)


def test_a_refusal_names_the_step_that_asks(tmp_path, ray_local):
    tasks = [
        Task("cheap", Mean(), "a"),
        Task("small", Mean(execution=Execution(num_gpus=0.5)), "b"),
        Task("large", Mean(execution=Execution(num_gpus=2)), "c"),
    ]
    with pytest.raises(
        UserError, match=r"steps.large.execution.num_gpus: 2.5 GPUs .* \(large and small run together\)"
    ):
        pool.WorkerPool(tasks, Source("", ()), 2)


def test_weights_that_are_replaced_while_a_run_goes_on(tmp_path, ray_local):
    write_pictures(tmp_path / "pics", 5, size=4)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"old")
    recipe, dataset = build(tmp_path, {"w": {"op": "toy_trouble:Replaced", "path": str(weights)}})
    with pytest.raises(UserError, match=r"path changed while the run went on; the 5 rows that were done before are ke"):
        run(recipe, dataset)
    assert run(recipe, dataset)["w"]["done"] == 5, "all rows again, with the new ones"
    assert run(recipe, dataset)["w"]["done"] == 0
    weights.write_bytes(b"old")
    assert plans(recipe, dataset)["w"].todo == 0, "the values of the old ones are there"


def test_progress_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    with progress.Progress() as told:
        told.start("stats", 100, 1000)
        time.sleep(0.01)
        told.advance("stats", 90, 3)
        told.finish("stats", {"rows": 1000, "values": 997, "errors": 3})
        told.tick()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  resume stats: 100 of 1,000 rows done, 900 left"
    assert lines[1].startswith("  stats          190 of 1,000 rows, 3 failed, ") and lines[1].endswith(" left")
    assert len(lines) == 3 and "997 values" in lines[2]
    monkeypatch.setattr(progress, "EVERY_SECONDS", 30.0)
    with progress.Progress() as told:
        told.start("stats", 0, 1000)
        told.advance("stats", 90, 3)
    assert capsys.readouterr().err == "", "not more often than that"


# ---- local Ray: who can reach it, and what a user sees


def listening() -> dict[str, str]:
    """Address and port -> command of what this process and all it started listen on."""
    below, found = [os.getpid()], {}
    for pid in below:
        for task in Path(f"/proc/{pid}/task").iterdir():
            below += [int(word) for word in (task / "children").read_text().split() if int(word) not in below]
    sockets = {}
    for pid in below:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith("socket:["):
                sockets[target[8:-1]] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in sockets and (fields[3] == "0A" or table.startswith("udp")):
                found[f"{table} {fields[1]}"] = sockets[fields[9]]
    return found


def test_local_ray_listens_on_the_loopback_address_alone(ray_local):
    ray_local.get(ray_local.remote(lambda: 1).remote())
    found = listening()
    loopback = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")
    assert len(found) >= 5, "the control store, the raylet, workers, agents"
    assert {where: who for where, who in found.items() if not where.split()[1].startswith(loopback)} == {}


def test_local_ray_asks_for_the_token(ray_local):
    code = (
        "import os, sys\n"
        "from ray._raylet import AuthenticationTokenLoader, Config, GcsClient\n"
        "for mode, token in [('disabled', ''), ('token', '0' * 64), ('token', os.environ['RAY_AUTH_TOKEN'])]:\n"
        "    os.environ.update(RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN=token)\n"
        "    Config.initialize('')\n"
        "    AuthenticationTokenLoader.instance().reset_cache()\n"
        "    try: GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None, 5); print('in')\n"
        "    except Exception as error: print(type(error).__name__)\n"
    )
    address = ray_local.get_runtime_context().gcs_address
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["AuthenticationError", "AuthenticationError", "in"], done.stderr[-2000:]


def test_what_a_user_sees_of_a_run_that_is_terminated(tmp_path):
    """In a folder with modules of well-known names, with rows that kill their worker, and an op of the recipe's own."""
    write_pictures(tmp_path / "pics", 30, size=4)
    for name in ("ray", "numpy", "pyarrow", "tokenize", "duckdb", "pickle"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the working directory')\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_ops.py").write_text("from toy_trouble import Trouble as Mine\n__all__ = ['Mine']\n")
    ways = {1: "exit", 2: "kill", **dict.fromkeys(range(8, 30), "nap")}
    steps = {"length": {"op": "my_ops:Mine", "ways": ways, "execution": {"chunk_rows": 4, "workers": 1}}}
    data = {"dataset": "toy", "source": {"op": "files", "path": "pics"}, "steps": steps, "run": {"commit_seconds": 0.1}}
    (tmp_path / "own" / "r.yaml").write_text(json.dumps(data))
    command = [sys.executable, "-m", "nextloom", "run", "own/r.yaml", "--root", str(tmp_path)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        commits = list(tmp_path.glob("datasets/toy/columns/length/*/_delta_log/*.json"))
        if len(commits) >= 4 or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, ""), err
    lines = err.splitlines()
    assert lines[0] == "  source: +30 rows" and lines[-1] == "terminated; run the same command again to go on"
    assert [line.partition(":")[0] for line in lines[1:-1]] == ["WARNING nextloom.pipelines.pool"] * 2, err
    recipe, dataset = build(tmp_path, {**steps, "length": {**steps["length"], "op": "toy_trouble:Trouble"}})
    del recipe
    assert len(dataset.live_rows(["key"])) == 30 and commits


# ---- many deaths, here and through an address: too long for every change

ON_A_CLUSTER = """
import json, os, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
from engine import build, contents, run
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 128 * 2**20})
cluster.add_node(num_cpus=2, object_store_memory=128 * 2**20)
root = Path(sys.argv[1])
recipe, dataset = build(root, **json.loads((root / "r.json").read_text()))
print(json.dumps(run(recipe, dataset, address=cluster.address)["length"]))
os._exit(0)
"""


@pytest.mark.proof
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("where", ["local", "address"])
@pytest.mark.parametrize(("rows", "deaths"), [(292, 20), (292, 200), (600, 200)])
def test_deaths_end_in_error_rows(tmp_path, ray_local, where, rows, deaths):
    ways = {int(i * rows / deaths): list(DIES)[i % 3] for i in range(deaths)}
    write_pictures(tmp_path / "pics", rows, size=4)
    steps = {"steps": {"length": trouble(ways), "mean": {"op": "toy_ops:Mean"}}}
    recipe, dataset = build(tmp_path, **steps)
    began = time.monotonic()
    if where == "local":
        counts = run(recipe, dataset)["length"]
    else:
        (tmp_path / "r.json").write_text(json.dumps(steps))
        code = [sys.executable, "-c", ON_A_CLUSTER, str(tmp_path)]
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(code, capture_output=True, text=True, timeout=2000, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        counts = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{deaths} of {rows} rows kill their worker ({where}): {time.monotonic() - began:.0f} s")
    assert counts == {"rows": rows, "values": rows - deaths, "errors": deaths, "done": rows}
    errors = {int(row["key"][1:4]): row["error"]["type"] for row in contents(recipe, dataset)["length"] if row["error"]}
    assert errors == dict.fromkeys(ways, "WorkerDied")
