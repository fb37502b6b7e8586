"""``--to webdataset``: uncompressed tars, a sample per row: the image, `.txt` with its caption, `.json` with the rest.

    cat.jpg  cat.txt  cat.json        {"key": "a/cat.jpg", "sidecar": {...}, "columns": {"stats": {"width": 640}}}

Bytes are as they were found. `.txt` is absent where there is no caption. Columns of bytes (tokens) that were chosen
are members of their own: `cat.tokens.target.bin`. Headers hold no time and no user, so equal rows give equal tars.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any, ClassVar

import pyarrow as pa

from nextloom.curation.sources.jsontext import dumps
from nextloom.pipelines.export.names import Names
from nextloom.pipelines.export.place import Sink
from nextloom.pipelines.export.rows import Chosen, Sample
from nextloom.pipelines.export.suffix import suffix_of


class WebDatasetFormat:
    """Writes tars."""

    pattern: ClassVar[str] = "shard-{:06d}.tar"
    needs_bytes: ClassVar[bool] = True
    rows: ClassVar[int] = 10_000
    """Most rows of a shard, unless told."""

    def __init__(self, chosen: Chosen) -> None:
        self._names = Names(chosen.keys())
        self._binary = {name for name, each in chosen.fields.items() if pa.types.is_binary(each.type)}
        self._tar: tarfile.TarFile | None = None

    def begin(self, sink: Sink) -> None:
        """Start a shard."""
        self._tar = tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8")  # type: ignore[arg-type]

    def add(self, sample: Sample) -> None:
        """Add the members of a row."""
        assert sample.raw is not None
        name = self._names.of(sample.key)
        self._member(f"{name}.{suffix_of(sample.raw, sample.key, sample.uri)}", sample.raw)
        if sample.caption is not None:
            self._member(f"{name}.txt", sample.caption.encode())
        self._member(f"{name}.json", self._told(sample).encode())
        for column in self._binary:
            if (value := sample.values[column]) is not None:
                self._member(f"{name}.{column}.bin", value)

    def _told(self, sample: Sample) -> str:
        columns: dict[str, dict[str, Any]] = {}
        for name, value in sample.values.items():
            step, _, inner = name.partition(".")
            if name not in self._binary:
                columns.setdefault(step, {})[inner] = value
        told: dict[str, Any] = {"key": sample.key} | ({"columns": columns} if columns else {})
        if sample.sidecar is None:
            return dumps(told)
        try:
            return dumps(told | {"sidecar": json.loads(sample.sidecar)})
        except (ValueError, RecursionError):  # no JSON, or nested too deeply: its text
            return dumps(told | {"sidecar": sample.sidecar})

    def _member(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))

    def end(self) -> None:
        """Finish the shard."""
        assert self._tar is not None
        self._tar.close()
