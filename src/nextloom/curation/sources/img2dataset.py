"""Source `img2dataset`: what that downloader wrote, in its webdataset, parquet or files layout.

    source: {op: img2dataset, path: laion-256}

Its `NNNNN.parquet` is the truth about a shard: one row a link, with the key that names the picture in `NNNNN.tar` (or
in the folder `NNNNN`, or in a column of bytes). That row, whole, is the sidecar. A link that failed there is a
failed row here, with its `status` and `error_message`; so is a picture that ought to be there and is not, and one
that is there without a row is a row. A shard without `NNNNN_stats.json` is not finished: one failed row until it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from pydantic import PrivateAttr

from nextloom.arrow_files import open_parquet
from nextloom.content import BROKEN
from nextloom.curation.sources import jsontext
from nextloom.curation.sources.finding import MISSING, Shard, find_shards
from nextloom.curation.sources.roles import expect_once, is_picture
from nextloom.curation.sources.shards import ASKERS, Refusal, ShardSource, failed_unit
from nextloom.curation.sources.suffixes import SUFFIXES
from nextloom.curation.sources.tar import Damage, members, open_shard
from nextloom.io import filesystem, is_uri
from nextloom.op import digest
from nextloom.store.dataset import ITEM
from nextloom.untrusted import Door, NotAllowed, stamp

PARTS = (".parquet", ".tar", "_stats.json")
NEEDED = ("key", "status")
PLACE = pa.schema([("key", pa.string()), ("uri", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
"""Where pictures are."""


class Img2Dataset(ShardSource):
    """Output of img2dataset (https://github.com/rom1504/img2dataset), of any version that writes `status`."""

    name: ClassVar[str] = "img2dataset"
    suffixes: ClassVar[tuple[str, ...]] = PARTS

    _parts: dict[str, str] = PrivateAttr(default_factory=dict)

    def find(self, path: str) -> Iterable[Shard]:
        """Shards by their number, such as ``00000``, whichever of their files `path` names."""
        listed = find_shards(path, PARTS, self.door())
        stems: dict[str, dict[str, Shard]] = {}
        for shard in listed:
            part = next((part for part in PARTS if shard.name.endswith(part)), None)
            if part is not None:
                stems.setdefault(shard.name.removesuffix(part), {})[part] = shard
        if all(s.stamp for s in listed) and any(PARTS[2] in p for p in stems.values()):  # a folder tells of all files
            stamps = {stem: {p: s.stamp for p, s in parts.items()} for stem, parts in stems.items()}
        elif self.immutable:
            stamps = {stem: {} for stem in stems}
        else:
            with ThreadPoolExecutor(ASKERS) as pool:
                stamps = dict(
                    zip(stems, pool.map(_stamps, [_uri(parts, ".parquet") for parts in stems.values()]), strict=True)
                )
        for stem, parts in stems.items():
            told = "/".join(stamps[stem].get(part, MISSING) for part in PARTS) if stamps[stem] else ""
            yield Shard(stem, _uri(parts, ".parquet"), told)

    def look(self, shard: Shard) -> pa.Table:
        """As in `ShardSource`."""
        have, door = _stamps(shard.uri), self.door()
        if have["_stats.json"] == MISSING or have[".parquet"] == MISSING:
            absent = "_stats.json" if have["_stats.json"] == MISSING else ".parquet"
            told = f"{BROKEN}not finished: there is no {shard.name}{absent}; run img2dataset again"
            return failed_unit(shard, told)
        with door.open(shard.uri).file as file:
            table = open_parquet(file)
            schema = table.schema_arrow
            expect_once(schema)
            if missing := [name for name in NEEDED if name not in schema.names]:
                raise Refusal(
                    f"found columns {', '.join(schema.names)}; expected {' and '.join(missing)} of img2dataset",
                    "for another table: {op: table}",
                )
            cells = [field.name for field in schema if is_picture(field.type)]
            rows = table.read([name for name in schema.names if name not in cells], use_threads=False)
        rows = rows.set_column(rows.column_names.index("key"), "key", rows["key"].cast(pa.string()))
        if have[".tar"] != MISSING:
            return _of_places(rows, shard, have, *_in_tar(beside(shard.uri, ".tar"), door), "the tar")
        if cells:
            return _of_cells(rows, shard, have, cells[0])
        folder, inside = _in_folder(shard.uri, door)
        if folder:
            return _of_places(rows, shard, have, inside, "", "the folder")
        raise Refusal(f"found {shard.name}.parquet without pictures", "only webdataset, parquet and files are read")


def _uri(parts: dict[str, Shard], part: str) -> str:
    """URI of one file of a shard, from that of another."""
    known, shard = next(iter(parts.items()))
    return beside(shard.uri, part, known)


def beside(uri: str, part: str, known: str = ".parquet") -> str:
    """`uri`, which ends in `known`, with `part` in its place."""
    address, mark, query = uri.partition("?") if is_uri(uri) else (uri, "", "")
    return address.removesuffix(known) + part + mark + query


def _stamps(uri: str) -> dict[str, str]:
    """Part -> stamp, of the files of one shard; `uri` is its Parquet file."""
    system, inner = filesystem(uri)
    stem = inner.removesuffix(".parquet")
    infos = system.get_file_info([stem + part for part in PARTS])
    found = (MISSING if info.type != pafs.FileType.File else stamp(system, info) for info in infos)
    return dict(zip(PARTS, found, strict=True))


def _in_tar(uri: str, door: Door) -> tuple[pa.Table, str]:
    """Pictures of a tar by key, and what is wrong with it."""
    places, damage = [], ""
    with open_shard(uri, door) as file:
        try:
            for member in members(file, uri):
                key, suffix = member.sample() or ("", "")
                if f".{suffix}" in SUFFIXES and not member.problem:
                    places.append({"key": key, "uri": uri, "offset": member.offset, "size": member.size})
        except Damage as error:
            damage = str(error)
    return pa.Table.from_pylist(places, schema=PLACE), damage


def _in_folder(uri: str, door: Door) -> tuple[bool, pa.Table]:
    """Whether there is a folder of pictures, and they by key."""
    system, inner = filesystem(uri)
    if not is_uri(uri) and not door.holds(inner.removesuffix(".parquet")):
        raise NotAllowed("a link to a folder outside of the source's; name that in source.roots to follow it")
    infos = system.get_file_info(pafs.FileSelector(inner.removesuffix(".parquet"), allow_not_found=True))
    places = []
    for info in infos:
        key, _, suffix = info.base_name.partition(".")
        if f".{suffix.lower()}" in SUFFIXES:
            places.append(
                {
                    "key": key,
                    "uri": beside(uri, f"/{quote(info.base_name) if is_uri(uri) else info.base_name}"),
                    "offset": None,
                    "size": info.size,
                }
            )
    return bool(infos), pa.Table.from_pylist(places, schema=PLACE)


def _told(rows: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray, pa.ChunkedArray]:
    """Whether each link was downloaded, why not, and its sidecar."""
    good = pc.fill_null(pc.equal(rows["status"], "success"), False)
    why = rows["error_message"].cast(pa.string()) if "error_message" in rows.column_names else rows["status"]
    status = pc.fill_null(rows["status"], "no status")
    reason = pc.binary_join_element_wise(BROKEN, status, ": ", pc.fill_null(why, "no message"), "")
    sidecar = jsontext.objects(rows)
    assert sidecar is not None
    return good, reason, sidecar


def _caption(rows: pa.Table) -> pa.ChunkedArray:
    if "caption" not in rows.column_names or not jsontext.is_text(rows["caption"].type):
        return pa.chunked_array([pa.nulls(rows.num_rows, pa.string())])
    text = pc.utf8_trim_whitespace(rows["caption"].cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _of_cells(rows: pa.Table, shard: Shard, have: dict[str, str], column: str) -> pa.Table:
    good, reason, sidecar = _told(rows)
    numbers = pa.chunked_array([pa.array([f"{column}#{n}" for n in range(rows.num_rows)], pa.string())])
    member = pc.if_else(good, numbers, reason)
    return _items(rows["key"], shard.uri, None, None, member, have[".parquet"], _caption(rows), sidecar)


def _of_places(
    rows: pa.Table, shard: Shard, have: dict[str, str], places: pa.Table, damage: str, where: str
) -> pa.Table:
    """Rows of a shard whose pictures lie in a tar or a folder, in the order of its Parquet file."""
    good, reason, sidecar = _told(rows)
    ours = pa.table({"key": rows["key"], "good": good, "reason": reason, "caption": _caption(rows), "sidecar": sidecar})
    ours = ours.append_column("at", pa.array(range(rows.num_rows), pa.int64()))
    first = places.group_by("key", use_threads=False).aggregate([(n, "first") for n in PLACE.names[1:]])
    first = first.rename_columns([name.removesuffix("_first") for name in first.column_names])
    both = ours.join(first, keys="key", join_type="full outer", use_threads=False).sort_by(
        [("at", "ascending"), ("key", "ascending")]
    )
    lost = f"{BROKEN}its status is success, but it is not in {where}{f', which is {damage}' if damage else ''}"
    here = pc.is_valid(both["uri"])
    told = pc.is_valid(both["at"])
    member = pc.if_else(pc.and_(told, pc.invert(pc.fill_null(both["good"], False))), both["reason"], lost)
    use = pc.and_(here, pc.or_(pc.fill_null(both["good"], False), pc.invert(told)))
    nothing, none = pa.scalar(None, pa.string()), pa.scalar(None, pa.int64())
    return _items(
        both["key"],
        pc.if_else(use, both["uri"], shard.uri),
        pc.if_else(use, both["offset"], none),
        pc.if_else(use, both["size"], pa.scalar(0, pa.int64())),
        pc.if_else(use, nothing, member),
        f"{have['.parquet'] if have['.tar'] == MISSING else have['.tar']}+{digest(have['.parquet'], 8)}",
        both["caption"],
        both["sidecar"],
    )


def _items(key, uri, offset, size, member, version, caption, sidecar) -> pa.Table:
    count = len(key)
    columns = {
        "key": key,
        "unit": pa.nulls(count, pa.string()),
        "uri": pa.repeat(uri, count) if isinstance(uri, str) else uri,
        "offset": pa.nulls(count, pa.int64()) if offset is None else offset,
        "size": pa.repeat(0, count) if size is None else size,
        "member": member,
        "version": pa.repeat(version, count),
        "caption": caption,
        "sidecar": sidecar,
    }
    return pa.table({name: columns[name] for name in ITEM.names}).cast(ITEM)
