"""Draws that are hashes: numbers that look random and follow from names alone.

A stream of random numbers hands out values by the order of the calls, so a draw would change with the batch a row is
in, with its neighbours, with the number of workers, with a resume in the middle. A hash of what the draw is for (a
key, a seed, an epoch, a position) gives the same value in any order, process and machine, and any one of a billion
draws costs no more than the first.

    base = blake2b(names)              which stream
    draw = SplitMix64 output number `counter` of the generator that starts at `base`

Names are joined as text: 1 and "1" name the same stream, and no name may hold a NUL. Two purposes must not share all
their names; a first name that says the purpose keeps them apart. Not for secrets.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np


def hash64(counter: np.ndarray, *names: str | int) -> np.ndarray:
    """uint64 hashes in the stream called `names`, one per number in `counter` (integers, any shape)."""
    base = hashlib.blake2b("\0".join(map(str, names)).encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):
        x = np.frombuffer(base, "<u8")[0] + (counter.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(counter: np.ndarray, *names: str | int) -> np.ndarray:
    """float64 in [0, 1), in the shape of `counter`: the upper 53 bits of `hash64`."""
    return (hash64(counter, *names) >> np.uint64(11)).astype(np.float64) * 2.0**-53
