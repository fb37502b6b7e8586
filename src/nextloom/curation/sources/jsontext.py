"""Columns as JSON text: one object a row, made column by column, since a source may have a billion rows.

Values stay as they are: a number of a CSV file keeps its spelling (`1.50`, and `007` is text), NaN and infinity
become null, times are ISO 8601. Columns of bytes are left out by the caller.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nextloom.curation.sources.finding import utf8
from nextloom.encoded import is_encoded

MAX_DEPTH = 64
"""Most levels of lists and objects inside of each other that a record may have."""
SHORT = 1024
"""Characters of a text that is no image, however it looks."""
NOT_JSON = "not JSON"
NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_SURROGATES = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)|\\.")
"""Escapes of a JSON text; the group is half of a pair."""
_ESCAPES = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))


def objects(table: pa.Table, *, spelled: bool = False) -> pa.ChunkedArray | None:
    """A JSON object per row, in the order of the columns; None of a table without columns.

    Args:
        table: no columns of bytes.
        spelled: whether text that spells a number is one, as in a CSV file.
    """
    if not table.num_columns:
        return None
    parts: list[Any] = []
    for at, name in enumerate(table.column_names):
        parts += [f"{', ' if at else '{'}{json.dumps(name, ensure_ascii=False)}: ", values(table.column(at), spelled)]
    return pc.binary_join_element_wise(*parts, "}", "")


def values(column: pa.ChunkedArray, spelled: bool = False) -> pa.ChunkedArray:
    """JSON text of each value; "null" for null."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return values(column.cast(kind.value_type), spelled)
    if is_text(kind):
        text = column.cast(pa.string())
        out = _quoted(text)
        if spelled:
            out = pc.if_else(pc.match_substring_regex(text, NUMBER), text, out)
    elif pa.types.is_floating(kind):
        finite = pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind))
        out = (finite.cast(pa.float32()) if pa.types.is_float16(kind) else finite).cast(pa.string())
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        out = column.cast(pa.string())
    elif pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        iso = pc.replace_substring(column.cast(pa.string()), " ", "T", max_replacements=1)
        out = pc.binary_join_element_wise('"', iso, '"', "")
    elif pa.types.is_null(kind):
        out = column.cast(pa.string())
    else:
        out = pa.chunked_array([pa.array([dumps(value) for value in column.to_pylist()], pa.string())])
    return pc.fill_null(out, "null")


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are bytes."""
    sizes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(is_size(kind) for is_size in sizes)


def _quoted(text: pa.ChunkedArray) -> pa.ChunkedArray:
    if pc.any(pc.match_substring_regex(text, r'[\\"\x00-\x1f]')).as_py():
        for plain, escaped in _ESCAPES:
            text = pc.replace_substring(text, plain, escaped)
        if pc.any(pc.match_substring_regex(text, r"[\x00-\x1f]")).as_py():  # rare, and each has its own escape
            text = pa.chunked_array([pa.array([_controls(value) for value in text.to_pylist()], pa.string())])
    return pc.binary_join_element_wise('"', text, '"', "")


def _controls(text: str | None) -> str | None:
    return text and "".join(f"\\u{ord(c):04x}" if c < " " else c for c in text)


def loads(text: str) -> Any:
    """The value of a JSON text that a stranger wrote; NaN and infinity are null.

    Raises:
        ValueError: no JSON, a name twice in one object, or deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_null)
    except RecursionError:
        raise ValueError(DEEP) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{NOT_JSON}: {error}") from None
    return expect_shallow(value, text)


DEEP = f"deeper than {MAX_DEPTH} levels"


def expect_shallow(value: Any, text: str) -> Any:
    """`value`, which `text` spells; a ValueError where it is deeper than `MAX_DEPTH`."""
    if text.count("[") + text.count("{") > MAX_DEPTH:
        level = [value]
        for _ in range(MAX_DEPTH + 1):
            inner = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
            level = [one for many in inner for one in many]
            if not level:
                return value
        raise ValueError(DEEP)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"a name twice in one object\t{utf8(twice)!r}")
    return found


def _finite(text: str) -> float | None:
    return number if math.isfinite(number := float(text)) else None


def _null(name: str) -> None:
    """NaN, Infinity."""


DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_null)
"""As `loads`, value by value (`raw_decode`)."""


def dumps(value: Any) -> str:
    r"""JSON of one value of any Arrow or JSON type; half of a surrogate pair becomes the six characters `\ud83d`."""
    text = json.dumps(plain(value), ensure_ascii=False)
    return text if utf8(text) == text else whole_characters(json.dumps(plain(value)))


def whole_characters(text: str) -> str:
    r"""A JSON text with each half of a surrogate pair as the six characters `\ud83d`: no SQL reads it otherwise."""
    return _SURROGATES.sub(lambda found: f"\\{found[0]}" if found[1] else found[0], text)


def plain(value: Any) -> Any:
    """`value` with what JSON has not: NaN and infinity as null, times as ISO 8601, bytes as null.

    A text that is an image (`encoded.is_encoded`) is null as well, as it would be were it bytes.
    """
    if isinstance(value, str):
        return None if len(value) > SHORT and is_encoded(value) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if value is None or isinstance(value, (int, bool)):
        return value
    return None if isinstance(value, bytes) else str(value)
