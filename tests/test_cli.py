"""The command line as a user meets it: messages, exit codes, what is imported, machine-readable output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import build, write_pictures
from nextloom.cli import app
from nextloom.config import DEFAULT_ROOT, override, resolve
from nextloom.errors import UserError
from nextloom.pipelines.recipe import RunOptions

ROOT = Path(__file__).parents[1]
RECIPE = """
dataset: toy
source: {op: files, path: pics}
steps:
  stats: {op: image_stats}
  keep: {op: select, where: "stats.short_side >= 8"}
releases:
  kept: {rows: keep, columns: [stats]}
"""
HEED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""A shell that starts the tests in the background has all they start ignore Ctrl-C; this command heeds it."""
OWN_OPS = """
import pathlib, time
from typing import ClassVar
import pyarrow as pa
from nextloom.op import Annotate

class Slow(Annotate):
    name: ClassVar[str] = "slow"
    code_version: ClassVar[int] = 1

    def columns(self):
        return pa.schema([("value", pa.int64())])

    def measure(self, row):
        pathlib.Path(row.source["uri"] + ".started").touch()
        time.sleep(60)

class NoName(Slow):
    pass

del Slow.name

class Named(NoName):
    name: ClassVar[str] = "named"

class NoVersion(Annotate):
    name: ClassVar[str] = "no_version"
"""


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "data" / "pics", 3)
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "toy.yaml"], ["status", "toy.yaml"]])
def test_help_plan_and_status_import_neither_ray_nor_torch(folder, arguments):
    code = (
        "import sys; from nextloom.cli import main\n"
        f"sys.argv = ['nextloom', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print('MODULES', sorted({'ray', 'torch'} & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "MODULES []"


def test_help_lists_every_verb_and_a_wrong_command_line_is_told(nextloom, tmp_path):
    code, out, _ = nextloom("--help", cwd=tmp_path)
    verbs = {"samples", "plan", "run", "status", "report", "release", "pack", "train", "generate", "compact", "vacuum"}
    listed = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line]
    assert code == 0 and verbs <= set(listed)
    assert listed == [command.callback.__name__ for command in app.registered_commands]
    code, out, err = nextloom("plan", "--bogus", cwd=tmp_path)
    assert (code, out) == (2, "") and "No such option: --bogus" in err


def test_plan_as_json_writes_nothing(nextloom, folder):
    _, out, _ = nextloom("plan", "toy.yaml", "--json", cwd=folder)
    steps = {step["step"]: step for step in json.loads(out)}
    assert steps["stats"]["state"] == "missing" and steps["stats"]["todo"] == 3
    assert steps["keep"]["todo"] == 3
    assert not list((folder / "data").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps.stats.op=image_stat", "steps.stats.op: unknown op 'image_stat'; did you mean 'image_stats'?"),
        ("steps.stats.sharpnes_side=2", "steps.stats.sharpnes_side: unknown field; did you mean 'sharpness_side'?"),
        ("sorce=1", "sorce: unknown field; did you mean 'source'?"),
        ("run.commit_second=1", "run.commit_second: unknown field; did you mean 'commit_seconds'?"),
        ("source.pathh=x", "source.pathh: unknown field; did you mean 'path'?"),
        ("steps.keep.where=stat.short_side > 1", "steps.keep: unknown step 'stat'; did you mean 'stats'?"),
        ("steps.keep.where=stats.shortside > 1", "'stats' has no column 'shortside'; did you mean 'short_side'?"),
        ("steps.stats.rows=keep", "steps need each other in a circle"),
        ("source.path=nowhere", "nowhere"),
        ("steps.stats.execution.num_cpus=much", "steps.stats.execution.num_cpus: Input should be a valid number"),
        ("steps.stats.execution.num_cpus=.inf", "steps.stats.execution.num_cpus: Input should be a finite number"),
        ("run.commit_seconds=.nan", "run.commit_seconds: Input should be a finite number"),
        ("source.path=[3]", "source.path: Input should be a valid string"),
        ("source.path=2024-13-45", "source.path: not valid YAML: month must be in 1..12"),
        ("steps.stats.op=':X'", "steps.stats.op: cannot import ':X'"),
        ("steps.stats.op=nowhere:X", "cannot import 'nowhere:X': ModuleNotFoundError"),
        ("steps.stats.op=json:X", "steps.stats.op: cannot import 'json:X': AttributeError"),
        ("steps.stats.op=raising:X", "steps.stats.op: cannot import 'raising:X': ZeroDivisionError"),
        ("steps.stats.op=own_ops:NoName", "steps.stats.op: class own_ops:NoName has no `name`"),
        ("steps.stats.op=own_ops:NoVersion", "steps.stats.op: class own_ops:NoVersion has no `code_version`"),
    ],
)
def test_mistakes_are_refused_with_path_and_suggestion(nextloom, folder, change, message):
    (folder / "own_ops.py").write_text(OWN_OPS)
    (folder / "raising.py").write_text("1 / 0")
    code, out, err = nextloom("plan", "toy.yaml", "--set", change, cwd=folder)
    assert (code, out) == (1, "") and err.startswith("error: ")
    assert message in err


