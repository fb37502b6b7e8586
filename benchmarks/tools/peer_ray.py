"""Ray Data's own reader and map.  python peer_ray.py FOLDER raise|skip"""

import json
import sys
from pathlib import Path

import ray
from kernels import score

count = sum(1 for _ in Path(sys.argv[1]).iterdir())
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
context = ray.data.DataContext.get_current()
context.enable_progress_bars = False
if sys.argv[2] == "skip":
    context.max_errored_blocks = -1
data = ray.data.read_binary_files(sys.argv[1], include_paths=True, override_num_blocks=16)
rows = data.map(lambda row: {"path": row["path"], "score": json.dumps(score(row["path"], row["bytes"]))}).take_all()
print(json.dumps({"rows": count, "values": len(rows)}))
