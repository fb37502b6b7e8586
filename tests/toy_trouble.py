"""An op that does to its process what decoders, models and strangers' files do: it dies, hangs, grows, forks."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from nextloom.op import Annotate, Row


def _exit() -> None:
    os._exit(0)


def _segfault() -> None:
    ctypes.string_at(0)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _loop() -> None:
    while True:
        pass


def _regex() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # holds Python's lock: no thread of this process can step in


def _fifo() -> None:
    path = f"/tmp/fifo-{os.getpid()}"
    os.mkfifo(path)
    try:
        Path(path).read_bytes()
    finally:
        os.remove(path)


def _grow() -> None:
    kept = []
    while True:
        kept.append(np.ones(2**24, np.uint8))


def _grow_below() -> None:
    code = "kept = []\nwhile True: kept.append(bytearray(b'x') * 2**24)"
    subprocess.run([sys.executable, "-S", "-c", code], check=False)


def _daemon() -> None:
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    time.sleep(1000)


def _fork() -> None:
    os.fork()  # and both go on


def _many() -> None:
    while True:
        subprocess.Popen(["sleep", "1000"])


def _kill_keeper() -> None:
    with open(f"/proc/{os.getppid()}/stat") as file:
        os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
    time.sleep(5)


def _close_all() -> None:
    os.closerange(3, 1000)
    time.sleep(1000)


def _stop_answering() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _nap() -> None:
    time.sleep(0.5)


WAYS = {name[1:]: way for name, way in list(globals().items()) if name.startswith("_") and callable(way)}


class Trouble(Annotate):
    """Length of the key; in the rows of these numbers something else happens first."""

    name: ClassVar[str] = "trouble"
    code_version: ClassVar[int] = 1
    needs: ClassVar[Literal["bytes"]] = "bytes"
    ways: dict[int, str] = {}
    """Number in the key -> what happens."""
    tell: str | None = None
    """A file that gets a line of each row that is begun."""

    def columns(self) -> pa.Schema:
        return pa.schema([("value", pa.int64())])

    def setup(self) -> None:
        if self.tell:
            with open(self.tell, "a") as file:
                file.write(f"{os.getpid()} setup\n")

    def measure(self, row: Row) -> dict:
        if self.tell:
            with open(self.tell, "a") as file:
                file.write(f"{os.getpid()} {row.key}\n")
        way = self.ways.get(int(row.key[1:4]))
        if way:
            WAYS[way]()
        return {"value": len(row.key)}


class TroubleInBatches(Trouble):
    """The same, four rows at a time."""

    name: ClassVar[str] = "trouble_in_batches"
    batch: ClassVar[int] = 4


class DiesInSetup(Trouble):
    """Dies before its first row."""

    name: ClassVar[str] = "dies_in_setup"

    def setup(self) -> None:
        os._exit(3)


class Replaced(Trouble):
    """Weights that someone replaces while rows are measured."""

    name: ClassVar[str] = "replaced"
    weights: ClassVar[dict[str, str]] = {"path": "make them"}
    path: str

    def measure(self, row: Row) -> dict:
        if Path(self.path).read_bytes() == b"old" and row.key == "p004.png":
            Path(self.path).write_bytes(b"new ones")
        return {"value": len(row.key)}
