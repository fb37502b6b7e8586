"""An export from the first row to the manifest: shard by shard, and on from the last whole one after a kill.

A shard is the next rows in the order of ids, up to a size or a number. Its record (rows, ids, digest, failures) is
written just before it appears, so a shard that is there under its record is never written again, and one that is not
is made of the same rows. rows = written + failed, or the export does not end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from nextloom import __version__
from nextloom.errors import UserError
from nextloom.op import error_value
from nextloom.pipelines.export.hugging_face import HuggingFaceFormat
from nextloom.pipelines.export.keys import KeysFormat
from nextloom.pipelines.export.parquet import ParquetFormat
from nextloom.pipelines.export.place import ERRORS, MANIFEST, OWN, Place
from nextloom.pipelines.export.rows import Chosen, Sample
from nextloom.pipelines.export.webdataset import WebDatasetFormat

LAYOUT = 1
"""Bumped when the same rows are written otherwise."""
SHARD_MB = 256

Format = WebDatasetFormat | ParquetFormat | KeysFormat
FORMATS: dict[str, type[Format]] = {
    "webdataset": WebDatasetFormat,
    "parquet": ParquetFormat,
    "hf": HuggingFaceFormat,
    "keys": KeysFormat,
}
"""Name -> what writes it: `begin`, `add` and `end` of one shard after the other."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is written, and how large the pieces are; part of an export's identity."""

    to: str
    shard_mb: float = SHARD_MB
    """Megabytes (2^20 bytes) of original bytes after which a shard ends."""
    shard_rows: int | None = None
    """Rows after which a shard ends. Default: 10,000; of `keys` a million."""
    frames: Literal["refuse", "png"] = "refuse"
    """What becomes of a row that is one frame of an animation: it has no file of its own."""


