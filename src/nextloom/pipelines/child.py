"""The process that runs rows: a child of a keeper, which watches it and starts another when it dies.

Ops, decoders and models live here and nowhere else, so what they do to a process (die, hang, fill the memory, fork)
is done to this one. It is told chunks and answers with records of the files it wrote.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
READY, DONE, RAISED = b"y", b"d", b"r"
"""First byte of an answer; what follows is pickled: nothing, records, or an exception."""


def main(channel: int, desk: int, parent: int) -> None:
    """Serve chunks until the keeper is gone.

    Args:
        channel: file descriptor of the connection.
        desk: file descriptor of the shared memory, see `Desk`.
        parent: process id of the keeper.
    """
    _bind_to(parent)
    connection = Connection(channel)
    forked: list[bool] = []
    os.register_at_fork(after_in_child=lambda: forked.append(True))

    def answer(kind: bytes, value: Any = None) -> None:
        if forked:  # an op forked and both came back; the first process answers
            os._exit(1)
        connection.send_bytes(kind + _dumps(value))

    work, paths = pickle.loads(connection.recv_bytes())
    sys.path.extend(path for path in paths if path not in sys.path)  # last: they replace no module
    try:
        from nextloom.pipelines.desk import Desk
        from nextloom.pipelines.worker import Worker

        tasks, rows = pickle.loads(work)
        worker = Worker(tasks, rows, Desk(desk))
    except Exception as error:
        answer(RAISED, error)
        return
    import pyarrow as pa

    answer(READY)
    while True:
        try:
            chunk = pa.ipc.open_stream(connection.recv_bytes()).read_all()
        except EOFError:
            return
        try:
            records = worker(chunk).to_pylist()
        except Exception as error:
            answer(RAISED, error)
        else:
            answer(DONE, records)


def _bind_to(parent: int) -> None:
    """Die with the keeper; and keep what ops start below this process, also what turns into a daemon."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _dumps(value: Any) -> bytes:
    """Pickle of an answer; an exception that cannot be pickled and opened again goes as its text."""
    try:
        data = pickle.dumps(value)
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(value).__name__}: {value}"))
