"""Shards: finding them, and the base of every source that lists them one by one.

    path: shards                          every shard below a folder
    path: "s3://bucket/{00000..00127}.tar"    names spelled out: nothing is listed
    path: "shards/*/part-*.parquet"       `*` stays within a folder, `**/` crosses folders
    path: shards/index.txt                an index: one shard a line, relative to it or absolute; nothing is listed
    path: [a, "b/*.tar"]                  several of these

A shard is a unit: while its size and time stay the same it is not opened again. One that is broken costs one failed
row, named after it; one that cannot be read does too, and is tried again by the next listing. Only where the first
shard is not what the recipe says, the recipe is refused, with what was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import PrivateAttr

from nextloom.config import RootPath
from nextloom.content import BARRED, BROKEN, UNREAD
from nextloom.curation.sources.finding import MISSING, OUTSIDE, Shard, find_shards, homes, utf8
from nextloom.curation.sources.source import Item, Source, item_table
from nextloom.curation.sources.twice import without_doubles
from nextloom.errors import UserError
from nextloom.store.notices import Notices, Tally
from nextloom.untrusted import Door, NotAllowed, bare

ASKERS = 32
"""Shards asked for size and time at once."""


class Refusal(ValueError):
    """A shard is not what the recipe says it is.

    Args:
        what: what was found, and what was expected.
        next: the edit or command that mends it.
    """

    def __init__(self, what: str, next: str) -> None:
        super().__init__(f"{what}; {next}")
        self.what, self.next = what, next


class ShardSource(Source):
    """Base of sources over shards. Subclasses implement `look`, which lists one shard."""

    suffixes: ClassVar[tuple[str, ...]]
    """What counts as a shard in a folder, in lower case."""

    path: RootPath | tuple[RootPath, ...]
    """A folder, a shard, names with {00000..00127} or {a,b}, a pattern, an index file, or a list of these."""
    keys: Literal["member", "unit"] = "member"
    """unit: the shard's name stands before each key, for shards that all count from zero."""
    immutable: bool = False
    """Whether a shard never changes under its name. A listing then asks only for shards it has not seen."""

    _shards: dict[str, Shard] = PrivateAttr(default_factory=dict)
    _passed: Tally = PrivateAttr(default_factory=Tally)
    _door: Door | None = PrivateAttr(default=None)

    def door(self) -> Door:
        """As in `Source`; one for all shards of a listing, so that folders are resolved once."""
        self._door = self._door or super().door()
        return self._door

    def passed_over(self) -> Notices:
        """As in `Source`: files in a folder of shards that are none."""
        return self._passed

    def when_twice(self) -> str:
        """As in `Source`."""
        if self.keys == "unit":
            return super().when_twice()
        return "set source.keys: unit, which puts the shard's name before each key; or mend one of the two"

    def units(self) -> dict[str, str]:
        """Shards by name, in the order of `path`, each part of it sorted."""
        self._passed.clear()
        self._door = None
        found: dict[str, Shard] = {}
        for path in (self.path,) if isinstance(self.path, str) else self.path:
            for shard in self.find(path):
                other = found.get(shard.name)
                if other and other.uri != shard.uri:
                    raise UserError(
                        f"two shards are named {shard.name!r}: {other.uri} and {shard.uri}",
                        where="source.path",
                        next="give one pattern that begins at the folder above both",
                    )
                found[shard.name] = shard
        if not self.immutable:
            door = self.door()
            with ThreadPoolExecutor(ASKERS) as pool:
                found = {shard.name: shard for shard in pool.map(partial(_asked, door), found.values())}
        self._shards.clear()
        self._shards.update(found)
        return {name: "immutable" if self.immutable else self.version(shard) for name, shard in found.items()}

    def find(self, path: str) -> Iterable[Shard]:
        """Shards of one `path`; a subclass may look for something else than `suffixes`."""
        return find_shards(path, self.suffixes, self.door(), passed=self._passed)

    def places(self) -> tuple[str, ...]:
        """As in `Source`: the folder at each `path`, or the one that its shards, pattern or index lie in."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        return tuple(dict.fromkeys(place for path in paths for place in homes(path, self.suffixes)))

    def version(self, shard: Shard) -> str:
        """Changes when the shard does."""
        return shard.stamp

    def items(self, unit: str, known: Mapping[str, str]) -> pa.Table:
        """As in `Source`. Needs `units()` first."""
        shard = _asked(self.door(), self._shards[unit])
        if shard.stamp == MISSING:
            return failed_unit(shard, f"{BROKEN}no such file: {shard.uri}")
        try:
            if shard.stamp == OUTSIDE:
                self.door().stamp(shard.uri)  # says why
            listed = self.look(shard)
        except Refusal as refusal:
            if unit == next(iter(self._shards)):
                raise UserError(f"{unit}: {refusal.what}", where="source", next=refusal.next) from None
            return failed_unit(shard, f"{BROKEN}{refusal}")
        except UserError:
            raise
        except NotAllowed as error:
            return failed_unit(shard, f"{BARRED}{error}\t{error.detail or ''}")
        except OSError as error:
            return failed_unit(shard, f"{UNREAD}cannot be read: {type(error).__name__}: {error}")
        except Exception as error:
            return failed_unit(shard, f"{BROKEN}cannot be listed: {type(error).__name__}: {error}")
        listed = without_doubles(listed)
        if self.keys == "unit":
            at = listed.column_names.index("key")
            keys = [key if key == unit else f"{unit}/{key}" for key in listed["key"].to_pylist()]
            listed = listed.set_column(at, listed.schema.field("key"), pa.array(keys, pa.string()))
        return listed

    def look(self, shard: Shard) -> pa.Table:
        """Objects of one shard, schema `ITEM`.

        Raises:
            Refusal: it is of another kind than this source reads.
        """
        raise NotImplementedError


def failed_unit(shard: Shard, reason: str) -> pa.Table:
    """The one failed row of a shard, named after it; `reason` begins with `BROKEN` or `UNREAD`."""
    return item_table([Item(shard.name, bare(shard.uri), 0, shard.stamp, member=utf8(reason)[:500])])


def _asked(door: Door, shard: Shard) -> Shard:
    """The shard with its stamp."""
    if shard.stamp:
        return shard
    try:
        found = door.stamp(shard.uri)
    except FileNotFoundError:
        found = MISSING
    except NotAllowed:
        found = OUTSIDE
    except (OSError, ValueError) as error:
        raise UserError(f"cannot ask for {shard.uri}: {error}", where="source.path", next="run again") from None
    return Shard(shard.name, shard.uri, found)
