"""Shared by all tests: one local Ray for the session, single-threaded maths, the tests folder importable in workers."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")  # a busy machine is no counterexample, and a run means the same everywhere
TESTS = Path(__file__).parent
gc.set_threshold(100_000, 50, 100)  # a twentieth of the time went into looking at the same million objects
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
sys.path.insert(0, str(TESTS))

from hostile.summary import pytest_terminal_summary  # noqa: E402, F401  (a hook of the whole run)


@pytest.fixture(scope="session")
def ray_local():
    """A local Ray instance, started once; runs inside this process join it."""
    from nextloom.cluster.connect import connect

    connect()
    import ray

    yield ray
    ray.shutdown()


@pytest.fixture
def nextloom(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, in `cwd` or the test's own folder: (exit code, stdout, stderr)."""
    from nextloom.cli import main

    def call(*arguments: str, cwd: Path = tmp_path) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr("sys.argv", ["nextloom", *arguments])
            patch.setattr("sys.path", [*sys.path])
            with pytest.raises(SystemExit) as end:
                main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return call
