"""Data-Juicer: a mapper of one row from a recipe.  python peer_juicer.py FOLDER default OUT

Its documentation has an op of one's own registered by name and a recipe that lists it; two processes by `np`.
`skip_op_error` stays at the default of recipes, true: a row that fails is logged and left out. OUT gets {"version",
"values": rows exported with a score, "reasons": rows with an error}.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

from data_juicer.ops.base_op import OPERATORS, Mapper
from kernels import score


@OPERATORS.register_module("score_mapper")
class ScoreMapper(Mapper):
    """The five scorers."""

    def process_single(self, sample):
        sample["score"] = json.dumps(score(sample["images"][0]))
        return sample


def main(folder: str, out: str) -> None:
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    place = Path(out).with_suffix(".juicer")
    place.mkdir()
    rows, exported, config = place / "rows.jsonl", place / "out.jsonl", place / "recipe.yaml"
    paths = sorted(map(str, Path(folder).iterdir()))
    rows.write_text("".join(json.dumps({"text": "", "images": [path], "score": ""}) + "\n" for path in paths))
    recipe = {"dataset_path": str(rows), "export_path": str(exported), "np": 2, "process": [{"score_mapper": {}}]}
    config.write_text(json.dumps(recipe))
    DefaultExecutor(init_configs(["--config", str(config)])).run()
    values = sum(bool(json.loads(line)["score"]) for line in exported.read_text().splitlines())
    told = {"version": importlib.metadata.version("py-data-juicer"), "values": values, "reasons": 0}
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3])
