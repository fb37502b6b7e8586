"""Other tools on the pictures of the curation benchmark, each in a virtual environment of its own.

Each runs the same scorers (`kernels.py`) with two workers as its documentation leads one to: a row function with the
default handling of errors, and with the one that goes on. NextLoom's own line is measured in the same way. Two figures:

    images_per_cpu_second   pictures over the CPU-seconds of the whole job on sound files, its start-up included
    unaccounted             rows that end neither with a value nor with an error that says why, on a copy of the set in
                            which every hundredth file is cut in half; a job that dies loses all

Handling of errors changes nothing on sound files, so those run once per reader. Environments lie in `data/peers/`, are
made when first asked for and again when their packages change. The runs may neither report home nor install anything:
Data-Juicer would, in the middle of a job, install ray and torch. A tool that cannot be installed, or does not score
every sound picture, or is killed by something else, is named with the reason and left out of the figures.

Price paid: Data-Juicer's environment holds torch, which its executor loads even for ops that do not use it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.kernels import NEEDS
from tools.usage import Died, measure

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / "data" / "peers"
LIMIT_SECONDS = 3600
"""A run that takes longer is ended, and counts as one that died."""
QUIET = {
    "DO_NOT_TRACK": "1",
    "DAFT_ANALYTICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
    "UV_OFFLINE": "1",
    "UV_NO_CACHE": "1",
    "PIP_NO_INDEX": "1",
    "OMP_NUM_THREADS": "1",
}
REASON = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|BrokenPicture)\b.*$", re.MULTILINE)


@dataclass(frozen=True)
class Peer:
    """One tool."""

    script: str
    packages: tuple[str, ...]
    """What its environment installs beside the kernels' needs; none: NextLoom's own environment."""
    readers: tuple[tuple[str, ...], ...]
    """Per reader its ways to treat errors, the default first, as arguments of the script."""


PEERS = {
    "nextloom": Peer("peer_nextloom.py", (), (("default",),)),
    "daft": Peer("peer_daft.py", ("daft==0.7.26",), (("raise", "log"),)),
    "ray_data": Peer("peer_ray.py", (), (("images", "images_skip"), ("files", "files_skip"))),
    "data_juicer": Peer(
        # aiohttp, ray and torch: imported, yet not among what it declares
        "peer_juicer.py",
        ("py-data-juicer==1.6.1", "aiohttp", "ray==2.60.0", "torch==2.13.0"),
        (("default",),),
    ),
}


def compare(folder: Path, place: Path) -> dict[str, dict[str, float]]:
    """Run every peer on `folder`; prints a line per run and returns peer and way -> its figures.

    Args:
        folder: sound pictures.
        place: scratch folder for the copy with cut files and for what the peers write.
    """
    cut, told = _cut(folder, place / "cut"), {}
    count = sum(1 for _ in folder.iterdir())
    print(f"{count:,} pictures, start-up included; unaccounted: of as many, {-(-count // 100):,} of them cut in half")
    print(f"{'':<26}{'version':>10}{'images per CPU-s':>18}{'unaccounted':>13}", flush=True)
    for name, peer in PEERS.items():
        try:
            python = _environment(name, peer.packages)
        except Exception as error:
            print(f"{name:<26}left out, its environment cannot be made: {_reason(error)}", flush=True)
            continue
        for ways in peer.readers:
            try:
                cpu_seconds, sound = _run(python, peer.script, folder, ways[0], place)
                if sound["values"] != count:
                    raise RuntimeError(f"{sound['values']:,} of {count:,} sound pictures have a value")
            except Exception as error:
                for way in ways:
                    print(f"{_label(name, way):<26}left out: {_reason(error)}", flush=True)
                continue
            for way in ways:
                speed, lost, note = count / cpu_seconds, count, ""
                try:
                    _, broken = _run(python, peer.script, cut, way, place)
                    lost = count - broken["values"] - broken["reasons"]
                except Exception as error:
                    if isinstance(error, Died) and error.status == -signal.SIGKILL:
                        print(f"{_label(name, way):<26}left out: killed from outside, or out of memory", flush=True)
                        continue
                    note = f"   died: {_reason(error)}"
                told[_label(name, way)] = {"images_per_cpu_second": round(speed, 1), "unaccounted": lost}
                print(f"{_label(name, way):<26}{sound['version']:>10}{speed:>18.1f}{lost:>13,}{note}", flush=True)
    return told


def _environment(name: str, packages: tuple[str, ...]) -> str:
    """The Python of the environment of `name`, made where there is none with these packages."""
    if not packages:
        return sys.executable
    folder, wanted = ENVIRONMENTS / name, "\n".join((*packages, *NEEDS))
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.is_file() or ready.read_text() != wanted:
        _call([sys.executable, "-m", "venv", "--clear", str(folder)])
        _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages, *NEEDS])
        ready.write_text(wanted)
    return str(python)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout)


def _run(python: str, script: str, folder: Path, way: str, place: Path) -> tuple[float, dict[str, Any]]:
    """(CPU-seconds, what the script told) of one run; RuntimeError with its output when the job died."""
    from nextloom.curation.scores.packaged import packaged

    out = place / f"{Path(script).stem}-{way}-{folder.name}.json"
    paths = (HERE.parents[1] / "src", HERE, HERE.parent)
    env = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    env |= {"HF_HOME": str(place / "hf"), "DATA_JUICER_CACHE_HOME": str(place / "data_juicer")}
    env["BRISQUE_MODEL"] = str(packaged("brisque", "models"))
    used = measure([python, str(HERE / script), str(folder), way, str(out)], env, LIMIT_SECONDS)
    if not out.is_file():
        raise RuntimeError(f"no figures, though it ended with 0:\n{used.output}")
    return used.cpu_seconds, json.loads(out.read_text())


def _cut(folder: Path, target: Path) -> Path:
    """A copy of the set in which every hundredth file ends in its middle."""
    shutil.copytree(folder, target)
    for number, file in enumerate(sorted(target.iterdir())):
        if number % 100 == 0:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return target


def _label(name: str, way: str) -> str:
    return name if way == "default" else f"{name}_{way}"


def _reason(error: Exception) -> str:
    """The last line of an error's text that names an error, or its last line."""
    text = str(error).strip() or type(error).__name__
    found = REASON.findall(text)
    return (found[-1] if found else text.splitlines()[-1]).strip()[:160]
