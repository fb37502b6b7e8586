"""Ray Data's own readers and map.  python peer_ray.py FOLDER images|images_skip|files|files_skip OUT

`images` is `read_images`, which decodes; `files` is `read_binary_files` with a plain map that decodes. An error ends
the job by default; `skip` sets `max_errored_blocks=-1`, which drops the block of the row. OUT gets {"version",
"values": rows with a value, "reasons": rows with an error}.
"""

import json
import sys
from pathlib import Path

import ray
from kernels import score, score_pixels

folder, way, out = sys.argv[1:]
reader, _, skip = way.partition("_")


def scored_image(row: dict) -> dict:
    raw = Path(row["path"]).read_bytes()  # a scorer asks its header for the number of channels
    return {"path": row["path"], "score": json.dumps(score_pixels(row["path"], raw, row["image"]))}


def scored_file(row: dict) -> dict:
    return {"path": row["path"], "score": json.dumps(score(row["path"], row["bytes"]))}


ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
context = ray.data.DataContext.get_current()
context.enable_progress_bars = False
if skip:
    context.max_errored_blocks = -1
if reader == "images":
    rows = ray.data.read_images(folder, mode="RGB", include_paths=True).map(scored_image).take_all()
else:
    rows = ray.data.read_binary_files(folder, include_paths=True).map(scored_file).take_all()
Path(out).write_text(json.dumps({"version": ray.__version__, "values": len(rows), "reasons": 0}))
