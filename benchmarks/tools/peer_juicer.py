"""Data-Juicer: a mapper of one row, default settings.  python peer_juicer.py FOLDER default"""

import json
import sys
from pathlib import Path

from data_juicer.core.data import NestedDataset
from data_juicer.ops.base_op import Mapper
from kernels import score


class Score(Mapper):
    """The five scorers."""

    def process_single(self, sample):
        sample["score"] = json.dumps(score(sample["image"]))
        return sample


paths = sorted(str(p) for p in Path(sys.argv[1]).iterdir())
rows = [{"text": "", "image": path, "score": ""} for path in paths]
out = NestedDataset.from_list(rows).process(Score(num_proc=2))
print(json.dumps({"rows": len(paths), "values": sum(bool(row["score"]) for row in out)}))
