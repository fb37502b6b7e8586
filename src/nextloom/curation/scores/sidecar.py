"""The record that a source brought beside a picture: the JSON text in the row's `sidecar`."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from nextloom.errors import did_you_mean
from nextloom.op import Row, RowFailure


def value(row: Row, path: str) -> Any:
    """What the row's record says under `path`.

    Args:
        row: its `source` holds `sidecar`.
        path: a name of the record, or names from the outside in, joined by dots.

    Raises:
        RowFailure: ``NoSidecar`` where the row has no record, ``NoColumn`` where it has no such name.
    """
    text = row.source.get("sidecar")
    if not text:
        raise RowFailure("NoSidecar", f"the source brought no record beside it, so no {path!r}")
    record = _record(text)
    if not isinstance(record, dict):
        raise RowFailure("NoSidecar", "its record is not names with values", detail=type(record).__name__)
    found: Any = record
    for name in [path] if path in record else path.split("."):
        if not isinstance(found, dict) or name not in found:
            names = found if isinstance(found, dict) else record
            unread = f"the record could not be read: {record['error']}" if record.keys() == {"error"} else None
            raise RowFailure("NoColumn", f"its record has no {path!r}", detail=unread or did_you_mean(name, names))
        found = found[name]
    return found


@lru_cache(maxsize=1)  # the ops of a pass ask about the same row, one after another
def _record(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFailure("NoSidecar", "its record is no JSON", detail=str(error)) from None
