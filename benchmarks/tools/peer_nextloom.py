"""NextLoom's own line: `nextloom run` on a recipe of the five scorers.  python peer_nextloom.py FOLDER default OUT

OUT gets {"version", "values": rows with a value in every step, "reasons": other rows whose every step without a value
has an error that says why}, counted in the tables that the run wrote.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

from kernels import STEPS

from curation import run
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files


def main(folder: str, out: str) -> None:
    root = Path(out).with_suffix(".root")
    run(folder, str(root))
    dataset = Dataset(str(root / "datasets" / "bench"))
    values: dict[int, int] = {}
    settled: dict[int, int] = {}
    for step in STEPS:
        table = dataset.column(step, dataset.receipt(step)["fingerprint"])
        for row in read_files(table.uri, table.files(), ["id", "error"]).to_pylist():
            sound, why = row["error"] is None, bool(row["error"] and row["error"]["type"] and row["error"]["message"])
            values[row["id"]] = values.get(row["id"], 0) + sound
            settled[row["id"]] = settled.get(row["id"], 0) + (sound or why)
    whole = sum(count == len(STEPS) for count in values.values())
    reasons = sum(count == len(STEPS) for count in settled.values()) - whole
    told = {"version": importlib.metadata.version("nextloom"), "values": whole, "reasons": reasons}
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3])
