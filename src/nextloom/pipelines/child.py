"""The processes below a keeper: one that has imported what every worker needs, and the worker it forks on demand.

Ops, decoders and models live in the worker and nowhere else, so what they do to a process (die, hang, fill the memory,
fork) is done to this one, and another is there after some 50 ms. The first process, the stem, imports our own modules
and nothing of a recipe's: it has no threads, no GPU and no weights that a fork could break. (Without it, each start
took 0.7 CPU-seconds of imports: 200 rows that kill their worker twice took minutes.)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import socket
import sys
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
FORK, WAIT = b"f", b"w"
"""What a keeper tells the stem: fork a worker (answer: its process id and its connection); wait for it (its status)."""
READY, DONE, RAISED = b"y", b"d", b"r"
"""First byte of a worker's answer; what follows is pickled: nothing, records, or an exception."""
NUMBER = 8
"""Bytes of a process id or a status."""


def main(control: int, desk: int, parent: int) -> None:
    """Be the stem until the keeper is gone.

    Args:
        control: file descriptor of the socket that the keeper speaks through.
        desk: file descriptor of the shared memory, see `Desk`.
        parent: process id of the keeper.
    """
    _die_with(parent)
    keeper = socket.socket(fileno=control)
    if sys.platform == "linux":  # elsewhere a fork after these imports is not safe
        import nextloom.pipelines.worker  # noqa: F401

    pid = 0
    while order := keeper.recv(1):
        if order == FORK:
            theirs, ours = socket.socketpair()
            me = os.getpid()
            pid = os.fork()
            if pid == 0:
                keeper.close()
                theirs.close()
                _die_with(me)
                _work(Connection(ours.detach()), desk)
                os._exit(0)
            ours.close()
            socket.send_fds(keeper, [pid.to_bytes(NUMBER, "little")], [theirs.fileno()])
            theirs.close()
        elif order == WAIT:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            keeper.sendall(status.to_bytes(NUMBER, "little", signed=True))


def _work(connection: Connection, desk: int) -> None:
    """Be the worker: set up, then a chunk at a time, until the connection ends."""
    os.setsid()
    if sys.platform == "linux":
        _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what an op starts stays below this process, also a daemon
    forked: list[bool] = []
    os.register_at_fork(after_in_child=lambda: forked.append(True))

    def answer(kind: bytes, value: Any = None) -> None:
        if forked:  # an op forked and both came back; the first process answers
            os._exit(1)
        connection.send_bytes(kind + _dumps(value))

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        work, paths = pickle.loads(connection.recv_bytes())
        sys.path.extend(path for path in paths if path not in sys.path)  # last: they replace no module
        try:
            from nextloom.pipelines.desk import Desk
            from nextloom.pipelines.worker import Worker

            tasks, rows = pickle.loads(work)
            worker = Worker(tasks, rows, Desk(desk))
        except Exception as error:
            return answer(RAISED, error)
        import pyarrow as pa

        answer(READY)
        while True:
            chunk = pa.ipc.open_stream(connection.recv_bytes()).read_all()
            try:
                records = worker(chunk).to_pylist()
            except Exception as error:
                answer(RAISED, error)
            else:
                answer(DONE, records)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _dumps(value: Any) -> bytes:
    """Pickle of an answer; an exception that cannot be pickled and opened again goes as its text."""
    try:
        data = pickle.dumps(value)
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(value).__name__}: {value}"))
