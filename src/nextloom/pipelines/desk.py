"""What a worker is at, written where its keeper can read it: one slot of shared memory per thread.

A worker that hangs in C code, or is gone, cannot be asked which row it was at. So each thread notes it before it
begins: a few numbers into memory that both processes have mapped, about a microsecond per note.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SLOTS = 64
"""Threads of a worker that are seen; one more is not watched."""
_SLOT = struct.Struct("<qdqqq")
SIZE = SLOTS * _SLOT.size

FETCH, DECODE = "fetch", "decode"


@dataclass(frozen=True, slots=True)
class Note:
    """One thread's work: `began` on the clock that all processes share, the first and last id, and what is done.

    `code` >= 0 is the number of a task whose op runs; below 0 it is a fetch or a decode, see `load_code`.
    """

    slot: int
    began: float
    first: int
    last: int
    code: int


def load_code(origin: int, stage: str) -> int:
    """Code of fetching or decoding what comes from place number `origin`."""
    return -(2 * origin + (1 if stage == FETCH else 2))


def load_of(code: int) -> tuple[int, str]:
    """(origin, stage) of a code below 0."""
    return (-code - 1) // 2, FETCH if -code % 2 else DECODE


class Desk:
    """Slots in a mapped file; without a file the notes go nowhere, as in a worker that nobody watches."""

    def __init__(self, file: int | None = None) -> None:
        self._memory = bytearray(SIZE) if file is None else mmap.mmap(file, SIZE)
        self._local, self._lock, self._taken = threading.local(), threading.Lock(), 0

    @contextmanager
    def at(self, code: int, first: int, last: int) -> Iterator[None]:
        """Note that this thread is at rows `first` to `last`, until the block ends."""
        slot = self._slot()
        if slot is None:
            yield
            return
        _SLOT.pack_into(self._memory, slot, 1, time.monotonic(), first, last, code)
        try:
            yield
        finally:
            _SLOT.pack_into(self._memory, slot, 0, 0.0, 0, 0, 0)

    def clear(self) -> None:
        """Nobody is at anything: before a new process takes the desk."""
        self._memory[:] = bytes(SIZE)

    def notes(self) -> list[Note]:
        """What the threads are at. A note that is being written this moment is left out: it has only begun."""
        found = []
        for slot in range(SLOTS):
            if not self._memory[slot * _SLOT.size]:
                continue
            busy, *values = _SLOT.unpack_from(self._memory, slot * _SLOT.size)
            if busy == 1 and _SLOT.unpack_from(self._memory, slot * _SLOT.size) == (busy, *values):
                found.append(Note(slot, *values))
        return found

    def _slot(self) -> int | None:
        if not hasattr(self._local, "slot"):
            with self._lock:
                number, self._taken = self._taken, self._taken + 1
            self._local.slot = number * _SLOT.size if number < SLOTS else None
        return self._local.slot
