"""What receipts and manifests must hold to be used: looked at once, where they are read.

A document that somebody cut, mixed up or made by hand is told by its name and its fault, instead of failing where a
field of it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextloom.errors import Damaged
from nextloom.inside import NAME, parts_of
from nextloom.store.files import FILE_NAME, File

TEXT = (str,)
OR_NONE = (str, type(None))
SOURCE_FIELDS = {"identity": TEXT, "units": (dict,)}
PACK_FIELDS = {
    "fingerprint": TEXT,
    "config": (dict,),
    "release": TEXT,
    "release_digest": TEXT,
    "commits": (dict,),
    "counts": (dict,),
}
STEP_FIELDS = {
    "op": TEXT,
    "version": TEXT,
    "config": (dict,),
    "fingerprint": TEXT,
    "inputs": OR_NONE,
    "result": OR_NONE,
    "files": TEXT,
    "commit": (int,),
    "counts": (dict,),
    "errors": (int,),
}
RELEASE_FIELDS = {
    "name": TEXT,
    "dataset": TEXT,
    "content": TEXT,
    "rows_count": (int,),
    "selection": (dict,),
    "rows": (dict,),
    "columns": (dict,),
}
ROWS_FIELDS = {"table": TEXT, "files": (list,), "kind": TEXT, "digest": TEXT, "gone": (list,)}
COLUMN_FIELDS = {"table": TEXT, "files": (list,), "fingerprint": TEXT, "failed": TEXT}
FILE_FIELDS = {"path": TEXT, "size": (int,), "rows": (int,), "errors": (int,), "min_id": (int,), "max_id": (int,)}


def check_receipt(step: str, document: Any, where: str) -> dict[str, Any] | None:
    """The receipt of `step` as it is; None stays None.

    Raises:
        Damaged: it is no receipt of such a step.
    """
    if document is None:
        return None
    fields = SOURCE_FIELDS if step == "source" else PACK_FIELDS if step.startswith("packs.") else STEP_FIELDS
    problem = _fields(document, fields)
    if not problem and "counts" in fields:
        wrong = [name for name, count in document["counts"].items() if not isinstance(count, (int, float, str))]
        problem = f"counts.{wrong[0]} is no number" if wrong else ""
        commits = document.get("commits", {}).values()
        if not all(isinstance(commit, int) for commit in commits):
            problem = "commits are no numbers"
        if not NAME.match(document["fingerprint"]):
            problem = "its fingerprint is none"
    if problem:
        raise Damaged(f"is no receipt: {problem}", where=where, next="nextloom run RECIPE writes it anew")
    return document


def check_manifest(document: Any, where: str, name: str) -> dict[str, Any]:
    """The manifest of release `name` as it is.

    Raises:
        Damaged: it is none, or names files that cannot be ours.
    """
    hint = f"nextloom rebuild RECIPE {name}"
    problem = _fields(document, RELEASE_FIELDS)
    if not problem and document["name"] != name:
        problem = f"it is that of {document['name'][:100]!r}"
    if not problem:
        problem = _table(document["rows"], {"table": TEXT, "files": (list,)}, "rows")
        problem = problem or _selection(document["selection"])
        for step, column in document["columns"].items():
            problem = problem or _table(column, COLUMN_FIELDS, f"columns.{step}")
    if problem:
        raise Damaged(f"is no manifest: {problem}", where=where, next=hint)
    return document


def check_copies(document: Any, where: str) -> tuple[int, tuple[File, ...]]:
    """Version and files that the second copy of a table names.

    Raises:
        Damaged: it is no such document.
    """
    problem = _fields(document, {"version": (int,), "files": (list,)}) or _listed(document["files"])
    if problem:
        raise Damaged(f"is no list of copies: {problem}", where=where, next="nextloom rebuild RECIPE source")
    return document["version"], as_files(document["files"])


def as_files(items: Any) -> tuple[File, ...]:
    """The file list of a manifest."""
    return tuple(File(**item) for item in items)


def _selection(spec: Any) -> str:
    while spec is not None:
        if problem := _table(spec, ROWS_FIELDS, "selection"):
            return problem
        spec = spec.get("parents")
    return ""


def _table(spec: Any, fields: Mapping[str, tuple], where: str) -> str:
    """What is wrong with one table of a manifest and its files; "" when nothing is."""
    if problem := _fields(spec, fields):
        return f"{where}: {problem}"
    try:
        parts_of(spec["table"])
    except Damaged as damage:
        return f"{where}: {damage.what}"
    problem = _listed(spec["files"])
    return f"{where}: {problem}" if problem else ""


def _listed(files: list) -> str:
    for item in files:
        if _fields(item, FILE_FIELDS) or len(item) != len(FILE_FIELDS) or not FILE_NAME.match(item["path"]):
            return f"lists {str(item)[:80]}, which is no file of ours"
    return ""


def _fields(document: Any, fields: Mapping[str, tuple]) -> str:
    if not isinstance(document, dict):
        return f"a {type(document).__name__} and no mapping"
    for name, kinds in fields.items():
        value = document.get(name, ...)
        if value is ...:
            return f"{name} is missing"
        if not isinstance(value, kinds) or isinstance(value, bool):
            return f"{name} is {str(value)[:40]!r}"
    return ""