def test_a_value_that_is_no_yaml_is_refused_with_one_that_is(nextloom, folder):
    rule = "'cat' = source.key"
    code, _, err = nextloom("plan", "toy.yaml", "--set", f"steps.keep.where={rule}", cwd=folder)
    assert code == 1 and err.startswith("error: steps.keep.where: not valid YAML")
    assert override({"where": ""}, [f'where="{rule}"']) == {"where": rule}
    assert f'steps.keep.where="{rule}"' in err.replace("""'"'"'""", "'"), "the next command, quoted for a shell"


def test_a_recipe_in_another_encoding_is_refused(nextloom, tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"dataset: caf\xe9\n")
    code, _, err = nextloom("plan", "latin.yaml", cwd=tmp_path)
    assert code == 1 and err.startswith("error: latin.yaml: not UTF-8 at byte 12\n  next: ")


def test_python_refuses_numbers_that_are_none_as_yaml_does():
    with pytest.raises(ValueError, match="finite number"):
        RunOptions(commit_seconds=float("inf"))


def test_a_root_may_be_a_uri(nextloom, folder):
    assert resolve("runs/a", "s3://bucket/x/") == "s3://bucket/x/runs/a"
    assert resolve("/runs/a", "s3://bucket/x") == "/runs/a"
    assert resolve("gs://b/a", "data") == "gs://b/a"
    code, out, _ = nextloom("status", "toy.yaml", "--json", "--root", (folder / "data").as_uri(), cwd=folder)
    assert code == 0 and json.loads(out)["uri"] == str(folder / "data" / "datasets" / "toy")
    code, _, err = nextloom("plan", "toy.yaml", "--root", "nowhere://x", cwd=folder)
    assert code == 1 and err.startswith("error: --root: cannot open nowhere://x/datasets/toy")
    for verb in (("samples",), ("generate", "drawings")):
        code, _, err = nextloom(*verb, "--root", "s3://bucket/x", cwd=folder)
        assert code == 1 and err.startswith(f"error: `{verb[0]}` writes plain files and cannot write to s3://bucket/x")


def test_unknown_recipe_names_the_shipped_ones(nextloom, tmp_path):
    code, _, err = nextloom("plan", "emojis", cwd=tmp_path)
    assert code == 1 and "did you mean 'emoji'?" in err


def test_the_shipped_recipe_without_pictures_says_how_to_get_some(nextloom, tmp_path):
    code, _, err = nextloom("plan", "emoji", cwd=tmp_path)
    assert code == 1
    assert f"no such folder: {tmp_path}/{DEFAULT_ROOT}/samples" in err and "next: " in err and "nextloom samples" in err


def test_verbs_after_a_run(nextloom, folder, ray_local):
    assert nextloom("run", "toy.yaml", cwd=folder)[0] == 0
    code, out, _ = nextloom("release", "toy.yaml", cwd=folder)
    assert (code, out) == (0, "kept-0001  3 rows, 1 columns\n")
    assert nextloom("release", "toy.yaml", cwd=folder)[1] == "kept-0001  3 rows, 1 columns  (unchanged)\n"
    code, out, _ = nextloom("report", "toy.yaml", cwd=folder)
    assert code == 0 and (folder / out.strip()).read_text().startswith("<!doctype html>")
    code, out, _ = nextloom("status", "toy.yaml", cwd=folder)
    assert code == 0 and "(old)" not in out and "release kept-0001  3 rows  stats\nwriter: none\n" in out

    code, out, _ = nextloom("status", "toy.yaml", "--json", "--set", "steps.keep.where=stats.width > 1", cwd=folder)
    steps = {step["step"]: step for step in json.loads(out)["steps"]}
    assert {name: step["current"] for name, step in steps.items()} == {"stats": True, "keep": False}
    code, out, _ = nextloom("status", "toy.yaml", "--set", "steps.keep.where=stats.width > 1", cwd=folder)
    assert "keep (old)" in out and "stats (old)" not in out


