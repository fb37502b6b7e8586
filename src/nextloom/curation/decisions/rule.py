"""A rule: a SQL expression about one row, taken apart by DuckDB's own parser (https://duckdb.org).

`parse` says which `step.column` a rule reads and which parts AND joins at its top, and refuses what looks beyond
the row or differs from run to run: aggregates, windows, subqueries, `random()`, `now()`. `comparisons` lists the
numbers that it compares columns with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

import duckdb

from nextloom.errors import did_you_mean

_REFUSED = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "*",
    "LAMBDA": "a lambda (`->` before a comparison is read as one: write `->>`)",
    "PARAMETER": "a parameter",
}
_ALLOWED = {"COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "FUNCTION", "CAST", "CASE"}
_ALLOWED |= {"BETWEEN", "COLLATE", "TYPE"}
Operator = Literal[">", ">=", "<", "<=", "=", "<>"]
_OPERATORS: dict[str, tuple[Operator, Operator]] = {
    "COMPARE_GREATERTHAN": (">", "<"),
    "COMPARE_GREATERTHANOREQUALTO": (">=", "<="),
    "COMPARE_LESSTHAN": ("<", ">"),
    "COMPARE_LESSTHANOREQUALTO": ("<=", ">="),
    "COMPARE_EQUAL": ("=", "="),
    "COMPARE_NOTEQUAL": ("<>", "<>"),
}
"""DuckDB's name -> the operator, and what it is with its sides changed."""
_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|\w+|\s+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule reads and says."""

    columns: tuple[tuple[str, str], ...]
    """(step, column) pairs in the order of the text."""
    parts: tuple[str, ...]
    """SQL of the parts that AND joins at the top; all must be true."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column beside a number, the column written first: ``5 < a.b`` is ``a.b > 5``."""

    step: str
    column: str
    operator: Operator
    value: float
    part: int
    """Index, in `Rule.parts`, of the part that holds it."""
    alone: bool
    """It is that whole part, or one end of the BETWEEN that is: moving the number moves this rule alone."""


def connect(threads: int = 1) -> duckdb.DuckDBPyConnection:
    """A database in memory that can reach neither files nor network, installs nothing, and cannot be told to."""
    config: dict[str, bool | float | int | list[str] | str] = {
        "enable_external_access": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
        "lock_configuration": "true",
        "threads": threads,
    }
    return duckdb.connect(":memory:", config=config)


@lru_cache(maxsize=256)
def parse(sql: str) -> Rule:
    """The rule in `sql`.

    Raises:
        ValueError: a syntax error, or something that is not about one row.
    """
    root = expression(sql)
    columns = []
    for node in _nodes(root):
        kind = node["class"]
        if kind not in _ALLOWED:
            raise ValueError(f"a rule is about one row, and cannot hold {_REFUSED.get(kind, kind.lower())}")
        if kind == "FUNCTION":
            _assert_plain_function(node["function_name"].lower())
        if kind == "COLUMN_REF":
            names = node["column_names"]
            if len(names) < 2:
                raise ValueError(f"write step.column, not {names[0]!r}: a rule names the step it reads")
            columns.append((names[0], names[1]))
    if not columns:
        raise ValueError("the rule reads no step.column; `source.id is not null` keeps every row")
    return Rule(tuple(dict.fromkeys(columns)), _parts(sql, root))


@lru_cache(maxsize=256)
def comparisons(sql: str) -> tuple[Comparison, ...]:
    """Where a rule compares a column with a number, in the order of the text.

    Raises:
        ValueError: as `parse`.
    """
    found = []
    for place, part in enumerate(parse(sql).parts):
        root = expression(part)
        for node in _nodes(root):
            for column, operator, number in _compared(node):
                name, value = _column(column), _number(number)
                if name and value is not None:
                    found.append(Comparison(*name, operator, value, place, node is root))
    return tuple(found)


@lru_cache(maxsize=256)
def compared_columns(sql: str) -> tuple[tuple[tuple[str, str], tuple[str, str]], ...]:
    """Pairs of (step, column) that a rule compares with each other, in the order of the text.

    Raises:
        ValueError: as `parse`.
    """
    parse(sql)
    pairs = [(_column(a), _column(b)) for node in _nodes(expression(sql)) for a, _, b in _compared(node)]
    return tuple(dict.fromkeys((a, b) if a <= b else (b, a) for a, b in pairs if a and b))


@lru_cache(maxsize=256)
def column_of(sql: str) -> tuple[str, str] | None:
    """(step, column) of a text that is one column and nothing else; None of any other."""
    root = expression(sql)
    return _column(root) if root["class"] == "COLUMN_REF" else None


def _column(node: dict[str, Any]) -> tuple[str, str] | None:
    """(step, column) of a bare or cast column; None of anything else, a field inside a column included."""
    while node["class"] == "CAST":
        node = node["child"]
    names = node["column_names"] if node["class"] == "COLUMN_REF" else ()
    return (names[0], names[1]) if len(names) == 2 else None


def _compared(node: dict[str, Any]) -> list[tuple[dict[str, Any], Operator, dict[str, Any]]]:
    """(column, operator, number) that `node` may be, for both ways to write it."""
    if node["type"] == "COMPARE_BETWEEN":
        return [(node["input"], ">=", node["lower"]), (node["input"], "<=", node["upper"])]
    if node["type"] not in _OPERATORS:
        return []
    operator, turned = _OPERATORS[node["type"]]
    return [(node["left"], operator, node["right"]), (node["right"], turned, node["left"])]


