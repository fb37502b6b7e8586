"""The log of a Delta table on a local disk: which entries have to be there, and what each of them says of itself.

Since clean-up is off, entries 0, 1, 2 ... all stay. A gap or an empty entry is damage that Delta itself would pass
over, and is looked for each time a log is opened (names and sizes only). `entries_problems` reads every entry.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nextloom.inside import linked
from nextloom.io import is_uri
from nextloom.op import digest

LOG = "_delta_log"
LOG_NAME = re.compile(
    r"^(\.?_last_checkpoint|\d{20}\.(json|crc|checkpoint\.parquet)|\d{20}\.checkpoint\.\d{10}\.\d{10}\.parquet"
    r"|_commit_[0-9a-f-]{36}\.json\.tmp|\d{20}\.json#\d+)$"
)
"""Names of the files that Delta writes into a log."""
ENTRY = re.compile(r"^(\d{20})\.json$")


def actions_digest(add: Sequence[str], remove: Sequence[str]) -> str:
    """What a commit says of the files it adds and removes."""
    return digest([sorted(add), sorted(remove)])


def log_problem(uri: str) -> str:
    """What is wrong with the names and sizes of a log's entries; "" when all are there, or the table is remote.

    Raises:
        Outside: an entry is a link.
    """
    if is_uri(uri):
        return ""
    entries = _entries(uri)
    for number, (name, size) in enumerate(sorted(entries.items())):
        if name != f"{number:020d}.json":
            return f"lacks entry {number:020d}.json"
        if not size:
            return f"has an empty entry {name}"
    return ""


def has_entries(uri: str) -> bool:
    """Whether a local table has any log entry; a kill may leave an empty folder behind."""
    return bool(_entries(uri))


def entries_problems(uri: str) -> Iterator[tuple[str, str]]:
    """(entry, what is wrong) of every entry that is not what was committed; local tables only."""
    if is_uri(uri):
        return
    for name in sorted(_entries(uri)):
        try:
            lines = [json.loads(line) for line in Path(uri, LOG, name).read_bytes().splitlines()]
            if problem := _entry_problem(lines, first=name == f"{0:020d}.json"):
                yield name, problem
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            yield name, "is not valid JSON"


def named_files(uri: str) -> set[str]:
    """Paths that the readable entries of a log add and do not remove; local tables only."""
    names: set[str] = set()
    for entry in [] if is_uri(uri) else sorted(_entries(uri)):
        with suppress(ValueError, AttributeError, KeyError, TypeError, RecursionError, OSError):
            for line in map(json.loads, Path(uri, LOG, entry).read_bytes().splitlines()):
                names |= {line["add"]["path"]} if "add" in line else set()
                names -= {line["remove"]["path"]} if "remove" in line else set()
    return names


def _entry_problem(lines: list[Any], first: bool) -> str:
    said = next((line["commitInfo"] for line in lines if "commitInfo" in line), None)
    if said is None:
        return "does not say what it commits"
    if first:
        return "" if any("metaData" in line for line in lines) else "lacks the table's schema"
    add = [line["add"]["path"] for line in lines if "add" in line]
    remove = [line["remove"]["path"] for line in lines if "remove" in line]
    return "" if said.get("actions") == actions_digest(add, remove) else "does not name the files that were committed"


def _entries(uri: str) -> dict[str, int]:
    """Size of each entry, by name."""
    found = {}
    try:
        entries = list(os.scandir(Path(uri, LOG)))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for entry in entries:
        if ENTRY.match(entry.name):
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                raise linked(entry.path)
            found[entry.name] = info.st_size if stat.S_ISREG(info.st_mode) else 0
    return found