def test_a_dead_holder_is_not_the_writer(nextloom, folder):
    uri = str(folder / "data" / "datasets" / "toy")
    code = f"from nextloom.store.dataset import Dataset; import os; Dataset({uri!r}).lease('doomed').__enter__(); "
    subprocess.run([sys.executable, "-c", code + "os.kill(os.getpid(), 9)"], timeout=60)
    assert nextloom("status", "toy.yaml", cwd=folder)[1].endswith("writer: none\n")
    from nextloom.store.dataset import Dataset

    with Dataset(uri).lease("alive"):
        assert f"writer: process {os.getpid()} on" in nextloom("status", "toy.yaml", cwd=folder)[1]


def test_ctrl_c_ends_a_run_of_an_own_op_beside_the_recipe(folder):
    (folder / "own_ops.py").write_text(OWN_OPS)
    (folder / "own.yaml").write_text(
        RECIPE.replace("image_stats", "own_ops:Named").replace("stats.short_side", "stats.value")
    )
    command = [Path(sys.executable).with_name("nextloom"), "run", "own.yaml", "--to", "stats"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    heeding = [sys.executable, "-c", HEED, *command]
    run = subprocess.Popen(heeding, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(folder.rglob("*.started")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=200)
    assert list(folder.rglob("*.started")), f"no worker ran the op: {err}"
    assert run.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted; run the same command again to go on"


def test_rows_and_reads_are_checked(tmp_path):
    write_pictures(tmp_path / "pics", 1)
    steps = {
        "hash": {"op": "perceptual_hash"},
        "keep": {"op": "select", "where": "hash.hash > 0"},
        "mean": {"op": "toy_ops:Mean", "rows": "keep"},
        "later": {"op": "select", "where": "mean.value > 1"},
    }
    with pytest.raises(UserError, match=r"steps.later: reads 'mean', which exists only for the rows of 'keep'"):
        build(tmp_path, steps)
    steps["later"] = {"op": "toy_ops:Mean", "reads": ["keep"]}
    with pytest.raises(UserError, match="depends on the whole row set"):
        build(tmp_path, steps)


def test_set_reads_values_as_yaml():
    assert override({"a": {"b": 1}}, ["a.b=[1, x]", "c.d=2.5", "e=null"]) == {
        "a": {"b": [1, "x"]},
        "c": {"d": 2.5},
        "e": None,
    }
    with pytest.raises(UserError, match="not a mapping"):
        override({"a": 1}, ["a.b=2"])


def test_tokenize_is_pythons_own(ray_local):
    """The package has a folder of that name; it must never shadow the standard library."""
    import tokenize

    own = os.path.join(os.path.dirname(os.__file__), "tokenize.py")
    assert os.path.samefile(tokenize.__file__, own)
    code = "import tokenize; print(tokenize.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert os.path.samefile(done.stdout.strip(), own)


def test_tokenize_is_pythons_own_in_a_job_whose_working_dir_is_the_repository():
    code = (
        "import ray, logging\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, logging_level='error',\n"
        f"  runtime_env={{'working_dir': {str(ROOT)!r}, 'excludes': ['.venv', 'data', '.git']}})\n"
        "@ray.remote\n"
        "def where():\n"
        "    import os, tokenize\n"
        "    return os.path.isdir('src/nextloom/tokenize'), tokenize.__file__\n"
        "print(*ray.get(where.remote(), timeout=100), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    lines = done.stdout.strip().splitlines()[-2:]
    assert lines[0] == "True", done.stderr[-2000:]
    assert os.path.samefile(lines[1], os.path.join(os.path.dirname(os.__file__), "tokenize.py"))
