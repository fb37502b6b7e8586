"""What a listing passes over, counted: files of other suffixes, captions under other names, members of no sample.

    {"files are no rows": {".psd": 3, "without suffix": 1}}      ->   4 files are no rows: 3 .psd, 1 without suffix

Notices travel as metadata of the table that a source lists, are kept with the unit in the receipt of the listing, and
are said by `plan` and `run` for as long as the unit is listed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import pyarrow as pa

Notices = Mapping[str, Mapping[str, int]]
"""Kind -> what -> how many. A kind is a plural without its number: ``files are no rows``."""
KEY = b"nextloom:notices"
KINDS, WHATS = 50, 20
"""Most kinds of one unit, and most lines of one kind, that are kept apart; the rest is counted together."""
OTHERS = "of other kinds"


class Tally(defaultdict[str, Counter[str]]):
    """Notices while they are counted: ``tally["files are no rows"][".psd"] += 1``."""

    def __init__(self) -> None:
        super().__init__(Counter)

    def add(self, other: Notices) -> None:
        """Count what another one counted too."""
        for kind, whats in other.items():
            self[kind].update(whats)


def with_notices(items: pa.Table, notices: Notices) -> pa.Table:
    """`items` with its notices as metadata; names that strangers chose are cut short."""
    if not any(notices.values()):
        return items
    short: dict[str, dict[str, int]] = {}
    for kind, whats in list(notices.items())[:KINDS]:
        if first := Counter(whats).most_common(WHATS):
            short[kind] = {_short(what): count for what, count in first}
            if rest := sum(whats.values()) - sum(count for _, count in first):
                short[kind][OTHERS] = short[kind].get(OTHERS, 0) + rest
    return items.replace_schema_metadata({KEY: json.dumps(short)})


def notices_of(items: pa.Table) -> dict[str, dict[str, int]]:
    """What `with_notices` added."""
    return json.loads((items.schema.metadata or {}).get(KEY, b"{}"))


def lines(every: Iterable[Notices]) -> list[str]:
    """A sentence per kind, the numbers of all units added, those that occur most first."""
    total = Tally()
    for notices in every:
        total.add(notices)
    out = []
    for kind, whats in total.items():
        first = sorted(whats.items(), key=lambda what: (-what[1], what[0]))[:8]
        told = [f"{count:,} {what}".strip() for what, count in first]
        told += ["..."] if len(whats) > 8 else []
        out.append(f"{sum(whats.values()):,} {kind}" + (f": {', '.join(told)}" if any(whats) else ""))
    return out


def _short(what: str) -> str:
    return what if len(what) <= 100 else what[:97] + "..."
