"""Metrics of a run: one JSON object per line in `metrics.jsonl`, and TensorBoard beside it; pictures as PNG in both.

A resumed run drops what was logged after its checkpoint, so every step has one line. Each start leaves a line of its
own, with the process that runs the first worker.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nextloom.train.engine.folder import METRICS, PICTURES, PROGRESS, TENSORBOARD

BEAT_SECONDS = 5.0
"""Between two notes of how far it is."""


class Tracker:
    """Writes the metrics of one run.

    Args:
        folder: of the run.
        step: steps done so far; lines of later steps are dropped.
        **about: fields of the start line.
    """

    def __init__(self, folder: Path, step: int, **about: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._pictures, self._beat = folder, folder / PICTURES, float("-inf")
        path = folder / METRICS
        kept = [line for line in read(folder) if "event" in line or line["step"] <= step]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        part.replace(path)
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)
        self._write({"event": "start", "step": step, "time": time.time(), "pid": os.getpid(), **about})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line: figures after `step` steps."""
        self._write({"step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def beat(self, step: int) -> None:
        """Note that `step` steps are done; now and then, so that it may be called after each."""
        if time.monotonic() - self._beat < BEAT_SECONDS:
            return
        self._beat = time.monotonic()
        part = (self._folder / PROGRESS).with_suffix(".part")
        part.write_text(json.dumps({"step": step, "time": time.time()}))
        part.replace(self._folder / PROGRESS)

    def picture(self, step: int, rgb: np.ndarray) -> None:
        """(height, width, 3) uint8 of what the model makes after `step` steps: `pictures/step-<step>.png`."""
        self._pictures.mkdir(exist_ok=True)
        Image.fromarray(rgb).save(self._pictures / f"step-{step:09d}.png")
        self._board.add_image("pictures", rgb, step, dataformats="HWC")

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def read_beat(folder: Path) -> dict[str, Any] | None:
    """What `Tracker.beat` noted last: step, and time in seconds since 1970."""
    try:
        return json.loads((folder / PROGRESS).read_text())
    except (FileNotFoundError, ValueError):
        return None


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines so far; one cut short by a kill is left out."""
    try:
        text = (folder / METRICS).read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
