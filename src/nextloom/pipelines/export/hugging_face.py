"""``--to hf``: a folder that ``datasets.load_dataset(DIR)`` opens, and that can be pushed to a hub as it is.

Parquet files as in `parquet`, but `image` is `{bytes, path}`, which the features in the schema call an Image, and a
README.md that says which files are the split `train`.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pyarrow as pa

from nextloom.pipelines.export.names import escaped, stem
from nextloom.pipelines.export.parquet import ParquetFormat
from nextloom.pipelines.export.rows import Sample
from nextloom.pipelines.export.suffix import suffix_of

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.parquet
---
"""


class HuggingFaceFormat(ParquetFormat):
    """Writes Parquet files whose images the `datasets` library knows as such."""

    pattern: ClassVar[str] = "train-{:06d}.parquet"
    image_type: ClassVar[pa.DataType] = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image_leaf: ClassVar[str] = "image.bytes"
    beside: ClassVar[dict[str, bytes]] = {"README.md": CARD.encode()}

    def metadata(self) -> dict[str, str]:
        """The features, as the library keeps them in a schema."""
        return {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}

    def image(self, sample: Sample) -> Any:
        """Bytes, and a file name for them that is safe whatever the key is."""
        assert sample.raw is not None
        name = escaped(stem(sample.key).rpartition("/")[2], sample.key)
        return {"bytes": sample.raw, "path": f"{name}.{suffix_of(sample.raw, sample.key, sample.uri)}"}
