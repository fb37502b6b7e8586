"""What a listing would change in the rows of a dataset, and the change itself.

A source lists *units*: a tar, a Parquet file, a folder. A unit whose version is the one of the last listing is not
looked into, so a plan over a million shards opens none of them; one without a version (a folder) always is. Inside a
unit an object is known by its key and version, wherever it lies: a source that was moved, narrowed for a run, or
unmounted for an hour keeps its ids. A new version under a known key is a new row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.content import UNREAD
from nextloom.errors import UserError
from nextloom.op import digest
from nextloom.store.dataset import GONE, ITEM, ROWS, Dataset
from nextloom.store.files import write_file
from nextloom.store.notices import Notices, lines, notices_of

SOURCE = "source"
PLACE = ("unit", "uri", "offset", "member")
"""Where the bytes of an object lie; not its identity."""
LISTERS = 16
"""Units looked into at once, where they are large or far away."""
PATIENCE, QUICK = 0.25, 0.01
"""Seconds at first, and for each unit, within which units are looked into one after another."""


class Lists(Protocol):
    """What `Changes` asks of a source."""

    def identity(self) -> Any:
        """Plain data; while it is the same, equal versions of a unit mean equal items."""

    def units(self) -> Mapping[str, str]:
        """Name -> version of each unit; "" where only looking inside can tell."""

    def items(self, unit: str, known: Mapping[str, str]) -> pa.Table:
        """Objects of a unit, schema `ITEM` (its `unit` may be null), keys unique; `known` is key -> version of
        objects whose caption and sidecar are not wanted again."""

    def passed_over(self) -> Notices:
        """What `units` passed over, such as files of another kind in a folder of shards."""

    def when_twice(self) -> str:
        """What to do where two units list the same key."""


class Changes:
    """Rows to add, bury, revive, and rows whose bytes lie elsewhere now; nothing is written before `apply`."""

    def __init__(self, dataset: Dataset, source: Lists) -> None:
        """Compare what the source lists with all rows ever seen.

        Raises:
            UserError: a key is listed twice, or the source cannot be listed.
        """
        self._dataset = dataset
        self._before = dataset.receipt(SOURCE) or {}
        units = dict(source.units())
        self._document: dict[str, Any] = {"identity": digest(source.identity()), "units": units}
        before = self._before if self._before.get("identity") == self._document["identity"] else {}
        old = before.get("units", {})
        same = {name for name, version in units.items() if version and old.get(name) == version}
        self.new, self._moved = ITEM.empty_table(), ROWS.empty_table().select(["id", *PLACE])
        self._gone: np.ndarray = np.empty(0, np.int64)
        self.gone = self.revived = self.kept = self._gone
        self._told: dict[str, Notices] = {n: told for n, told in before.get("notices", {}).items() if n in same}
        if same != set(units) or same != set(old):
            self._compare(source, [name for name in units if name not in same], same)
        self._document["notices"] = self._told
        self.notices: list[str] = lines([source.passed_over(), *self._told.values()])
        """What the listing passed over, a sentence each; of a unit that is the same, what it was when it was listed."""
        self.nothing = "; ".join(self.notices) or (
            f"{len(units):,} shards, none with a row" if set(units) - {""} else "the source lists no object"
        )
        """Why there is no row, where there is none."""

    def _compare(self, source: Lists, names: list[str], same: set[str]) -> None:
        known = self._dataset.all_rows(["key", "unit", "uri", "version"])
        settled = pc.is_in(known["unit"], pa.array(sorted(same), pa.string()))
        here, elsewhere = known.filter(settled), known.filter(pc.invert(settled))
        gone = self._dataset.gone_ids()
        versions = dict(zip(elsewhere["key"].to_pylist(), elsewhere["version"].to_pylist(), strict=True))
        items = _list(source, names, versions, self._told)
        unread = pc.unique(items.filter(pc.starts_with(items["member"], UNREAD))["unit"]).to_pylist()
        self._document["units"] |= dict.fromkeys(unread, "")  # looked into again by the next listing
        here_live = here.filter(pc.invert(pc.is_in(here["id"], pa.array(gone))))
        place = ["key", "unit", "uri"]
        _assert_unique(pa.concat_tables([items.select(place), here_live.select(place)]), source)
        identity = ["key", "version"]
        at = items.append_column("at", pa.array(np.arange(items.num_rows)))
        new = at.join(elsewhere.select(identity), keys=identity, join_type="left anti")
        self.new = new.sort_by("at").select(ITEM.names)
        now = items.select([*identity, *PLACE]).rename_columns([*identity, *(f"{name}_now" for name in PLACE)])
        seen = elsewhere.join(now, keys=identity, join_type="inner")
        live, here_ids = seen["id"].to_numpy(), here["id"].to_numpy()
        buried = np.setdiff1d(elsewhere["id"].to_numpy(), live)
        self._gone = np.union1d(np.intersect1d(gone, here_ids), buried)
        self.gone = np.setdiff1d(buried, gone)
        """Ids of rows to bury."""
        self.revived = np.intersect1d(gone, live)
        """Ids of buried rows that are there again."""
        other = pc.or_(pc.not_equal(seen["uri"], seen["uri_now"]), pc.not_equal(seen["unit"], seen["unit_now"]))
        moved = seen.filter(other).select(["id", *(f"{name}_now" for name in PLACE)])
        self._moved = moved.rename_columns(["id", *PLACE])
        self.kept = np.union1d(live, np.setdiff1d(here_ids, gone))
        """Ids that stay or come back."""

    def __bool__(self) -> bool:
        return bool(self.new.num_rows or len(self.gone) or len(self.revived) or self._moved.num_rows)

    def describe(self) -> str:
        """Such as ``+200 -1``; "" when nothing changes."""
        parts = [f"+{self.new.num_rows:,}"] if self.new.num_rows else []
        parts += [f"-{len(self.gone):,}"] if len(self.gone) else []
        parts += [f"{len(self.revived):,} back"] if len(self.revived) else []
        parts += [f"{self._moved.num_rows:,} moved"] if self._moved.num_rows else []
        return " ".join(parts)

    def apply(self) -> None:
        """Give new rows the next free ids in listed order, bury and revive, and note the units.

        Ids are never used for another object. After a kill between the commits the same listing finds the rest.
        """
        rows, gone = self._dataset.rows, self._dataset.gone
        if self._moved.num_rows:
            data = self._dataset.all_rows(ROWS.names[1:])
            is_moved = pc.is_in(data["id"], self._moved["id"].combine_chunks())
            moved = data.filter(is_moved).drop_columns(list(PLACE)).join(self._moved, keys="id")
            data = pa.concat_tables([data.filter(pc.invert(is_moved)), moved.select(ROWS.names).cast(ROWS)])
            rows.commit(ROWS, [write_file(rows.uri, data.sort_by("id"))], rows.files(), note="moved")
        if len(self.gone) or len(self.revived):
            buried = pa.table({"id": self._gone}, schema=GONE)
            files = [write_file(gone.uri, buried)] if buried.num_rows else []
            gone.commit(GONE, files, gone.files(), note="sync")
        if self.new.num_rows:
            start = max((f.max_id for f in rows.files()), default=-1) + 1
            ids = pa.array(np.arange(start, start + self.new.num_rows, dtype=np.int64))
            data = self.new.add_column(0, "id", ids).cast(ROWS)
            rows.commit(ROWS, [write_file(rows.uri, data)], note="sync")
        self.note()

    def note(self) -> None:
        """Remember the versions of the units, so that the next listing looks into none that is the same."""
        if self._document != self._before:
            self._dataset.write_receipt(SOURCE, self._document)


def _list(source: Lists, names: list[str], known: Mapping[str, str], told: dict[str, Notices]) -> pa.Table:
    """The items of `names`, in their order; their notices are added to `told`."""

    def look(name: str) -> tuple[pa.Table, Notices]:
        items = source.items(name, known)
        at = ITEM.get_field_index("unit")
        units = items.set_column(at, ITEM.field("unit"), pa.repeat(pa.scalar(name), items.num_rows))
        units = units.replace_schema_metadata(None)
        return units if units.schema.equals(ITEM) else units.cast(ITEM), notices_of(items)

    found = list[tuple[pa.Table, Notices]]()
    start = time.perf_counter()
    for name in names:  # one after another as long as none is waited for: threads would only fight for Python's lock
        found.append(look(name))
        if time.perf_counter() - start > PATIENCE + QUICK * len(found):
            break
    if rest := names[len(found) :]:
        with ThreadPoolExecutor(min(LISTERS, len(rest))) as pool:
            found += pool.map(look, rest)
    told |= {name: notices for name, (_, notices) in zip(names, found, strict=True) if notices}
    return pa.concat_tables([ITEM.empty_table(), *(items for items, _ in found)])


def _assert_unique(listed: pa.Table, source: Lists) -> None:
    counts = listed.group_by("key").aggregate([("key", "count")])
    twice = counts.filter(pc.greater(counts["key_count"], 1))
    if twice.num_rows:
        key, count = twice["key"][0].as_py(), twice["key_count"][0].as_py()
        found = listed.filter(pc.equal(listed["key"], key)).slice(0, 2).to_pylist()
        first, second = (place["unit"] or place["uri"] for place in found)
        more = f"; {twice.num_rows:,} keys are" if twice.num_rows > 1 else ""
        raise UserError(
            f"key {key!r} is listed {count} times, in {first} and {second}{more}",
            where="source",
            next=source.when_twice(),
        )
