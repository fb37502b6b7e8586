"""Daft: a row function over paths.  python peer_daft.py FOLDER raise|ignore"""

import json
import sys
from pathlib import Path

import daft
from kernels import score

paths = sorted(str(p) for p in Path(sys.argv[1]).iterdir())


@daft.func(return_dtype=daft.DataType.string(), on_error=sys.argv[2], use_process=True)
def scored(path: str) -> str:
    return json.dumps(score(path))


found = daft.from_pydict({"path": paths}).with_column("score", scored(daft.col("path"))).to_pydict()["score"]
print(json.dumps({"rows": len(paths), "values": sum(value is not None for value in found)}))
