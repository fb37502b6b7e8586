"""Source `webdataset`: samples in uncompressed tars, each picture a byte range of its shard.

    source: {op: webdataset, path: "s3://bucket/{00000..00127}.tar"}

Members of equal names up to the first dot (folder included) are one sample. Its picture is the row, under the
sample's key; of several, each is a row under `key.suffix`. `.txt` is the caption; `.json` the sidecar, whole, and its
`caption` or `text` the caption where there is no `.txt`; `.cls` goes into the sidecar as `cls`. Other members stay in
the tar, and are counted. Where names have dots of their own, `key: last_dot` reads them as they are meant; else the
row's sidecar names the texts that were passed over. `key: json` takes the key that a sample's `.json` states, as an
export of ours and img2dataset write it; a sample that states none, or one that is taken, is a failed row. A name is
only ever a key: `../x.jpg` and `/x.jpg` are rows of those keys, nothing is unpacked.

A listing reads headers and small texts, no picture. What would go missing is a failed row: a sample without picture,
a second member of the same name, and what lies behind the place where a shard was cut off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, ClassVar, Literal

import pyarrow as pa

from nextloom.content import BROKEN
from nextloom.curation.sources import captions, jsontext
from nextloom.curation.sources.finding import Shard, utf8
from nextloom.curation.sources.shards import ShardSource
from nextloom.curation.sources.source import Item, item_table
from nextloom.curation.sources.suffixes import SUFFIXES
from nextloom.curation.sources.tar import Damage, Member, members, open_shard
from nextloom.store.notices import Tally, with_notices
from nextloom.untrusted import MAX_SIDECAR

TEXTS = ("txt", "json", "cls")
PASSED_OVER = "passed_over"
"""Field of a sidecar that names texts of the sample that were not read."""


class WebDataset(ShardSource):
    """Samples of tars as the webdataset library writes them."""

    name: ClassVar[str] = "webdataset"
    suffixes: ClassVar[tuple[str, ...]] = (
        *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    )

    pictures: tuple[str, ...] = SUFFIXES
    """Suffixes that make a member an image, in lower case."""
    key: Literal["first_dot", "last_dot", "json"] = "first_dot"
    """Where a member's name ends and its suffix begins. last_dot: of `235 Track 2.0 (Clean).jpg` the key is
    `235 Track 2.0 (Clean)`, and `.input.jpg` is no suffix. json: names as in first_dot; the key of a row is the `key`
    in its sample's .json."""
    caption: str | None = None
    """Field of the .json that is the caption where there is no .txt; names inside of names are joined by dots.
    Default: `caption`, else `text`."""

    def look(self, shard: Shard) -> pa.Table:
        """As in `ShardSource`."""
        tally = Tally()
        with open_shard(shard.uri, self.door()) as file:
            return with_notices(item_table(self._items(shard, file, tally)), tally)

    def _items(self, shard: Shard, file: BinaryIO, tally: Tally) -> Iterator[Item]:
        samples: dict[str, _Sample] = {}
        last, damage = None, ""
        try:
            for member in members(file, shard.uri):
                named = member.sample(self.key)
                if named is None:
                    hidden = member.name.rpartition("/")[2].startswith(".")
                    tally["members are of no sample"]["hidden" if hidden else "without suffix"] += 1
                    continue
                key, suffix = named
                last = samples.setdefault(key, _Sample(key))
                if suffix in last.seen:
                    told = f"{BROKEN}a name stands twice in this tar; this is the second\t{member.name}"
                    yield Item(f"{member.name}@{member.offset}", shard.uri, 0, shard.stamp, member=told)
                    continue
                last.seen.append(suffix)
                end = suffix.rpartition(".")[2]
                if suffix in TEXTS:
                    last.texts[suffix] = _text(member, file, last.problems)
                elif f".{end}" in self.pictures:
                    last.pictures[suffix] = member
                elif end in TEXTS:
                    last.passed_over.append(member.name)
                else:
                    tally["members are not read"][f".{end}"] += 1
        except Damage as error:
            damage = str(error)
        if damage and last:
            if last.pictures:
                last.problems.append("the shard is cut off behind this picture; its sidecars may be missing")
            else:
                del samples[last.key]  # its picture lies behind the cut, which is a row
        taken: set[str] = set()
        for sample in samples.values():
            for item in sample.items(shard, self.caption, tally):
                yield _recorded(item, sample, shard, taken) if self.key == "json" else item
        if damage:
            yield Item(
                shard.name, shard.uri, 0, shard.stamp, member=f"{BROKEN}the shard is cut off or damaged\t{damage}"
            )


