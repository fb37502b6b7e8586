"""The command line as a user meets it: messages, exit codes, what is imported, machine-readable output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import build, write_pictures
from nextloom.config import override
from nextloom.errors import UserError

ROOT = Path(__file__).parents[1]
RECIPE = """
dataset: toy
source: {op: files, path: pics}
steps:
  stats: {op: image_stats}
  keep: {op: select, where: "stats.short_side >= 8"}
"""


def nextloom(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nextloom", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


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


def test_plan_as_json_writes_nothing(folder):
    done = nextloom("plan", "toy.yaml", "--json", cwd=folder)
    steps = {step["step"]: step for step in json.loads(done.stdout)}
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
    ],
)
def test_mistakes_are_refused_with_path_and_suggestion(folder, change, message):
    done = nextloom("plan", "toy.yaml", "--set", change, cwd=folder)
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_recipe_names_the_shipped_ones(tmp_path):
    done = nextloom("plan", "emojis", cwd=tmp_path)
    assert done.returncode == 1 and "did you mean 'emoji'?" in done.stderr


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
