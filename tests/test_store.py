"""The store: the lease, commits, releases that outlive what comes after them, exact reading by id."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from nextloom.curation.sources.source import Item, Source, item_table
from nextloom.documents import Folder
from nextloom.op import ERROR, MAX_CHILDREN, child_id
from nextloom.store.dataset import Dataset
from nextloom.store.files import File, read_files, take_ids, windows, write_file
from nextloom.store.lease import Lease, LeaseHeld, LeaseLost
from nextloom.store.listing import Changes
from nextloom.store.release import Release, open_release, publish
from nextloom.store.rowset import describe, source_rows
from nextloom.store.table import Table

SCHEMA = pa.schema([("id", pa.int64()), ("value", pa.float64()), ("error", ERROR)])
HOLD = """
import sys, time
from nextloom.store.dataset import Dataset
with Dataset(sys.argv[1]).lease("nextloom run holder.yaml"):
    print("held", flush=True)
    time.sleep(120)
"""


class Two(Source):
    """Two objects."""

    name = "two"

    def items(self, unit, known):
        return item_table(Item(key, f"/{key}", 1, "1") for key in "ab")


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids), "value": [float(i) for i in ids], "error": [None] * len(ids)}, schema=SCHEMA)


def test_second_writer_is_refused_and_a_dead_one_taken_over(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, dataset.uri], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LeaseHeld, match=rf"process {holder.pid} .*nextloom run holder.yaml"), dataset.lease("x"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with dataset.lease("nextloom run second.yaml") as lease:
            lease.check()
    finally:
        holder.kill()
        holder.wait()


def test_an_overtaken_writer_cannot_commit(tmp_path, monkeypatch):
    dataset = Dataset(str(tmp_path / "d"))
    table = Table(str(tmp_path / "d" / "columns" / "s" / "f"), dataset.guard)
    with dataset.lease("slow"):
        table.commit(SCHEMA, [write_file(table.uri, rows(1))])
        monkeypatch.setattr("nextloom.store.lease.is_dead", lambda document: True)
        with Lease(Folder(dataset.uri), "fast"), pytest.raises(LeaseLost, match="epoch 2 took over from epoch 1"):
            table.commit(SCHEMA, [write_file(table.uri, rows(2))])
    assert read_files(table.uri, table.files())["id"].to_pylist() == [1]


def test_of_many_candidates_one_gets_the_lease(tmp_path):
    code = HOLD.replace("time.sleep(120)", "sys.stdin.read()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "d")], **pipes) for _ in range(4)]
    deadline = time.monotonic() + 60
    while sum(process.poll() is None for process in started) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)  # the one that holds it goes on until its stdin ends
    outputs = [process.communicate(timeout=60) for process in started]
    assert sum(out == "held\n" for out, _ in outputs) == 1
    assert sum("LeaseHeld" in err for _, err in outputs) == 3


def test_release_stays_readable_after_300_commits_and_old_log_entries(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    with dataset.lease("test"):
        Changes(dataset, Two()).apply()
        table = dataset.column("score", "f1")
        table.commit(SCHEMA, [write_file(table.uri, rows(0, 1))])
        version = table.version()
        rows_table = dataset.rows
        selection = source_rows(dataset).as_dict(dataset.uri)
        score = describe(table.uri, dataset.uri, table.files())
        content = {
            "dataset": "d",
            "content": "of two rows",
            "rows_count": 2,
            "selection": selection,
            "rows": describe(rows_table.uri, dataset.uri, rows_table.files()),
            "columns": {"score": {**score, "fingerprint": "f1", "failed": ""}},
        }
        made, new = publish(dataset, "r", content)
        assert new and publish(dataset, "r", content)[1] is False
        old = time.time() - 40 * 86400
        for number in range(300):
            replaced = table.files() if number % 50 == 0 else []
            table.commit(SCHEMA, [write_file(table.uri, rows(number + 2))], replaced)
            if number == 150:
                for entry in (tmp_path / "d/columns/score/f1/_delta_log").iterdir():
                    os.utime(entry, (old, old))
                DeltaTable(table.uri).create_checkpoint()
        DeltaTable(table.uri).cleanup_metadata()
    release = open_release(dataset.uri, "r")
    assert release.name == made.name == "r-0001"
    assert release.column("score", ["value"])["value"].to_pylist() == [0.0, 1.0]
    assert release.rows()["key"].to_pylist() == ["a", "b"]
    assert DeltaTable(table.uri, version=version).get_add_actions().num_rows == 1
    moved = tmp_path / "elsewhere"
    os.rename(tmp_path / "d", moved)
    assert Release(str(moved), release.document).column("score")["id"].to_pylist() == [0, 1]


def test_without_our_settings_delta_forgets(tmp_path):
    """The control of the test above: the default log clean-up does delete old versions."""
    uri = str(tmp_path / "t")
    DeltaTable.create(uri, SCHEMA)
    table = Table(uri)
    for number in range(30):
        table.commit(SCHEMA, [write_file(uri, rows(number))])
    old = time.time() - 40 * 86400
    for entry in (tmp_path / "t/_delta_log").iterdir():
        os.utime(entry, (old, old))
    DeltaTable(uri).create_checkpoint()
    DeltaTable(uri).cleanup_metadata()
    with pytest.raises(Exception, match=r"(?i)version|log|not found"):
        DeltaTable(uri, version=3)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50)), max_size=12), st.integers(1, 60))
def test_windows_cover_every_file_once(spans, size):
    files = [File(f"f{i}", 1, n, 0, low, low + n - 1) for i, (low, n) in enumerate(spans)]
    ranges = list(windows(files, size))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))
    for file in files:
        assert sum(low <= file.min_id and file.max_id <= high for low, high in ranges) == 1


def test_take_ids_keeps_order_and_refuses_absent(tmp_path):
    uri = str(tmp_path / "t")
    files = [write_file(uri, rows(5, 1, 3)), write_file(uri, rows(10, 8))]
    assert take_ids(uri, files, np.array([8, 3, 10]))["value"].to_pylist() == [8.0, 3.0, 10.0]
    assert read_files(uri, files, low=3, high=8)["id"].to_pylist() == [3, 5, 8]
    with pytest.raises(LookupError, match="1 of 2 ids are absent, the first is 4"):
        take_ids(uri, files, np.array([3, 4]))


def test_child_ids():
    assert child_id(7, 3) == 7 * 4096 + 3
    with pytest.raises(OverflowError, match="at most 4095 children"):
        child_id(7, MAX_CHILDREN + 1)
    with pytest.raises(OverflowError, match="63 bits"):
        child_id(2**52, 0)
