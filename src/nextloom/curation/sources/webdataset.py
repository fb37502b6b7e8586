"""Source `webdataset`: samples in uncompressed tars, each picture a byte range of its shard.

    source: {op: webdataset, path: "s3://bucket/{00000..00127}.tar"}

Members of equal names up to the first dot (folder included) are one sample. Its picture is the row, under the
sample's key; of several, each is a row under `key.suffix`. `.txt` is the caption; `.json` the sidecar, whole, and its
`caption` or `text` the caption where there is no `.txt`; `.cls` goes into the sidecar as `cls`. Other members stay in
the tar. A name is only ever a key: `../x.jpg` and `/x.jpg` are rows of those keys, nothing is unpacked.

A listing reads headers and small texts, no picture. What would go missing is a failed row: a sample without picture,
a second member of the same name, and what lies behind the place where a shard was cut off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa

from nextloom.content import BROKEN
from nextloom.curation.sources.files import SUFFIXES, caption_of
from nextloom.curation.sources.shards import Shard, ShardSource, utf8
from nextloom.curation.sources.source import Item, item_table
from nextloom.curation.sources.tar import Damage, Member, members, open_shard
from nextloom.untrusted import MAX_SIDECAR

TEXTS = ("txt", "json", "cls")


class WebDataset(ShardSource):
    """Samples of tars as the webdataset library writes them."""

    name: ClassVar[str] = "webdataset"
    suffixes: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

    pictures: tuple[str, ...] = SUFFIXES
    """Suffixes that make a member a picture, in lower case."""

    def look(self, shard: Shard) -> pa.Table:
        """As in `ShardSource`."""
        with open_shard(shard.uri, self.door()) as file:
            return item_table(self._items(shard, file))

    def _items(self, shard: Shard, file: BinaryIO) -> Iterator[Item]:
        samples: dict[str, _Sample] = {}
        last, damage = None, ""
        try:
            for member in members(file, shard.uri):
                named = member.sample()
                if named is None:
                    continue
                key, suffix = named
                last = samples.setdefault(key, _Sample(key))
                if suffix in last.seen:
                    told = f"{BROKEN}{member.name} stands twice in this tar; this is the second"
                    yield Item(f"{member.name}@{member.offset}", shard.uri, 0, shard.stamp, member=told)
                    continue
                last.seen.append(suffix)
                if suffix in TEXTS:
                    last.texts[suffix] = _text(member, file, last.problems)
                elif f".{suffix.rpartition('.')[2]}" in self.pictures:
                    last.pictures[suffix] = member
        except Damage as error:
            damage = str(error)
        if damage and last:
            if last.pictures:
                last.problems.append("the shard is cut off behind this picture; its sidecars may be missing")
            else:
                del samples[last.key]  # its picture lies behind the cut, which is a row
        for sample in samples.values():
            yield from sample.items(shard)
        if damage:
            yield Item(shard.name, shard.uri, 0, shard.stamp, member=f"{BROKEN}{damage}")


@dataclass(slots=True)
class _Sample:
    """What a tar holds under one key."""

    key: str
    seen: list[str] = field(default_factory=list)
    pictures: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, str | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def items(self, shard: Shard) -> Iterator[Item]:
        caption, sidecar = self.told()
        if not self.pictures:
            told = f"{BROKEN}no picture in this sample, only {' '.join('.' + suffix for suffix in self.seen)}"
            yield Item(self.key, shard.uri, 0, shard.stamp, caption, sidecar, member=told)
        for suffix, member in self.pictures.items():
            key = self.key if len(self.pictures) == 1 else f"{self.key}.{suffix}"
            at: dict[str, Any] = {"member": BROKEN + member.problem} if member.problem else {"offset": member.offset}
            yield Item(key, shard.uri, member.size, shard.stamp, caption, sidecar, **at)

    def told(self) -> tuple[str | None, str | None]:
        """Caption and sidecar JSON; what cannot be read is told in the latter as `error`."""
        problems = list(self.problems)
        caption, sidecar, cls = (self.texts.get(suffix) for suffix in TEXTS)
        caption = (caption or "").strip() or None
        data: Any = sidecar
        if sidecar is not None:
            try:
                data = json.loads(sidecar)
            except (ValueError, RecursionError) as error:
                problems.append(f"{self.key}.json: not JSON: {error}")
            else:
                caption = caption or caption_of(data)
                if caption and utf8(caption) != caption:  # JSON can spell half of a character: "\ud83d"
                    problems.append(f"{self.key}.json: the caption holds half of a surrogate pair")
                    caption = utf8(caption)
        if cls is not None:
            label = int(cls) if cls.strip().isdecimal() else cls.strip()
            inside = isinstance(data, dict) and "cls" not in data
            whole = {**data, "cls": label} if inside else {"cls": label} | ({} if sidecar is None else {"json": data})
            sidecar = json.dumps(whole)
        if problems:
            whole = {"error": "; ".join(problems)} | ({"json": sidecar} if sidecar is not None else {})
            sidecar = json.dumps(whole, ensure_ascii=False)
        return caption, sidecar


def _text(member: Member, file: BinaryIO, problems: list[str]) -> str | None:
    if member.problem or member.size > MAX_SIDECAR:
        problems.append(f"{member.name}: {member.problem or f'{member.size:,} bytes are too long for a sidecar'}")
        return None
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"{member.name}: not UTF-8 at byte {error.start}")
        return None
