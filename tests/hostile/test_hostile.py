"""Runs the table of attacks; each module `attacks_*.py` beside this file brings its part as `ATTACKS`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = [importlib.import_module(f"hostile.{path.stem}") for path in sorted(HERE.glob("attacks_*.py"))]
ATTACKS = [attack for module in MODULES for attack in module.ATTACKS]
NAMES = [f"{attack.group}: {attack.name}" for attack in ATTACKS]


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_attack_fails(attack, tmp_path, record_property):
    record_property("attack", f"{attack.group}: {attack.name}")
    result = attack.strike(tmp_path)
    record_property("outcome", result.what.partition("\n")[0])
    record_property("succeeded", "yes" if result.succeeded else "no")
    assert not result.succeeded, result.what
    assert attack.outcome in result.what


@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_control_succeeds_without_the_guard(attack, tmp_path, record_property):
    record_property("attack", f"{attack.group}: {attack.name}")
    with attack.without_guard():
        result = attack.strike(tmp_path)
    record_property("control", "succeeds" if result.succeeded else "FAILS")
    assert result.succeeded, f"no real attack, or not its guard: {result.what}"
