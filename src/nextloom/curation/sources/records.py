"""JSON files of records: an object a line (JSONL), an array of objects on a line, or one array over all of a file.

A line that is no JSON, an object with a name twice, or one that is too deep is a failed row, and the next is read. An
array over a whole file is read record by record, and ends where it is damaged: one failed row tells of the rest.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nextloom.curation.sources.budget import Budget
from nextloom.curation.sources.finding import utf8
from nextloom.curation.sources.input import Choose, Finder, Input
from nextloom.curation.sources.json_array import JsonArray
from nextloom.curation.sources.jsontext import NOT_JSON, dumps, loads
from nextloom.curation.sources.piece import STEP, Piece, Problem, labels_of
from nextloom.curation.sources.roles import Roles
from nextloom.curation.sources.shards import Refusal
from nextloom.encoded import is_encoded

MAX_RECORD = 64 << 20
"""Most bytes of a line, or of a record of an array."""
SAMPLE = 256
"""Records that tell which column is what; a field that none of them has can be named in the recipe only."""
CHUNK = 1 << 16
BLANKS = 1000
"""Lines without anything that are counted together."""
_START = b" \t\r\n\xef\xbb\xbf"


@dataclass(slots=True)
class _Record:
    """A record, or why there is none."""

    label: str
    value: dict[str, Any] | None
    problem: Problem | None
    weight: int
    raw: bytes = b""
    """The line it stands in."""
    offset: int = -1
    """Where that line begins; -1 where it has no place."""


def read_json(source: Input, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    """Pieces of a `.json`: an array of records, or what `read_jsonl` reads."""
    stream = io.BufferedReader(source.stream, 1 << 20)
    whole = stream.peek(1 << 16).lstrip(_START)[:1] == b"["
    return _pieces(source, choose, _of_array(stream) if whole else _of_lines(stream, source.budget))


def read_jsonl(source: Input, choose: Choose) -> Iterator[tuple[Piece, Roles]]:
    """Pieces of JSON lines; an array that begins the file and does not end on its line goes over all of it."""
    stream = io.BufferedReader(source.stream, 1 << 20)
    line = stream.peek(1 << 20).lstrip(_START).partition(b"\n")[0].strip()
    whole = line[:1] == b"[" and len(line) < 1 << 19 and line[-1:] != b"]"
    return _pieces(source, choose, _of_array(stream) if whole else _of_lines(stream, source.budget))


def _pieces(source: Input, choose: Choose, records: Iterator[_Record]) -> Iterator[tuple[Piece, Roles]]:
    role: Roles | None = None
    finder = Finder(source)
    found: list[_Record] = []
    weight = 0
    for record in records:
        if source.dialect.encoding or source.dialect.delimiter:
            raise Refusal("encoding and delimiter are about CSV files; JSON is UTF-8", "take them out of the source")
        found.append(record)
        weight += record.weight
        if role is None and len(found) < SAMPLE and weight < STEP:
            continue
        role = role or _role(found, choose)
        if role and (len(found) >= CHUNK or weight >= STEP):
            yield _of_objects(found, role, source, finder), role
            found, weight = [], 0
    if found:
        role = role or _role(found, choose)
        if role:
            yield _of_objects(found, role, source, finder), role
        else:
            problems = [record.problem for record in found if record.problem]
            if all(problem.message == NOT_JSON for problem in problems):
                raise ValueError(f"no line of it is JSON; {problems[0].detail}")
            yield (
                Piece(pa.table({"": pa.nulls(0)}), labels_of(0, 0), problems=problems),
                Roles("", False, None, None, ()),
            )


def _role(found: list[_Record], choose: Choose) -> Roles | None:
    values = [record.value for record in found if record.value is not None]
    return choose(_schema(values)) if values else None


def _of_lines(stream: io.BufferedReader, budget: Budget) -> Iterator[_Record]:
    number, offset, blank = -1, 0, 0
    while line := stream.readline(MAX_RECORD):
        number, start, offset = number + 1, offset, offset + len(line)
        if len(line) == MAX_RECORD and not line.endswith(b"\n"):
            while more := stream.readline(1 << 20):
                offset += len(more)
                if more.endswith(b"\n"):
                    break
            told = f"line {number + 1}: more than {MAX_RECORD:,} bytes"
            yield _Record(str(number), None, Problem(str(number), "a line is too long", told), 0)
            continue
        if number == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise Refusal("not UTF-8 but UTF-16", "convert it: iconv -f utf-16 -t utf-8")
        if not line.strip():
            blank += 1
            if blank % BLANKS == 0:
                budget.rows(BLANKS)
            continue
        try:
            value = loads(line.strip().decode("utf-8-sig" if number == 0 else "utf-8"))
        except UnicodeDecodeError as error:
            yield _failed(str(number), "a text is not UTF-8", f"line {number + 1}, byte {error.start}")
            continue
        except ValueError as error:
            message, _, more = str(error).partition("\t")
            what, _, where = message.partition(": ")
            yield _failed(str(number), what, f"line {number + 1}: {more or where}".removesuffix(": "))
            continue
        if isinstance(value, list):
            many = [(f"{number}/{at}", inner) for at, inner in enumerate(value)] or [(str(number), value)]
        else:
            many = [(str(number), value)]
        for label, one in many:
            yield _checked(label, one, f"line {number + 1}", len(line) // max(1, len(many)), line, start)


def _failed(label: str, message: str, detail: str) -> _Record:
    return _Record(label, None, Problem(label, message, utf8(detail)[:300]), 0)


def _checked(label: str, value: Any, where: str, weight: int, raw: bytes = b"", offset: int = -1) -> _Record:
    if not isinstance(value, dict):
        return _failed(label, "a record that is no object", f"{where}: {type(value).__name__}")
    return _Record(label, value, None, weight, raw, offset)


def _of_array(stream: io.BufferedReader) -> Iterator[_Record]:
    """Records of the one array in a file."""
    text = JsonArray(stream, MAX_RECORD)
    text.next("[")
    number = 0
    while not text.next("]"):
        try:
            if number and not text.next(","):
                raise ValueError(f"{NOT_JSON}: expected a comma or the end of the array")
            value, length = text.value()
        except ValueError as error:
            message, _, more = str(error).partition("\t")
            if message.startswith(NOT_JSON) or not text.skip_value():
                yield _failed(
                    f"{number}-", "the array is damaged, what follows is not read", f"record {number}: {message}"
                )
                return
            yield _failed(str(number), message, f"record {number}: {more}".removesuffix(": "))
        else:
            yield _checked(str(number), value, f"record {number}", length)
        number += 1
    if not text.over():
        yield _failed(f"{number}-", "text behind the end of the array is not read", f"behind record {number - 1}")


def _schema(values: list[dict[str, Any]]) -> pa.Schema:
    """Kinds of the fields of objects, as far as the choice of roles asks."""
    kinds: dict[type, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    fields: dict[str, pa.DataType] = {}
    for value in values:
        for name, inner in value.items():
            kind = kinds.get(type(inner), pa.null())
            if isinstance(inner, list) and inner and all(isinstance(one, str) for one in inner):
                kind = pa.list_(pa.string())
            if name not in fields or fields[name] == pa.null():
                fields[name] = kind
    return pa.schema([(utf8(name), kind) for name, kind in fields.items()])


def _of_objects(found: list[_Record], role: Roles, source: Input, finder: Finder) -> Piece:
    names = [name for name in (role.picture, role.key, role.caption) if name]
    columns: dict[str, list[str | None]] = {name: [] for name in names}
    labels, parts, sidecars = list[str](), list[str | None](), list[str | None]()
    broken, places = list[str | None](), dict[int, tuple[int, int] | None]()
    problems = [record.problem for record in found if record.problem]
    for record in found:
        if (value := record.value) is None:
            continue
        rest = {name: inner for name, inner in value.items() if name in role.rest or role.ragged}
        texts = {name: _text(value.get(name), name == role.key) for name in names if name != role.picture}
        for name, text in texts.items():
            if text is not None and name not in role.rest:
                rest.pop(name, None)
        images, why = _images(value.get(role.picture), role)
        if why is None and role.picture not in role.rest:
            rest.pop(role.picture, None)
        told = dumps(rest) if rest else None
        for part, image in images:
            if image is not None and is_encoded(image):
                source.expect_places()
                places[len(labels)] = _within(record, image) if record.offset >= 0 else finder.find(image)
            for name in names:
                columns[name].append(image if name == role.picture else texts[name])
            labels.append(record.label)
            parts.append(part)
            sidecars.append(told)
            broken.append(why)
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    piece = Piece(table, pa.array(labels, pa.string()), problems=problems, sidecar=pa.array(sidecars, pa.string()))
    piece.parts, piece.broken = pa.array(parts, pa.string()), pa.array(broken, pa.string())
    return piece.with_places(role.picture, places) if places else piece


def _text(value: Any, key: bool) -> str | None:
    if key and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return utf8(value) if isinstance(value, str) else None


def _images(value: Any, role: Roles) -> tuple[list[tuple[str | None, str | None]], str | None]:
    """(part of the key, text) of each image that a value names, and why it names none."""
    if isinstance(value, str):
        return [(None, utf8(value))], None
    if not isinstance(value, list):
        return [(None, None)], None
    texts = [utf8(one) if isinstance(one, str) else None for one in value]
    if role.index is not None:
        texts = texts[role.index : role.index + 1]
        return ([("/0", texts[0])], None) if texts else ([(None, None)], _none(role))
    return ([(f"/{at}", text) for at, text in enumerate(texts)], None) if texts else ([(None, None)], _none(role))


def _none(role: Roles) -> str:
    return f"no image in the list\tcolumn {role.picture!r}"


def _within(record: _Record, text: str) -> tuple[int, int] | None:
    """Place and length of a text in the line of its record."""
    for spelling in (text, text.replace("/", "\\/")):
        raw = spelling.encode()
        if (at := record.raw.find(raw)) >= 0:
            return record.offset + at, len(raw)
    return None
