"""What rows do to a worker in the table of attacks: all of it ends by itself, so that it can be let happen too."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from nextloom.op import Annotate, Row

HELD = 0.7
"""Seconds that a row holds its worker for, when nobody ends it."""
GROWN = 160 * 2**20


def _until(condition: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + HELD
    while time.monotonic() < end:
        condition()


def _regex() -> None:
    _until(lambda: re.match(r"(a+)+$", "a" * 20 + "b"))


def _fifo() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fifo"
        os.mkfifo(path)
        threading.Timer(HELD, lambda: path.write_bytes(b"")).start()
        path.read_bytes()


def _ignoring_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
    time.sleep(HELD)


def _stopped() -> None:
    subprocess.Popen(["sh", "-c", f"sleep {HELD}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def _silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.settimeout(HELD)
        with contextlib.suppress(TimeoutError):
            client.recv(1)


HANG = {
    "an endless loop": _until,
    "a regular expression of exponential time": _regex,
    "a pipe that nobody writes to": _fifo,
    "C code that holds Python's lock": lambda: ctypes.PyDLL(None).usleep(int(HELD * 1e6)),
    "a lock that is never let go": lambda: threading.Semaphore(0).acquire(timeout=HELD),
    "a program that does not end": lambda: subprocess.run(["sleep", str(HELD)], check=False),
    "a process in a session of its own": lambda: subprocess.run(["setsid", "-w", "sleep", str(HELD)], check=False),
    "all signals blocked": _ignoring_signals,
    "its own process stopped": _stopped,
    "a server that is silent": _silent_server,
    "a wait for nothing": lambda: select.select([], [], [], HELD),
}


def _keep(thing: object) -> None:
    time.sleep(HELD / 2)
    del thing


def _mapped() -> None:
    memory = mmap.mmap(-1, GROWN)
    for at in range(0, GROWN, mmap.PAGESIZE):
        memory[at] = 1
    _keep(memory)


def _below() -> None:
    code = f"import time; kept = bytearray(b'x') * {GROWN}; time.sleep({HELD})"
    subprocess.run([sys.executable, "-S", "-c", code], check=False)


GROW = {
    "an array": lambda: _keep(np.ones(GROWN, np.uint8)),
    "bytes": lambda: _keep(b"x" * GROWN),
    "a bomb of zlib": lambda: _keep(zlib.decompress(zlib.compress(bytes(GROWN), 1))),
    "a picture of four colours as float32": lambda: _keep(np.ones((4096, 2560, 4), np.float32)),
    "mapped memory": _mapped,
    "an Arrow buffer": lambda: _keep(pa.array(np.ones(GROWN // 8, np.int64)).cast(pa.float64())),
    "a process below": _below,
}


def _deep() -> None:
    sys.setrecursionlimit(10**7)

    def down(_: object) -> None:
        sorted([1, 2], key=down)

    down(0)


def _raise(error: BaseException) -> None:
    raise error


DIE = {
    "exit code 0": lambda: os._exit(0),
    "exit code 1": lambda: os._exit(1),
    "a bad pointer": lambda: ctypes.string_at(0),
    "abort()": os.abort,
    **{
        name: (lambda name=name: os.kill(os.getpid(), signal.Signals[name]))
        for name in ("SIGKILL", "SIGTERM", "SIGBUS")
    },
    "SIGKILL to its process group": lambda: os.killpg(0, signal.SIGKILL),
    "SIGKILL to its parent": lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(5)),
    "SystemExit": lambda: _raise(SystemExit(0)),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "a C stack that is too deep": _deep,
    "all files closed": lambda: (os.closerange(3, 256), time.sleep(0.2)),
}
FORK = {
    "a fork of which both go on": os.fork,
    "two forks of which all go on": lambda: (os.fork(), os.fork()),
}
WAYS = HANG | GROW | DIE | FORK


class Bad(Annotate):
    """The row's id; in some rows something else happens first."""

    name: ClassVar[str] = "bad"
    code_version: ClassVar[int] = 1
    ways: dict[int, str]

    def columns(self) -> pa.Schema:
        return pa.schema([("value", pa.int64())])

    def measure(self, row: Row) -> dict:
        if row.id in self.ways:
            WAYS[self.ways[row.id]]()
        return {"value": row.id}
