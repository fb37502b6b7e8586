"""Daft: a row function over paths.  python peer_daft.py FOLDER raise|log OUT

`raise` is its default; `log` logs the error and makes the value null, so that no row says why. Daft takes every CPU it
may use, hence the two here. OUT gets {"version", "values": rows with a value, "reasons": rows with an error}.
"""

import importlib.metadata
import json
import os
import sys
from pathlib import Path

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])

import daft  # noqa: E402  (counts the CPUs when imported)
from kernels import score  # noqa: E402

folder, way, out = sys.argv[1:]


@daft.func(return_dtype=daft.DataType.string(), on_error=None if way == "raise" else way)
def scored(path: str) -> str:
    return json.dumps(score(path))


paths = sorted(str(p) for p in Path(folder).iterdir())
found = daft.from_pydict({"path": paths}).with_column("score", scored(daft.col("path"))).to_pydict()["score"]
values = sum(value is not None for value in found)
Path(out).write_text(json.dumps({"version": importlib.metadata.version("daft"), "values": values, "reasons": 0}))
