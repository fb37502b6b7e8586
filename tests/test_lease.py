"""The writer's lease when clocks, answers and writers go wrong: nothing is committed twice, nobody is robbed."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from nextloom.documents import Folder
from nextloom.errors import Damaged, UserError
from nextloom.op import ERROR
from nextloom.store import table as module
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files, write_file
from nextloom.store.lease import Lease, LeaseHeld, LeaseLost, describe_holder, holder, unlock
from nextloom.store.table import Overtaken

SCHEMA = pa.schema([("id", pa.int64()), ("value", pa.float64()), ("error", ERROR)])


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids), "value": [float(i) for i in ids], "error": [None] * len(ids)}, schema=SCHEMA)


def ids(table) -> list[int]:
    return read_files(table.uri, table.files())["id"].to_pylist()


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return Dataset(str(tmp_path / "d"))


def held_elsewhere(dataset: Dataset, **changed) -> None:
    """A lease as a writer on another machine leaves it."""
    now = time.time()
    document = {"epoch": 1, "host": "far/pid:[1]", "pid": 4711, "started": "1", "purpose": "nextloom run x.yaml"}
    document |= {"since": now, "beat": now, "released": False, **changed}
    Folder(dataset.uri).write("lease/000000001.json", document)


@pytest.mark.parametrize("ahead", [61, 3600, 1e9, float("inf"), float("nan")])
def test_a_heartbeat_from_the_future_is_stale(dataset, ahead):
    """before: such a lease was held until its clock was reached."""
    held_elsewhere(dataset, beat=time.time() + ahead)
    if ahead > 1e10:
        assert "who writes is not known" in describe_holder(dataset.documents)
        return
    with dataset.lease("next"):
        assert holder(dataset.documents)["epoch"] == 2


@pytest.mark.parametrize("ahead", [-50, 0, 50])
def test_clocks_may_differ_a_little(dataset, ahead):
    held_elsewhere(dataset, beat=time.time() + ahead)
    with pytest.raises(LeaseHeld) as held, dataset.lease("next"):
        pass
    told = str(held.value)
    assert "a process on far (nextloom run x.yaml)" in told and "stop it on far" in told
    assert "4711" not in told and "kill" not in told, "a pid of another machine may be anything here"
    assert "nextloom unlock RECIPE --yes" in told


def test_another_container_of_this_host_has_no_pid_either(dataset):
    held_elsewhere(dataset, host=f"{socket.gethostname()}/pid:[1]")
    with pytest.raises(LeaseHeld, match=r"\(another container\)") as held, dataset.lease("next"):
        pass
    assert "4711" not in str(held.value)


def test_a_holder_of_this_host_is_named_by_its_process(dataset):
    with dataset.lease("here"):
        with pytest.raises(LeaseHeld, match=rf"next: wait for it, or stop it: kill {os.getpid()}"), dataset.lease("x"):
            pass
        with pytest.raises(LeaseHeld, match=r"which lives\n  next: stop it: kill"):
            unlock(dataset.documents)


def test_unlock_takes_the_lease_from_another_machine(dataset):
    held_elsewhere(dataset)
    unlock(dataset.documents)
    assert describe_holder(dataset.documents) == ""
    with dataset.lease("next"):
        assert holder(dataset.documents)["epoch"] == 3


@pytest.mark.parametrize("text", ["", "\0" * 40, "{", "[]", "5", '{"epoch": 1}', '{"epoch": 1e999}'])
def test_a_lease_that_cannot_be_read_is_told_and_can_be_unlocked(dataset, text):
    held_elsewhere(dataset)
    Path(dataset.uri, "lease/000000001.json").write_text(text)
    with pytest.raises(Damaged, match=r"000000001.json: .*who writes is not known\n.*unlock RECIPE --yes"):
        dataset.lease("next").__enter__()
    unlock(dataset.documents)
    with dataset.lease("next"):
        pass


@pytest.mark.parametrize("field", ["pid", "beat", "since", "started", "host", "purpose", "released"])
@pytest.mark.parametrize("value", [None, -1, 10**30, [], {}, "../../x", "\x1b[2J"])
def test_absurd_fields_of_a_lease_raise_nothing_but_user_errors(dataset, field, value):
    held_elsewhere(dataset, **{field: value})
    try:
        with dataset.lease("next"):
            pass
    except UserError as refused:
        assert "\n  next: " in str(refused)


# ---- commits


def lost_answer(monkeypatch, times: int, error: type[Exception] = OSError):
    """The first `times` commits succeed and raise."""
    original, left = DeltaTable.create_write_transaction, [times]

    def commit(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if left[0]:
            left[0] -= 1
            raise error("connection reset while waiting for the answer")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", commit)
    monkeypatch.setattr(module, "PAUSE", 0.0)


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_commit_whose_answer_is_lost_is_not_made_again(dataset, monkeypatch, error):
    """before: it was told as failed, and a run committed the same rows again."""
    table = dataset.column("s", "f")
    with dataset.lease("w"):
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(1))])
        lost_answer(monkeypatch, 1, error)
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(2))])
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(3))])
    assert ids(table) == [1, 2, 3] and table.version() == 3


def test_a_commit_that_failed_once_is_made_again(dataset, monkeypatch):
    original, calls = DeltaTable.create_write_transaction, []

    def commit(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise OSError("connection reset before the request went out")
        original(self, *args, **kwargs)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", commit)
    monkeypatch.setattr(module, "PAUSE", 0.0)
    table = dataset.column("s", "f")
    with dataset.lease("w"):
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(1))])
    assert ids(table) == [1] and len(calls) == 2


def paused(monkeypatch, act) -> None:
    """Another writer works while the first one sleeps between its last check and its commit."""
    original, done = DeltaTable.create_write_transaction, []

    def commit(self, *args, **kwargs):
        if not done:
            done.append(1)
            act()
        original(self, *args, **kwargs)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", commit)


def test_a_paused_writer_whose_lease_was_taken_over_commits_nothing(dataset, monkeypatch):
    """before: both committed, and the rows were there twice."""
    table = dataset.column("s", "f")
    with dataset.lease("first"):
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(1))])
        late = write_file(table.uri, rows(2))

        def second():
            unlocked = Dataset(dataset.uri)
            monkeypatch.setattr("nextloom.store.lease.is_dead", lambda document: True)
            with unlocked.lease("second"):
                unlocked.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(2))])

        paused(monkeypatch, second)
        with pytest.raises((LeaseLost, Overtaken)):
            dataset.column("s", "f").commit(SCHEMA, [late])
    assert ids(table) == [1, 2]


def test_a_paused_writer_that_wakes_before_the_next_commits_stops_that_one(dataset, monkeypatch):
    """The late commit goes through, since nobody has committed yet; the new writer read the table before it."""
    table = dataset.column("s", "f")
    monkeypatch.setattr("nextloom.store.lease.is_dead", lambda document: True)
    second = Dataset(dataset.uri)
    with dataset.lease("first"):
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(1))])
        late = write_file(table.uri, rows(2))

        def taken():
            second.lease("second").__enter__()
            assert ids(second.column("s", "f")) == [1], "rows 2 are still to do"

        paused(monkeypatch, taken)
        dataset.column("s", "f").commit(SCHEMA, [late])
        with pytest.raises(Overtaken, match=r"after it was read .*\n  next: run the same command again"):
            second.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(2))])
    assert ids(table) == [1, 2]
    with dataset.lease("third"):
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(3))])
    assert ids(table) == [1, 2, 3]


def test_an_overtaken_writer_is_refused_even_where_the_lease_folder_is_lost(dataset):
    table = dataset.column("s", "f")
    for _ in range(3):
        with dataset.lease("w"):
            dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(dataset.guard()))])
    for path in Path(dataset.uri, "lease").iterdir():
        path.unlink()
    with dataset.lease("after"), pytest.raises(Overtaken, match=r"epoch 3 .* know 1 only\n  next: nextloom unlock"):
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(9))])
    unlock(dataset.documents, dataset.column("s", "f").epoch())
    with dataset.lease("again"):
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(9))])
    assert ids(table) == [1, 2, 3, 9]


def test_every_commit_says_its_id_and_epoch(dataset):
    table = dataset.column("s", "f")
    with dataset.lease("w"):
        dataset.column("s", "f").commit(SCHEMA, [write_file(table.uri, rows(1))], note="run")
    said = DeltaTable(table.uri).history(1)[0]
    assert said["note"] == "run" and len(said["id"]) == 32 and said["epoch"] == "1"
    assert DeltaTable(table.uri).transaction_version("nextloom") == 1 == table.epoch()


def test_the_lease_of_a_full_disk_does_not_hide_what_happened(dataset, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "/d")

    with pytest.raises(KeyError, match="the work"), dataset.lease("w"):
        monkeypatch.setattr(Folder, "write", full)
        raise KeyError("the work")
    monkeypatch.undo()
    assert json.loads(Path(dataset.uri, "lease/000000001.json").read_text())["released"] is False
    with Lease(Folder(str(Path(dataset.uri).parent / "other")), "x") as lease:
        assert lease.check() == 1
