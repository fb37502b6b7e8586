"""``--to parquet``: Parquet files with `key`, `image` (the bytes as they were found), `caption`, `sidecar`, columns.

Chosen columns are called `step.field` and keep their types. Values are written in row groups of at most 100 rows or
64 MB, so that a reader of a few rows reads a few megabytes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from nextloom.pipelines.export.place import Sink
from nextloom.pipelines.export.rows import Chosen, Sample

GROUP_ROWS, GROUP_BYTES = 100, 64 * 2**20


class ParquetFormat:
    """Writes Parquet files with plain bytes."""

    pattern: ClassVar[str] = "part-{:06d}.parquet"
    needs_bytes: ClassVar[bool] = True
    rows: ClassVar[int] = 10_000
    """Most rows of a shard, unless told."""
    image_type: ClassVar[pa.DataType] = pa.binary()
    image_leaf: ClassVar[str] = "image"

    def __init__(self, chosen: Chosen) -> None:
        head = [("key", pa.string()), ("image", self.image_type), ("caption", pa.string()), ("sidecar", pa.string())]
        columns = [pa.field(name, each.type) for name, each in chosen.fields.items()]
        self.schema = pa.schema([*head, *columns], metadata=self.metadata())
        self._writer: pq.ParquetWriter | None = None
        self._held: list[dict[str, Any]] = []
        self._bytes = 0

    def metadata(self) -> dict[str, str]:
        """Of the schema."""
        return {}

    def image(self, sample: Sample) -> Any:
        """The value of the `image` column."""
        return sample.raw

    def begin(self, sink: Sink) -> None:
        """Start a shard."""
        binary = [name for name in self.schema.names if pa.types.is_binary(self.schema.field(name).type)]
        packed = [self.image_leaf, *binary]
        plain = [name for name in self.schema.names if name not in {"image", *binary}]
        self._writer = pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"),
            self.schema,
            compression={self.image_leaf: "NONE"} | {n: "ZSTD" for n in self.schema.names if n != "image"},
            use_dictionary=[name for name in plain if not pa.types.is_nested(self.schema.field(name).type)],
            write_statistics=[name for name in self.schema.names if name not in packed and name != "image"],
            write_page_checksum=True,
        )

    def add(self, sample: Sample) -> None:
        """Add a row."""
        row = {"key": sample.key, "image": self.image(sample), "caption": sample.caption, "sidecar": sample.sidecar}
        self._held.append(row | sample.values)
        self._bytes += len(sample.raw or b"")
        if len(self._held) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            assert self._writer is not None
            self._writer.write_table(pa.Table.from_pylist(self._held, schema=self.schema))
        self._held, self._bytes = [], 0

    def end(self) -> None:
        """Finish the shard."""
        assert self._writer is not None
        self._flush()
        self._writer.close()
