"""What sources list: files that unfold without bound, patterns without end, headers that lie, rows that hide others.

Bombs are a hundred times smaller than real ones, and so are the limits while they are tried (`_small`).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from hostile.attack import Attack, Outcome, patched
from nextloom.curation.sources import (
    budget,
    columns,
    delimited,
    globs,
    json_array,
    jsontext,
    readers,
    records,
    roles,
    shards,
    tar,
)
from nextloom.curation.sources.budget import Budget, Unpacked
from nextloom.curation.sources.files import Files
from nextloom.curation.sources.table import Table
from nextloom.curation.sources.webdataset import WebDataset
from nextloom.errors import UserError
from nextloom.pipelines import progress
from nextloom.store import notices
from nextloom.store.notices import notices_of

KB, MB = 1 << 10, 1 << 20


def _small() -> AbstractContextManager:
    """Limits a hundred times smaller."""
    stack = contextlib.ExitStack()
    for name, value in (("FREE_BYTES", 2 * MB), ("FREE_ROWS", 1000), ("MAX_COLUMNS", 100)):
        stack.enter_context(patch.object(budget, name, value))
    return stack


def _listed(source: Any) -> tuple[list[dict], str]:
    """Rows of a source, and what it says where it refuses."""
    try:
        found = [source.items(unit, {}) for unit in source.units()]
    except UserError as error:
        return [], f"refused: {error.what}"
    try:
        rows = [row for items in found for row in items.to_pylist()]
    except UnicodeDecodeError as error:
        return [], f"cannot be read back: {error}"
    broken = [row["member"] for row in rows if (row["member"] or "").startswith("!")]
    return rows, f"error row: {broken[0][1:]}" if broken else f"{len(rows)} rows"


def _no(*_: object, **__: object) -> None:
    """A guard that lets everything through."""


# ---- bombs: compressed text


def _packed(text: bytes, packer: str) -> bytes:
    if packer == "gz":
        return gzip.compress(text)
    return bz2.compress(text) if packer == "bz2" else pa.compress(text, "zstd", asbytes=True)


TEXTS = {
    "jsonl of one endless line": ("jsonl", b'{"url": "' + b"x" * 12 * MB + b'"}'),
    "json of one endless record": ("json", b'[{"url": "http://x/1.jpg"}, {"url": "' + b"x" * 12 * MB + b'"}]'),
    "csv of one endless value": ("csv", b'url\n"' + b"x" * 12 * MB + b'"\n'),
}


def _unpacks(kind: str, text: bytes, packer: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        path = folder / f"t.{kind}.{packer}"
        path.write_bytes(_packed(text, packer))
        seen: list[int] = []
        plain = Unpacked.readinto

        def counted(self: Unpacked, buffer: Any) -> int:
            seen.append(plain(self, buffer))
            return seen[-1]

        with _small(), patch.object(Unpacked, "readinto", counted):
            _, told = _listed(Table(path=str(path)))
        return Outcome(sum(seen) >= 10 * MB, told)

    return strike


UNPACKED = [
    Attack(
        "listing bombs",
        f"{name}, {packer}",
        "unpacks to more than",
        _unpacks(*TEXTS[name], packer),
        lambda: patched(Budget, "_expect", _no),
    )
    for name in TEXTS
    for packer in ("gz", "bz2", "zst")
]

# ---- bombs: rows and values out of nothing

LINK = "http://x/1.jpg"
ROWS = 20_000


def _write_rows(path: Path, kind: str) -> None:
    if kind == "parquet of one value":
        pq.write_table(pa.table({"url": [LINK] * ROWS}), path.with_suffix(".parquet"))
    elif kind == "parquet of empty bytes":
        pq.write_table(pa.table({"jpg": pa.array([b""] * ROWS)}), path.with_suffix(".parquet"))
    elif kind == "parquet of nulls":
        pq.write_table(pa.table({"jpg": pa.nulls(ROWS, pa.binary())}), path.with_suffix(".parquet"))
    elif kind == "parquet of lists":
        lists = pa.array([[LINK] * (ROWS // 10)] * 10)
        pq.write_table(pa.table({"images": lists}), path.with_suffix(".parquet"))
    elif kind == "arrow, compressed":
        pa.feather.write_feather(
            pa.table({"url": pa.array([LINK] * ROWS).dictionary_encode()}),
            path.with_suffix(".feather"),
            compression="zstd",
        )
    elif kind == "csv.gz":
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(b"url,n\n" + b"a,\n" * ROWS))
    elif kind == "csv.gz of records that are none":
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(b"url,n\nx,y\n" + b"a\n" * ROWS))
    elif kind == "jsonl.gz of blanks":
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(b'{"url": "a"}\n' + b" \n" * ROWS))
    else:
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(b'{"url": "a"}\n' + b"[]\n" * ROWS))


def _many_rows(kind: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        _write_rows(folder / "t", kind)
        with _small(), patch.object(budget, "FREE_BYTES", 1 << 40):
            rows, told = _listed(Table(path=str(folder)))
        read = len(rows) > ROWS // 2 or (kind.endswith("blanks") and bool(rows))
        return Outcome(read, told)

    return strike


KINDS = ("parquet of one value", "parquet of empty bytes", "parquet of nulls", "parquet of lists", "arrow, compressed")
KINDS += ("csv.gz", "csv.gz of records that are none", "jsonl.gz of arrays", "jsonl.gz of blanks")
FEW = [
    Attack(
        "listing bombs",
        f"a row of less than a byte: {k}",
        "rows in a file of",
        _many_rows(k),
        lambda: patched(Budget, "rows", _no),
    )
    for k in KINDS
]

VALUE, TIMES = "v" * 16 * KB, 400
VALUES = {
    "caption": {"url": [LINK] * TIMES, "caption": [VALUE] * TIMES},
    "sidecar": {"url": [LINK] * TIMES, "more": [VALUE] * TIMES},
    "key": {"url": [LINK] * TIMES, "id": [VALUE] * TIMES},
    "link": {"url": [VALUE] * TIMES},
    "list": {"url": [LINK] * TIMES, "more": [[VALUE]] * TIMES},
    "struct": {"url": [LINK] * TIMES, "more": [{"a": VALUE}] * TIMES},
    "list of images": {"images": [[VALUE] * 20] * (TIMES // 20)},
}


def _unfolds(name: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        pq.write_table(pa.table(VALUES[name]), folder / "t.parquet")
        made: list[int] = []
        plain = columns.rows

        def counted(piece: Any, *more: Any) -> pa.Table:
            made.append(piece.weight())
            return plain(piece, *more)

        with _small(), patch.object(columns, "rows", counted):
            _, told = _listed(Table(path=str(folder), key="id" if name == "key" else None))
        return Outcome(sum(made) > 4 * MB, told)

    return strike


UNFOLDED = [
    Attack(
        "listing bombs",
        f"one value of a dictionary in every row: {name}",
        "values unfold",
        _unfolds(name),
        lambda: patched(Budget, "_expect", _no),
    )
    for name in VALUES
]


def _announced(folder: Path) -> Outcome:
    """One value, a page of 10 MB that zstd packs into 1 kB; refused by what the footer says, before it is unpacked."""
    table = pa.table({"url": [LINK], "caption": ["v" * 10 * MB]})
    pq.write_table(table, folder / "t.parquet", compression="zstd", use_dictionary=False)
    read: list[object] = []
    plain = readers._batches

    def counted(*arguments: Any) -> Iterator[pa.Table]:
        for batch in plain(*arguments):
            read.append(batch)
            yield batch

    with _small(), patch.object(readers, "_batches", counted):
        _, told = _listed(Table(path=str(folder)))
    return Outcome(bool(read), told)


def _endless(kind: str) -> Callable[[Path], Outcome]:
    """One record of 8 MB where 1 MB is the limit; the file itself is as large."""

    def strike(folder: Path) -> Outcome:
        text = '{"url": "http://x/1.jpg", "more": "' + "v" * 8 * MB + '"}'
        (folder / f"t.{kind}").write_text(f"[{text}]" if kind == "json" else text)
        limit = records.MAX_RECORD if records.MAX_RECORD > 1 << 40 else MB
        with patch.object(records, "MAX_RECORD", limit):
            rows, told = _listed(Table(path=str(folder), image="url"))
        return Outcome(any(len(row["sidecar"] or "") > MB for row in rows), told)

    return strike


def _many_columns(kind: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        names = ["url", *(f"c{n}" for n in range(400))]
        if kind == "csv":
            (folder / "t.csv").write_text(",".join(names) + "\n" + ",".join(["http://x"] * 401) + "\n")
        elif kind == "parquet":
            pq.write_table(pa.table({name: ["http://x"] for name in names}), folder / "t.parquet")
        else:
            (folder / "t.jsonl").write_text(json.dumps(dict.fromkeys(names, "http://x")))
        with _small():
            rows, told = _listed(Table(path=str(folder)))
        return Outcome(len(rows[0]["sidecar"] or "") > 4000 if rows else False, told)

    return strike


def _no_columns() -> AbstractContextManager:
    stack = contextlib.ExitStack()
    for module in (budget, roles, readers, delimited):
        stack.enter_context(patch.object(module, "expect_columns", _no))
    return stack


WIDE = [
    Attack(
        "listing bombs",
        "a page announced far larger than its file",
        "it unpacks to more than",
        _announced,
        lambda: patched(Budget, "_expect", _no),
    ),
    *(
        Attack(
            "listing bombs",
            f"one record without end, {kind}",
            "error row",
            _endless(kind),
            lambda: patched(records, "MAX_RECORD", 1 << 50),
        )
        for kind in ("jsonl", "json")
    ),
    *(
        Attack("listing bombs", f"columns without number, {kind}", "columns", _many_columns(kind), _no_columns)
        for kind in ("csv", "parquet", "jsonl")
    ),
]

# ---- patterns


def _names(pattern: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        with patch.object(
            globs, "MAX_TEXT", min(globs.MAX_TEXT, 5 * MB) if globs.MAX_TEXT < 1 << 40 else globs.MAX_TEXT
        ):
            try:
                made = len(globs.spelled(pattern, None if globs.MAX_NAMES > 1 << 40 else 10_000))
                told = f"{made} names"
            except UserError as error:
                made, told = 0, f"refused: {error.what}"
        return Outcome(made > 10_000 or sum(map(len, [pattern])) * made > 5 * MB, told)

    return strike


def _no_limit_of_names() -> AbstractContextManager:
    stack = contextlib.ExitStack()
    stack.enter_context(patch.object(globs, "MAX_NAMES", 1 << 62))
    stack.enter_context(patch.object(globs, "MAX_TEXT", 1 << 62))
    return stack


BRACES = {
    "one range": "{0..99999}",
    "ranges one behind the other": "{0..99}{0..99}{0..9}",
    "alternatives doubled again and again": "{a,b}" * 16,
    "empty alternatives": "{" + "," * 20_000 + "}",
    "ranges in folders": "{0..299}/x/{0..299}.tar",
    "few names of endless length": "x" * 20_000 + "{0..999}",
}
PATTERNS = {
    "stars between letters": ("a*" * 7 + "c", "a" * 40),
    "stars between question marks": ("?*" * 6 + "c", "a" * 74),
    "stars between classes": ("[ab]*" * 7 + "c", "ab" * 20),
    "folders without number": ("**/" * 5 + "c", "a/" * 60 + "a"),
    "stars in folders": ("**/*a*a*a*a*a*/c", "a" * 70 + "/b"),
}


def _regex(pattern: str) -> Callable[[str], bool]:
    """The pattern as one regular expression that goes back and forth, as it was before."""
    out = ""
    for token in re.findall(r"\*\*/|\*+|\?|\[[^\]]+\]|[^*?\[]+|\[", pattern):
        known = {"**/": "(?:.*/)?", "?": "[^/]"}.get(token)
        out += known or ("[^/]*" if token[0] == "*" else token if token[0] == "[" else re.escape(token))
    return lambda name: re.fullmatch(out, name) is not None


def _matches(pattern: str, name: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        start = time.thread_time()
        found = globs.matcher(pattern)(name)
        spent = time.thread_time() - start
        return Outcome(spent > 0.05, f"answered in time: {found}")

    return strike


GLOBS = [
    *(
        Attack("patterns", f"braces: {name}", "at most", _names(pattern), _no_limit_of_names)
        for name, pattern in BRACES.items()
    ),
    *(
        Attack(
            "patterns",
            f"backtracking: {name}",
            "answered in time",
            _matches(*case),
            lambda: patched(globs, "matcher", _regex),
        )
        for name, case in PATTERNS.items()
    ),
]

# ---- JSON


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [x for v in level if isinstance(v, (list, dict)) for x in (v.values() if isinstance(v, dict) else v)]
    return deepest


NESTED = {
    "lists": "[" * 150 + "]" * 150,
    "objects": '{"a":' * 150 + "1" + "}" * 150,
    "both, among brackets in text": '[{"a":' * 75 + '"]]}}"' + "}]" * 75,
}


def _deep(nested: str, kind: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        text = '{"url": "http://x/1.jpg", "deep": ' + nested + "}"
        (folder / f"t.{kind}").write_text(f"[{text}]" if kind == "json" else text)
        rows, told = _listed(Table(path=str(folder)))
        return Outcome(any(_depth(json.loads(row["sidecar"])) > 100 for row in rows if row["sidecar"]), told)

    return strike


def _twice_in_table(kind: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        text = '{"url": "http://x/1.jpg", "caption": "a cat", "caption": "an advertisement"}'
        (folder / f"t.{kind}").write_text(f"[{text}]" if kind == "json" else text)
        rows, told = _listed(Table(path=str(folder)))
        return Outcome("an advertisement" in [row["caption"] for row in rows], told)

    return strike


def _twice_beside(folder: Path) -> Outcome:
    (folder / "a.jpg").write_bytes(b"x")
    (folder / "a.json").write_text('{"caption": "a cat", "caption": "an advertisement"}')
    (row,), _ = _listed(Files(path=str(folder)))
    return Outcome(row["caption"] == "an advertisement", f"no caption, {row['sidecar']}")


def _twice_in_a_tar(folder: Path) -> Outcome:
    text = b'{"n": {"x": 1, "x": 2}, "caption": "an advertisement"}'
    with tarfile.open(folder / "s.tar", "w") as file:
        for name, data in (("a.jpg", b"x"), ("a.json", text)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    (row,), _ = _listed(WebDataset(path=str(folder)))
    return Outcome(row["caption"] == "an advertisement", f"no caption, {row['sidecar']}")


def _no_once() -> AbstractContextManager:
    stack = contextlib.ExitStack()
    stack.enter_context(patch.object(jsontext, "_once", dict))
    stack.enter_context(patch.object(json_array, "DECODER", json.JSONDecoder()))
    return stack


JSON = [
    *(
        Attack(
            "json",
            f"levels without end: {name}, {kind}",
            "deeper than 64 levels",
            _deep(text, kind),
            lambda: patched(jsontext, "MAX_DEPTH", 10**6),
        )
        for name, text in NESTED.items()
        for kind in ("jsonl", "json")
    ),
    *(
        Attack("json", f"a name twice in one object, {kind}", "a name twice", _twice_in_table(kind), _no_once)
        for kind in ("jsonl", "json")
    ),
    Attack("json", "a name twice in a sidecar", "a name twice", _twice_beside, _no_once),
    Attack("json", "a name twice inside of a sidecar in a tar", "a name twice", _twice_in_a_tar, _no_once),
]

# ---- tar headers


class _Spy(io.BytesIO):
    """A file that notes how many bytes are asked for at once, and gives no more than there are."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked: list[int] = []

    def read(self, size: int | None = -1) -> bytes:
        self.asked.append(-1 if size is None else size)
        return super().read(-1 if size is None or size < 0 else min(size, 1 << 20))