@dataclass(slots=True)
class _Sample:
    """What a tar holds under one key."""

    key: str
    seen: list[str] = field(default_factory=list)
    pictures: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, str | None] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def items(self, shard: Shard, caption_field: str | None, tally: Tally) -> Iterator[Item]:
        caption, sidecar = self.told(caption_field, tally)
        if self.passed_over and self.pictures:
            dots = "in names with a dot in front of the suffix (key: last_dot of {op: webdataset})"
            tally[captions.NOT_READ][dots] += len(self.passed_over)
        if not self.pictures:
            told = f"{BROKEN}no image in this sample\tonly {' '.join('.' + suffix for suffix in self.seen)}"
            yield Item(self.key, shard.uri, 0, shard.stamp, caption, sidecar, member=told)
        for suffix, member in self.pictures.items():
            key = self.key if len(self.pictures) == 1 else f"{self.key}.{suffix}"
            at: dict[str, Any] = {"member": BROKEN + member.problem} if member.problem else {"offset": member.offset}
            yield Item(key, shard.uri, member.size, shard.stamp, caption, sidecar, **at)

    def told(self, caption_field: str | None, tally: Tally) -> tuple[str | None, str | None]:
        """Caption and sidecar JSON; what cannot be read is told in the latter as `error`."""
        problems = list(self.problems)
        text, record, cls = (self.texts.get(suffix) for suffix in TEXTS)
        caption, sidecar, data = captions.beside(self.key, text, record, problems, caption_field, tally)
        more: dict[str, Any] = {}
        if cls is not None:
            more["cls"] = int(cls) if re.fullmatch(r"[0-9]{1,18}", cls.strip()) else cls.strip()
        if self.passed_over:
            more[PASSED_OVER] = self.passed_over
        if more:
            inside = isinstance(data, dict) and not more.keys() & data.keys()
            whole = {**data, **more} if inside else more | ({} if record is None else {"json": data})
            sidecar = jsontext.whole_characters(json.dumps(whole))
        return caption, captions.with_problems(sidecar, problems)


def _recorded(item: Item, sample: _Sample, shard: Shard, taken: set[str]) -> Item:
    """The row under the key that its sample's .json states; a failed row where that is none, or `taken`."""
    try:
        stated = json.loads(sample.texts.get("json") or "null")["key"]
    except (ValueError, TypeError, LookupError, RecursionError):
        stated = None
    key = stated if isinstance(stated, str) and utf8(stated) == stated else ""
    problem = "" if key else "no `key` in the .json of this sample"
    if key and len(sample.pictures) > 1:
        key += item.key.removeprefix(sample.key)
    if not problem and key in taken:
        problem = f"a `key` stands twice in this tar; this is the second\t{key}"
    if problem:
        item, key = replace(item, offset=None, member=BROKEN + problem), f"{shard.name}#{item.key}"
        while key in taken:
            key += "+"
    taken.add(key)
    return replace(item, key=key)


def _text(member: Member, file: BinaryIO, problems: list[str]) -> str | None:
    if member.problem or member.size > MAX_SIDECAR:
        why = member.problem.replace("\t", ": ") or f"{member.size:,} bytes are too long for a sidecar"
        problems.append(f"{member.name}: {why}")
        return None
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"{member.name}: not UTF-8 at byte {error.start}")
        return None