@dataclass(slots=True)
class Record:
    """One shard."""

    name: str | None
    """None where every row of it failed."""
    first: int
    """Number of its first row in the release."""
    end: int
    """Number of the row behind its last."""
    rows: int = 0
    """Rows written."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """What an export holds in the end."""

    folder: str
    to: str
    release: str
    rows: int
    """Of the release: written + failed."""
    written: int
    failed: int
    shards: int
    made: int
    """Shards written by this call."""
    size: int
    """Bytes of all shards."""
    manifest: str
    errors: str | None
    """File of the failed rows."""


def export(
    chosen: Chosen, folder: str | os.PathLike[str], options: Options, tell: Callable[[int, int], None] | None = None
) -> Summary:
    """Write the rows of a release to a folder; going on where an earlier call for the same ended.

    Args:
        chosen: the release, and its columns.
        folder: not there, empty, or holding this very export.
        options: format and sizes.
        tell: called with (rows settled, rows failed) after each shard.

    Raises:
        UserError: the folder is another's, the format cannot hold these rows, or a lost shard can't be made as it was.
    """
    kind = FORMATS.get(options.to)
    if kind is None:
        raise UserError(f"unknown format {options.to!r}; known: {', '.join(FORMATS)}", where="--to")
    if options.shard_mb <= 0 or (options.shard_rows is not None and options.shard_rows <= 0):
        raise UserError("a shard holds more than nothing", where="--shard-mb, --shard-rows")
    if kind.needs_bytes:
        chosen.expect_bytes()
    rows = len(chosen.release.ids)
    with Place(folder, claim_of(chosen, options)) as place:
        writer = kind(chosen)
        records = list(_shards(place, chosen, options, writer, tell or (lambda *_: None)))
        made = sum(new for _, new in records)
        return _finish(place, chosen, options, [record for record, _ in records], rows, made, writer)


def claim_of(chosen: Chosen, options: Options) -> dict[str, Any]:
    """Identity of an export: equal claims give equal shards."""
    release = chosen.release
    return {
        "layout": LAYOUT,
        "to": options.to,
        "dataset": release.document["dataset"],
        "release": release.name,
        "digest": release.digest,
        "rows": len(release.ids),
        "columns": {name: str(each.type) for name, each in chosen.fields.items()},
        "shard_mb": options.shard_mb,
        "shard_rows": options.shard_rows,
        "frames": options.frames,
    }


def _shards(
    place: Place, chosen: Chosen, options: Options, writer: Format, tell: Callable[[int, int], None]
) -> Iterator[tuple[Record, bool]]:
    """Records of all shards in order, and whether this call wrote them."""
    rows, at = len(chosen.release.ids), 0
    source: _Source | None = None
    for number in range(rows + 1):
        if at >= rows:
            return
        stored = place.read(f"shards/{number:06d}.json")
        record = _record(stored, place, writer.pattern.format(number), at) if stored else None
        whole = record is not None and (record.name is None or place.size_of(record.name) == record.size)
        if record is None or not whole:
            if source is None or source.at != at:
                source = _Source(chosen, at, options, writer)
            made = _write(place, source, options, writer, number, record)
            if record is not None and made != record:
                raise UserError(
                    f"shard {record.name} is gone or cut off, and its rows give other bytes now",
                    where=place.path,
                    next="export into an empty folder",
                )
            record = made
        at = record.end
        tell(record.end - record.first, len(record.failed))
        yield record, not whole


def _record(stored: Any, place: Place, name: str, at: int) -> Record:
    """What a record says, once it is seen to be one of the shard called `name`, that begins at row `at`."""
    try:
        record = Record(**stored)
        if record.name in (name, None) and record.first == at < record.end and record.rows + len(record.failed) > 0:
            return record
    except TypeError:
        pass
    raise UserError(f"the record of {name} is damaged", where=place.path, next="export into an empty folder")


class _Source:
    """Rows from a number on; the one that did not fit into a shard is given again."""

    def __init__(self, chosen: Chosen, start: int, options: Options, writer: Format) -> None:
        self.at = start
        self._samples = chosen.samples(start, bytes_too=writer.needs_bytes, frames=options.frames == "png")
        self._held: Sample | None = None

    def peek(self) -> Sample | None:
        """The next row, or None behind the last."""
        if self._held is None:
            self._held = next(self._samples, None)
        return self._held

    def take(self) -> None:
        """Go on to the row behind it."""
        self._held = None
        self.at += 1


def _write(
    place: Place, source: _Source, options: Options, writer: Format, number: int, known: Record | None
) -> Record:
    """Write one shard: as many rows as fit, or those of a record that is known."""
    record = Record(writer.pattern.format(number), source.at, source.at)
    limit, most = int(options.shard_mb * 2**20), options.shard_rows or writer.rows
    size = 0
    with place.shard(record.name or "") as (sink, finish):
        writer.begin(sink)
        while sample := source.peek():
            _expect_own_bytes(sample)
            if known is not None and record.end >= known.end:
                break
            if sample.error is not None:
                record.failed.append({"id": sample.id, "key": sample.key, **error_value("export", sample.error)})
            else:
                length = len(sample.raw or b"")
                if record.rows and (record.rows >= most or size + length > limit):
                    break
                writer.add(sample)
                record.rows += 1
                size += length
            source.take()
            record.end = source.at
        writer.end()
        if record.rows:
            record.size, record.sha256 = sink.size, sink.digest()
        else:
            record.name = None
        if known is None or known == record:
            place.write(f"shards/{number:06d}.json", asdict(record))
            if record.rows:
                finish()
    return record


def _expect_own_bytes(sample: Sample) -> None:
    if sample.bare:
        raise UserError(
            f"{sample.key} is one frame of {sample.uri}, which has no bytes of its own",
            where="--rows",
            next="--frames png writes each as a PNG of its pixels; or export the rows they come from, or --to keys",
        )


def _finish(
    place: Place, chosen: Chosen, options: Options, records: list[Record], rows: int, made: int, writer: Format
) -> Summary:
    written, failed = sum(r.rows for r in records), [line for record in records for line in record.failed]
    if written + len(failed) != rows:
        raise AssertionError(f"{written} rows written and {len(failed)} failed, of {rows}")
    for name, data in getattr(writer, "beside", {}).items():
        place.put(name, data)
    place.write_errors(failed)
    shards = [
        {"name": r.name, "rows": r.rows, "failed": len(r.failed), "size": r.size, "sha256": r.sha256}
        for r in records
        if r.name
    ]
    release = chosen.release
    manifest = {
        **claim_of(chosen, options),
        "nextloom": __version__,
        "written": written,
        "failed": len(failed),
        "fingerprints": {step: column["fingerprint"] for step, column in release.columns.items()},
        "ids": [int(np.min(release.ids)), int(np.max(release.ids))],
        "shards": shards,
    }
    if place.read(MANIFEST) != manifest:
        place.write(MANIFEST, manifest)
    own = f"{place.path}/{OWN}"
    return Summary(
        place.path,
        options.to,
        release.name,
        rows,
        written,
        len(failed),
        len(shards),
        made,
        sum(r.size for r in records),
        f"{own}/{MANIFEST}",
        f"{own}/{ERRORS}" if failed else None,
    )