def _header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type = kind
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = (size & ((1 << 96) - 1)).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def _lies(kind: bytes, size: int) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        good = tarfile.TarInfo("a.jpg")
        good.size = 1
        file = _Spy(good.tobuf() + b"x".ljust(512, b"\0") + _header(kind, size) + b"y" * 4096)
        told = ""
        try:
            list(tar.members(file, "s.tar"))
        except tar.Damage as error:
            told = f"error row: {error}"
        except Exception as error:
            told = f"{type(error).__name__}"
        return Outcome(max(file.asked) > MB or min(file.asked) < 0, told)

    return strike


HEADERS = {"pax records": b"x", "pax records for all": b"g", "a long name": b"L", "a long link": b"K", "Solaris": b"X"}
TARS = [
    Attack(
        "tar headers",
        f"{name} of {size:,} bytes",
        "cut off or damaged behind a.jpg",
        _lies(kind, size),
        lambda: patched(tar, "_Headers", lambda file: file),
    )
    for name, kind in HEADERS.items()
    for size in (1 << 60, -512)
]

# ---- rows that hide others, and texts that fill the row table


def _one_key(kind: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        rows = [{"id": "a", "url": "http://x/good.jpg"}, {"id": "a", "url": "http://x/other.jpg"}]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
        elif kind == "csv":
            (folder / "t.csv").write_text("id,url\na,http://x/good.jpg\na,http://x/other.jpg\n")
        else:
            (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found, told = _listed(Table(path=str(folder), key="id"))
        return Outcome([row["key"] for row in found] == ["a", "a"], told)

    return strike


def _long_text(kind: str, text: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        if kind == "parquet":
            pq.write_table(pa.table({"url": [text]}), folder / "t.parquet")
        elif kind == "csv":
            (folder / "t.csv").write_text(f'url\n"{text}"\n')
        elif kind == "list":
            pq.write_table(pa.table({"images": [[text]]}), folder / "t.parquet")
        else:
            (folder / "t.jsonl").write_text(json.dumps({"url": text}))
        rows, told = _listed(Table(path=str(folder)))
        return Outcome(any(len(str(row)) > 10_000 for row in rows), f"{told}, {len(str(rows)) > 10_000}")

    return strike


def _bad_text(kind: str) -> Callable[[Path], Outcome]:
    """One text that is no UTF-8 makes the whole file unreadable."""

    def strike(folder: Path) -> Outcome:
        raw = pa.array([b"good", b"b\xe9d", b"fine"], pa.binary())
        bad = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
        links = pa.array(["http://x/1", "http://x/2", "http://x/3"])
        column = {"text": bad, "dictionary": bad.dictionary_encode(), "key": bad}[kind]
        pq.write_table(pa.table({"url": links, "text": column}), folder / "t.parquet")
        rows, told = _listed(Table(path=str(folder), key="text" if kind == "key" else None))
        good = [row for row in rows if row["uri"] in ("http://x/1", "http://x/3") and not row["member"]]
        return Outcome(len(good) < 2, told)

    return strike


def _names_of_files(folder: Path) -> Outcome:
    for number in range(200):
        (folder / f"a.{number:03d}{'x' * 240}").write_bytes(b"")
    told = json.dumps(notices_of(Files(path=str(folder)).items("", {})))
    return Outcome(len(told) > 10_000, f"counted in {len(told) < 10_000}")


def _no_short() -> AbstractContextManager:
    stack = contextlib.ExitStack()
    stack.enter_context(patch.object(notices, "_short", lambda what: what))
    stack.enter_context(patch.object(notices, "WHATS", 10**6))
    return stack


def _escape_in_a_suffix(folder: Path) -> Outcome:
    (folder / "a.\x1b[2J[red]").write_bytes(b"")
    (line,) = notices.lines([notices_of(Files(path=str(folder)).items("", {}))])
    shown = io.StringIO()
    told = progress.Progress()
    told._console.file = shown
    told.say(line)
    return Outcome("\x1b" in shown.getvalue(), f"shown as {shown.getvalue().strip()}")


def _no_encoded() -> AbstractContextManager:
    stack = contextlib.ExitStack()
    stack.enter_context(patch.object(columns, "is_encoded", lambda text: False))
    stack.enter_context(patch.object(columns, "encoded_at", lambda values: pa.array([False] * len(values))))
    stack.enter_context(patch.object(records, "is_encoded", lambda text: False))
    stack.enter_context(patch.object(delimited, "encoded_at", lambda values: pa.array([False] * len(values))))
    stack.enter_context(patch.object(columns, "MAX_ADDRESS", 1 << 40))
    return stack


TEXT_OF_AN_IMAGE = "data:image/png;base64," + "iVBORw0KGgoAAAAN" * 2000
ROWS_OF_STRANGERS = [
    *(
        Attack(
            "rows",
            f"two rows of one key, {kind}",
            "stands twice in its shard",
            _one_key(kind),
            lambda: patched(shards, "without_doubles", lambda listed: listed),
        )
        for kind in ("parquet", "csv", "jsonl")
    ),
    *(
        Attack(
            "rows",
            f"an address of 20,000 characters, {kind}",
            "too long for a path or URL",
            _long_text(kind, "http://x/" + "a." * 10_000),
            lambda: patched(columns, "MAX_ADDRESS", 1 << 40),
        )
        for kind in ("parquet", "csv", "jsonl", "list")
    ),
    *(
        Attack(
            "rows",
            f"an image as text in the row table, {kind}",
            "rows, False",
            _long_text(kind, TEXT_OF_AN_IMAGE),
            _no_encoded,
        )
        for kind in ("parquet", "csv", "jsonl", "list")
    ),
    *(
        Attack(
            "rows",
            f"a text that is no UTF-8 takes its file along, {kind}",
            "a text is not UTF-8",
            _bad_text(kind),
            lambda: patched(readers, "checked", lambda piece: piece),
        )
        for kind in ("text", "dictionary", "key")
    ),
    Attack("rows", "names of files fill the notices", "counted in True", _names_of_files, _no_short),
    Attack(
        "rows",
        "a terminal command in a suffix",
        "shown as",
        _escape_in_a_suffix,
        lambda: patched(progress, "printable", lambda text: text),
    ),
]


ATTACKS = [*UNPACKED, *FEW, *UNFOLDED, *WIDE, *GLOBS, *JSON, *TARS, *ROWS_OF_STRANGERS]
