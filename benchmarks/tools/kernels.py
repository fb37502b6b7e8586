"""The five scorers of the curation benchmark on one picture, for any tool to call: NextLoom's own functions.

Imports nothing but the ops, so that another tool's environment needs little to run them. `BRISQUE_MODEL` names the
folder of the quality model where the package that ships it is not installed.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np

NEEDS = ("numpy>=2", "pyarrow>=21", "pillow>=11.3", "pi-heif", "opencv-python-headless", "pydantic>=2.9")
NEEDS += ("pyyaml", "obstore")
"""What an environment installs to import this."""
STEPS = {
    "stats": {"op": "image_stats"},
    "small": {"op": "image_stats", "sharpness_side": 64},
    "phash": {"op": "perceptual_hash"},
    "quality": {"op": "quality", "side": 128},
    "coarse": {"op": "quality", "side": 64},
}


@lru_cache
def ops() -> dict:
    """Step -> its op, ready."""
    from nextloom.curation.scores.image_stats import ImageStats
    from nextloom.curation.scores.perceptual_hash import PerceptualHash
    from nextloom.curation.scores.quality import Quality

    kinds = {"image_stats": ImageStats, "perceptual_hash": PerceptualHash, "quality": Quality}
    made = {}
    for name, fields in STEPS.items():
        more = {k: v for k, v in fields.items() if k != "op"}
        if fields["op"] == "quality" and "BRISQUE_MODEL" in os.environ:
            more["weights"] = os.environ["BRISQUE_MODEL"]
        made[name] = kinds[fields["op"]](**more)
        made[name].setup()
    return made


def score(path: str, raw: bytes | None = None) -> dict[str, object]:
    """Every value of one picture; raises where it cannot be read."""
    from nextloom import pixels

    raw = Path(path).read_bytes() if raw is None else raw
    return score_pixels(path, raw, pixels.decode(raw))


def score_pixels(path: str, raw: bytes, rgb: np.ndarray) -> dict[str, object]:
    """Every value of a decoded picture, (height, width, 3) uint8; of `raw` no more than the header is read."""
    from nextloom.op import Row

    row = Row(0, path, raw=raw, pixels=rgb)
    return {f"{name}.{k}": v for name, op in ops().items() for k, v in op.measure(row).items()}
