"""Duplicates: groups of copies side by side, those across sources marked.

Shown are the groups that span several origins, the largest, and those whose members are furthest apart, since the
last are the likely mistakes. The origin of a row is the unit (shard) that it lies in, or its top folder where the
source has no units. Counting holds one number per group of two or more in memory.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE, Step
from nextloom.pipelines.report.album import Album
from nextloom.pipelines.report.picked import pick, spans, table_of
from nextloom.store.files import read_files

EACH = 5
"""Groups of each kind that are shown."""
MEMBERS = 8
"""Members of a group that are shown: the one that stays first, then the nearest."""
ACROSS = 10
"""Combinations of origins that are told."""


def duplicates(planner: Planner, step: Step, album: Album) -> dict[str, Any] | None:
    """Groups of a step of duplicates; None before its first result.

    Returns:
        step, groups, copies (rows that repeat another), largest, spanning (groups of several origins), across (which
        origins, how many groups), `shown`: per group id, size, origins, members (slot, origin,
        stays, apart).
    """
    if not planner.table(step.name).files():
        return None
    return _Duplicates(planner, step).gather(album)


class _Duplicates:
    def __init__(self, planner: Planner, step: Step) -> None:
        self._planner, self._step = planner, step
        self._table = planner.table(step.name)
        names = step.op.columns().names
        self._measure = next((name for name in ("distance", "similarity") if name in names), None)
        self._files = self._table.files()

    def gather(self, album: Album) -> dict[str, Any]:
        groups, copies = self._groups()
        place, code, furthest, names = self._spread(groups)
        spanning = np.bincount(place, minlength=len(groups)) > 1
        starts = np.flatnonzero(np.diff(place, prepend=-1))
        across = Counter(tuple(names[c] for c in codes) for codes in np.split(code, starts[1:]) if len(codes) > 1)
        chosen = self._choose(copies, spanning, furthest)
        members = self._members(groups[chosen])
        return {
            "step": self._step.name,
            "measure": self._measure,
            "groups": len(groups),
            "copies": int(copies.sum()),
            "largest": int(copies.max()) + 1 if len(copies) else 0,
            "spanning": int(spanning.sum()),
            "across": [{"origins": sorted(o), "groups": n} for o, n in across.most_common(ACROSS)],
            "shown": [
                self._shown(members.filter(pc.equal(members["group"], int(groups[i]))), int(copies[i]) + 1, album)
                for i in chosen
            ],
        }

    def _groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted ids of the groups of two or more, and how many of their rows are hits."""
        groups, copies = np.empty(0, np.int64), np.empty(0, np.int64)
        for low, high in spans(self._table):
            data = read_files(self._table.uri, self._files, ["id", "group", "hit"], low=low, high=high)
            mine = data.filter(pc.fill_null(data["hit"], False))["group"].drop_null().to_numpy()
            both, inverse = np.unique(np.concatenate([groups, mine]), return_inverse=True)
            weight = np.concatenate([copies, np.ones(len(mine), np.int64)])
            groups, copies = both, np.bincount(inverse, weight, minlength=len(both)).astype(np.int64)
        return groups, copies

    def _spread(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Where groups lie: place of the group and number of the origin, each pair once, sorted by place; how far
        apart each group is; and the origins by number.
        """
        codes: dict[str, int] = {}
        pairs = np.empty((0, 2), np.int64)
        furthest = np.zeros(len(groups))
        measure = [self._measure] if self._measure else []
        for start, end in spans(self._table) if len(groups) else ():
            data = read_files(self._table.uri, self._files, ["id", "group", *measure], low=start, high=end)
            data = data.filter(pc.is_in(data["group"], pa.array(groups)))
            place = np.searchsorted(groups, data["group"].to_numpy())
            code = [codes.setdefault(origin, len(codes)) for origin in self._origins(data["id"].to_numpy())]
            new = np.stack([place, np.array(code, np.int64)], axis=1)
            pairs = np.unique(np.concatenate([pairs, new]), axis=0)
            if self._measure:
                apart = self._apart(pc.fill_null(data[self._measure].cast(pa.float64()), 0.0).to_numpy())
                np.maximum.at(furthest, place, apart)
        return pairs[:, 0], pairs[:, 1], furthest, list(codes)

    def _apart(self, values: np.ndarray) -> np.ndarray:
        return 1 - values if self._measure == "similarity" else values

    def _origins(self, ids: np.ndarray) -> list[str]:
        table, schema = table_of(self._planner, SOURCE, self._step.domain)
        units = "unit" in schema.names
        data = pick(table, ids, ["key", "unit"] if units else ["key"], schema)
        unit = data["unit"].to_pylist() if units else [""] * data.num_rows
        origin = [u or _folder(key) for u, key in zip(unit, data["key"].to_pylist(), strict=True)]
        by_id = dict(zip(data["id"].to_pylist(), origin, strict=True))
        return [by_id.get(row_id, "") for row_id in ids.tolist()]

    @staticmethod
    def _choose(copies: np.ndarray, spanning: np.ndarray, furthest: np.ndarray) -> list[int]:
        """Places of the groups to show, each once."""
        place = np.arange(len(copies))
        largest = np.lexsort((place, -copies))
        across = largest[spanning[largest]]
        apart = np.lexsort((place, -furthest))
        apart = apart[furthest[apart] > 0]
        return list(dict.fromkeys(int(i) for kind in (across, largest, apart) for i in kind[:EACH]))

    def _members(self, groups: np.ndarray) -> pa.Table:
        """Every row of a few groups."""
        measure = [self._measure] if self._measure else []
        names = ["id", "group", "hit", *measure]
        parts = [self._step.op.table_schema().empty_table().select(names)]
        for low, high in spans(self._table) if len(groups) else ():
            data = read_files(self._table.uri, self._files, names, low=low, high=high)
            parts.append(data.filter(pc.is_in(data["group"], pa.array(groups))))
        return pa.concat_tables(parts, promote_options="permissive")

    def _shown(self, members: pa.Table, size: int, album: Album) -> dict[str, Any]:
        rows = members.to_pylist()
        origins = self._origins(members["id"].to_numpy())
        for row, origin in zip(rows, origins, strict=True):
            value = row[self._measure] if self._measure else None
            row["origin"], row["apart"] = origin, value
        far = {row["id"]: float(self._apart(np.array(row["apart"] or 0.0))) for row in rows}
        rows.sort(key=lambda row: (bool(row["hit"]), far[row["id"]], row["id"]))
        slots = album.want(self._step.domain, [row["id"] for row in rows[:MEMBERS]])
        return {
            "group": rows[0]["group"],
            "size": size,
            "origins": sorted(set(origins)),
            "members": [
                {"slot": slot, "origin": row["origin"], "stays": not row["hit"], "apart": row["apart"]}
                for slot, row in zip(slots, rows, strict=False)
            ],
        }


def _folder(key: str) -> str:
    return key.partition("/")[0] if "/" in key else "."
