"""Errors of disks, stores, Delta, Arrow, model files and Ray, as a user reads them: what, where, why, next."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
from deltalake import DeltaTable
from obstore.store import LocalStore

from nextloom import problems
from nextloom.cli.application import call
from nextloom.errors import Damaged, UserError
from nextloom.problems import RERUN, explain, one_line


def raised(act) -> BaseException:
    with pytest.raises(BaseException) as caught:
        act()
    return caught.value


def os_error(number: int, path: str = "/disk/rows/part.parquet"):
    def act():
        raise OSError(number, os.strerror(number), path)

    return act


SYSTEM = {
    errno.ENOSPC: "/disk/rows/part.parquet: disk full: ",
    errno.EDQUOT: "/disk/rows/part.parquet: disk full: ",
    errno.EROFS: "/disk/rows/part.parquet: the disk is read-only",
    errno.EACCES: "/disk/rows/part.parquet: no permission",
    errno.EMFILE: "too many open files",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ESTALE: "stale handle",
    errno.EIO: "input/output error",
    errno.ENOENT: "no such file or folder",
}


@pytest.mark.parametrize("number", SYSTEM)
def test_the_systems_errors(number):
    told = str(explain(raised(os_error(number))))
    assert SYSTEM[number] in told and "\n  next: " in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "Generic LocalFileSystem error\n\x1b[31m↳\x1b[0m Unable to open file /d/_delta_log/_last_checkpoint\n"
            "\x1b[31m↳\x1b[0m No space left on device (os error 28)",
            "disk full: ",
        ),
        ("[Errno 30] Error writing '/d/x'. Detail: [errno 30] Read-only file system", "/d/x: the disk is read-only"),
        ("Error creating dir '/d/x': Permission denied (os error 13)", "/d/x: no permission"),
    ],
)
@pytest.mark.parametrize("kind", [OSError, pa.ArrowInvalid, RuntimeError])
def test_an_error_number_inside_of_anothers_text(kind, text, told):
    shown = str(explain(kind(text)))
    assert told in shown and "↳" not in shown and "\x1b" not in shown and "os error" not in shown


def test_real_errors_of_the_libraries(tmp_path):
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "t/_delta_log").mkdir(parents=True)
    (tmp_path / "t/_delta_log/00000000000000000000.json").write_text('{"commitInfo"')
    acts = {
        "a file cannot be read: ": lambda: pq.read_table(tmp_path / "cut.parquet"),
        "the weights cannot be read": lambda: safetensors.safe_open(tmp_path / "cut.safetensors", "numpy"),
        "a table's log: ": lambda: DeltaTable(str(tmp_path / "t")),
        "no such file or folder": lambda: Path(tmp_path / "absent").read_text(),
        "file or folder": lambda: obstore.get(LocalStore(str(tmp_path)), "absent"),
    }
    for told, act in acts.items():
        shown = str(explain(raised(act)))
        assert told in shown, shown
        assert len(shown.splitlines()) == 2 and "\n  next: " in shown and "<unknown>" not in shown, shown


def test_too_many_open_files_for_real(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 3, hard))
    try:
        error = raised(lambda: [(tmp_path / str(n)).open("w") for n in range(20)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "too many open files" in str(explain(error)) and "ulimit -n" in str(explain(error))


def test_ray_that_does_not_start(monkeypatch):
    code = compile(
        "def init():\n    raise RuntimeError('The node died:\\n stack')", "/x/ray/_private/worker.py", "exec"
    )
    names: dict = {}
    exec(code, names)
    shown = str(explain(raised(names["init"])))
    assert shown.startswith("Ray does not start: The node died:") and "next: look at free memory" in shown


def test_a_user_error_inside_of_another_is_what_is_told():
    def act():
        try:
            raise Damaged("is lost", where="/d/part.parquet", next="nextloom rebuild RECIPE stats")
        except Damaged as damage:
            raise RuntimeError("a task failed") from damage

    assert str(explain(raised(act))) == "/d/part.parquet: is lost\n  next: nextloom rebuild RECIPE stats"


def test_no_secret_and_no_control_character_gets_through():
    text = "cannot open s3://key:hunter2@host/b?secret_key=hunter2&region=eu \x1b]0;evil\x07"
    for shown in (
        one_line(ValueError(text)),
        str(explain(ConnectionError(text))),
        problems.unforeseen(ValueError(text)),
    ):
        assert "hunter2" not in shown and "\x1b" not in shown and "\x07" not in shown and "host/b" in shown


class Command:
    def __init__(self, error):
        self.error = error

    def __call__(self):
        raise self.error


def told(error, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        call(Command(error))
    return end.value.code, capsys.readouterr().err


def test_the_verbs_end_with_one_message_and_code_1(capsys, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    code, err = told(OSError(errno.ENOSPC, "No space left on device", "/nowhere/x"), capsys)
    assert code == 1 and err.startswith("error: /nowhere/x: disk full: ") and f"make room, then {RERUN}" in err
    code, err = told(UserError("why", where="a.b", next="do this"), capsys)
    assert (code, err) == (1, "error: a.b: why\n  next: do this\n")
    code, err = told(KeyError("surprise"), capsys)
    assert code == 1 and err.startswith("error: KeyError: 'surprise'\n") and "Traceback" not in err
    assert "NEXTLOOM_TRACEBACK=1" in err
    monkeypatch.setenv("NEXTLOOM_TRACEBACK", "1")
    code, err = told(KeyError("surprise"), capsys)
    assert code == 1 and "Traceback" in err and err.rstrip().splitlines()[-2] == "error: KeyError: 'surprise'"


def test_a_panic_of_a_rust_library_is_told_in_a_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])

    class PanicException(BaseException):
        pass

    code, err = told(PanicException("called `Option::unwrap()` on a `None` value\n   0: <unknown>"), capsys)
    assert code == 1 and err.startswith("error: PanicException: called") and "<unknown>" not in err
