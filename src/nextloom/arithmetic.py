"""Float32 as written: no TF32 and no bfloat16 inside of float32 products.

torch lets cuDNN's convolutions use TF32 unless told otherwise (10 bits of 23), and a program may have asked for
faster products everywhere. Codes, teachers and trainings of `precision: fp32` are said to be float32, so they run
inside of this. The flags are the process's own: they are put back on leaving, and read by whatever else runs
meanwhile. The price on a GPU is the speed of TF32.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

AS_WRITTEN = "ieee"


def flags() -> list[Any]:
    """torch's places for the precision of float32 convolutions and products, of a GPU and of a CPU."""
    import torch

    backends: Any = torch.backends
    return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul]


@contextmanager
def float32_as_written() -> Generator[None, None, None]:
    """Float32 convolutions and products in float32 inside the block."""
    places = flags()
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = AS_WRITTEN
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
