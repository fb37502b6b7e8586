"""One key twice inside a shard: the second object of that key is a failed row, as a second member of a tar is.

A key names a row for good, so none of the two may go unseen and none may take the place of the other: the first keeps
the key, the second is `KEY@2`, without bytes, and says where both stand.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nextloom.content import BROKEN
from nextloom.store.dataset import ITEM


def without_doubles(listed: pa.Table) -> pa.Table:
    """The objects of one shard, schema `ITEM`, with a key of its own for each; metadata stays."""
    if pc.count_distinct(listed["key"]).as_py() == listed.num_rows:
        return listed
    rows = listed.to_pylist()
    first: dict[str, dict[str, Any]] = {}
    taken = {row["key"] for row in rows}
    numbers: dict[str, int] = {}
    for row in rows:
        key = row["key"]
        if key not in first:
            first[key] = row
            continue
        number = numbers.get(key, 1) + 1
        while f"{key}@{number}" in taken:
            number += 1
        numbers[key] = number
        taken.add(f"{key}@{number}")
        places = f"{key!r:.100} is {_place(first[key])} and {_place(row)}"
        row |= {"key": f"{key}@{number}", "offset": None, "size": 0}
        row["member"] = f"{BROKEN}a key stands twice in its shard; this is the second\t{places}"
    return pa.Table.from_pylist(rows, schema=ITEM).replace_schema_metadata(listed.schema.metadata)


def _place(row: dict[str, Any]) -> str:
    if row["member"]:
        return row["member"].partition("\t")[0]
    return row["uri"] if row["offset"] is None else f"byte {row['offset']:,}"
