"""Other tools on the pictures of the curation benchmark, each in a virtual environment of its own.

Each runs the same scorers (`kernels.py`) as its documentation leads one to: a row function with the default handling
of errors, and with the one that goes on. Two figures: pictures per CPU-second on sound files, and on a copy of the set
with 1 % of its files cut in half the rows that end neither with a value nor with a reason. A job that dies loses all.
Environments lie in `data/peers/` and are made when first asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.kernels import NEEDS
from tools.usage import measure

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / "data" / "peers"
PEERS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "daft": ("peer_daft.py", ("daft==0.7.26",), ("raise", "ignore")),
    "ray_data": ("peer_ray.py", (), ("raise", "skip")),
    "data_juicer": ("peer_juicer.py", ("py-data-juicer==1.6.1", "aiohttp"), ("default",)),
}
"""Name -> script, packages (none: this environment), ways to treat errors."""
QUIET = {
    "DO_NOT_TRACK": "1",
    "DAFT_ANALYTICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}
QUIET |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def compare(folder: Path, place: Path) -> dict[str, dict[str, float]]:
    """Run every peer on `folder`; prints a line per run and returns peer -> its figures.

    Args:
        folder: sound pictures.
        place: scratch folder for the copy with cut files.
    """
    cut = _cut(folder, place / "cut")
    count, told = sum(1 for _ in folder.iterdir()), {}
    print("peer               errors   images per CPU-s   rows unaccounted for, of 1 % cut in half")
    for name, (script, packages, ways) in PEERS.items():
        try:
            python = _environment(name, packages)
            for way in ways:
                sound = _run(python, script, folder, way)
                speed = count / sound[0].cpu_seconds if sound else 0.0
                broken = _run(python, script, cut, way)
                lost = count - broken[1]["values"] if broken else count
                label = name if len(ways) == 1 else f"{name}_{way}"
                told[label] = {"images_per_cpu_second": round(speed, 1), "unaccounted": lost}
                print(f"{name:<18}{way:<10}{speed:>15.1f}{lost:>12,}{'' if broken else '   the job died'}")
        except Exception as error:
            print(f"{name}: left out: {type(error).__name__}: {str(error).strip().splitlines()[-1]}")
    return told


def _environment(name: str, packages: tuple[str, ...]) -> str:
    if not packages:
        return sys.executable
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages, *NEEDS]
        subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
        (folder / ".ready").touch()
    return str(python)


def _run(python: str, script: str, folder: Path, way: str):
    """(usage, figures) of one run; None when the job died."""
    from nextloom.curation.scores.packaged import packaged

    source = str(HERE.parents[1] / "src")
    env = {**os.environ, **QUIET, "PYTHONPATH": f"{source}:{HERE}", "BRISQUE_MODEL": str(packaged("brisque", "models"))}
    try:
        used = measure([python, str(HERE / script), str(folder), way], env)
    except RuntimeError:
        return None
    return used, json.loads(used.output.strip().splitlines()[-1])


def _cut(folder: Path, target: Path) -> Path:
    """A copy of the set in which every hundredth file ends in its middle."""
    shutil.copytree(folder, target)
    for number, file in enumerate(sorted(target.iterdir())):
        if number % 100 == 0:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return target