def _number(tree: dict[str, Any]) -> float | None:
    """Value of an expression without columns; None if it has some, or is no finite number."""
    if any(node["class"] == "COLUMN_REF" for node in _nodes(tree)):
        return None
    try:
        row = _database().execute(f"SELECT {_sql(tree)}").fetchone()
    except duckdb.Error:
        return None
    value = row[0] if row else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        return None
    return float(value)


def expression(sql: str) -> dict[str, Any]:
    """Syntax tree of one expression, without the positions in the text.

    Raises:
        ValueError: a syntax error, or more than one expression.
    """
    tree = _tree(f"SELECT ({sql}\n)")
    if tree.get("error"):
        raise ValueError(f"not a SQL expression: {tree['error_message']}")
    one = tree["statements"][0]["node"]
    plain = _tree("SELECT (true)")["statements"][0]["node"]
    if (
        len(tree["statements"]) != 1
        or len(one.get("select_list", ())) != 1
        or one != plain | {"select_list": one["select_list"]}
    ):
        raise ValueError("not a SQL expression: it is a whole query")
    return one["select_list"][0]


def _tree(query: str) -> dict[str, Any]:
    text = _ask("SELECT json_serialize_sql(?)", query)
    return json.loads(text, object_hook=_without_position)


def value_of(tree: dict[str, Any], known: Mapping[tuple[str, str], bool]) -> Any:
    """Value of an expression whose columns are all `known`.

    Raises:
        ValueError: it reads another column, or has no value.
    """
    names = {False: expression("false"), True: expression("true")}

    def put(node: Any) -> Any:
        if isinstance(node, list):
            return [put(one) for one in node]
        if not isinstance(node, dict):
            return node
        if node.get("class") == "COLUMN_REF":
            place = _column(node)
            if place not in known:
                raise ValueError(f"{'.'.join(node['column_names'])} is not known")
            return names[known[place]]
        return {key: put(value) for key, value in node.items()}

    try:
        row = _database().execute(f"SELECT {_sql(put(tree))}").fetchone()
    except duckdb.Error as error:
        raise ValueError(str(error)) from None
    return row[0] if row else None


def _without_position(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if not key.startswith("query_location")}


def _ask(query: str, value: str) -> str:
    row = _database().execute(query, [value]).fetchone()
    assert row is not None
    return row[0]


@lru_cache
def _database() -> duckdb.DuckDBPyConnection:
    return connect()


@lru_cache
def _functions() -> dict[str, tuple[str, str | None]]:
    """Function name -> (kind, stability) of its most harmless form: ``-`` has one that depends on the time zone."""
    query = """SELECT function_name, function_type, stability FROM duckdb_functions()
        ORDER BY function_type IN ('scalar', 'macro'), stability = 'CONSISTENT' NULLS FIRST"""
    functions = {name: (kind, stability) for name, kind, stability in _database().execute(query).fetchall()}
    return functions | {"age": ("scalar", "VOLATILE")}  # of one argument it reads the clock


def _assert_plain_function(name: str) -> None:
    functions = _functions()
    if name not in functions:
        raise ValueError(f"no function {name!r}; {did_you_mean(name, functions)}")
    kind, stability = functions[name]
    if kind not in ("scalar", "macro"):
        raise ValueError(f"a rule is about one row, and cannot hold {name}(), which is about many")
    if kind == "scalar" and stability != "CONSISTENT":
        raise ValueError(f"a rule gives the same verdict every time, and cannot hold {name}()")


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every expression below `node`, in the order of the text."""
    if isinstance(node, dict):
        if "class" in node:
            yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)


def _parts(sql: str, root: dict[str, Any]) -> tuple[str, ...]:
    """Top-level parts as the user wrote them, or as DuckDB writes them where splitting the text went wrong."""
    trees = root["children"] if root["type"] == "CONJUNCTION_AND" else [root]
    parts = _split(_tokens(sql))
    try:
        if [expression(part) for part in parts] == trees:
            return tuple(parts)
    except ValueError:
        pass
    return tuple(_sql(tree) for tree in trees)


def _sql(tree: dict[str, Any]) -> str:
    query = _tree("SELECT (true)")
    query["statements"][0]["node"]["select_list"] = [tree]
    return _ask("SELECT json_deserialize_sql(?::JSON)", json.dumps(query)).removeprefix("SELECT ")


def _tokens(sql: str) -> list[str]:
    """Words, strings and signs; comments and runs of blanks become one blank."""
    comment = ("--", "/*")
    return [" " if token.isspace() or token.startswith(comment) else token for token in _TOKEN.findall(sql)]


def _split(tokens: list[str]) -> list[str]:
    """Text between the ANDs outside of brackets, CASE and BETWEEN; brackets around a whole are opened."""
    parts, depth, betweens, alternatives = [[]], 0, 0, False
    for token in tokens:
        word = token.lower()
        depth += (word in ("(", "[", "{", "case")) - (word in (")", "]", "}", "end"))
        if depth == 0 and word == "and" and not betweens:
            parts.append([])
            continue
        if depth == 0:
            betweens += (word == "between") - (word == "and")
            alternatives |= word == "or"  # binds weaker than AND: the whole is one part
        parts[-1].append(token)
    if len(parts) > 1 and not alternatives:
        return [text for part in parts for text in _split(part)]
    text = "".join(tokens).strip()
    inner = _tokens(text[1:-1]) if text.startswith("(") and text.endswith(")") else []
    return _split(inner) if inner and _balanced(inner) else [text]


def _balanced(tokens: list[str]) -> bool:
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if depth < 0:
            return False
    return depth == 0
