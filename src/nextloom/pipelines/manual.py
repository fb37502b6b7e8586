"""What every op and source says of itself: fields with types and defaults, the columns it gives, an example.

All of it is read off the classes: the text of a module and of its class, the docstring under each field, `columns()`
of the op that the example makes. An example is a line such as ``phash: {op: perceptual_hash}`` in one of these texts.
Nothing heavy is imported, as for a plan.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from nextloom.config import validate
from nextloom.errors import UserError, did_you_mean
from nextloom.op import CHILDREN, Annotate, Expand, Op, Pack, Reduce, Select
from nextloom.pipelines.registry import OPS, SOURCES, known, load
from nextloom.store.dataset import ROWS

KINDS = {"source": None, "expand": Expand, "annotate": Annotate, "reduce": Reduce, "select": Select, "pack": Pack}
"""Kind -> its base class, in the order of a pipeline."""
COMMON = ("rows", "reads", "execution")
"""Fields that all ops have; told last."""
_ENTRY = re.compile(r"^(?: {4,})?([a-z_][a-z0-9_]*):\s+(?=\{)", re.MULTILINE)
_NAMES = {"RootPath": "path", "NoneType": "null", "None": "null", "tuple": "list"}


@dataclass(frozen=True, slots=True)
class FieldPage:
    """One field of an op."""

    name: str
    type: str
    default: str | None
    """As a recipe writes it; None: it must be given."""
    doc: str


@dataclass(frozen=True, slots=True)
class Page:
    """What is known of one op or source."""

    name: str
    kind: str
    summary: str
    text: str
    """How it works and what it costs; the text of its module."""
    code: str
    """``module:Class``."""
    fields: list[FieldPage]
    inner: dict[str, list[FieldPage]] = field(default_factory=dict)
    """Field -> its own fields, where it is a mapping of these; `execution` among them, which changes no value."""
    columns: dict[str, str] = field(default_factory=dict)
    """Name -> Arrow type, without `id` and `error`; for other settings there may be others."""
    columns_doc: str = ""
    example: str = ""
    """YAML, with the steps that it reads where its text shows them."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def pages() -> list[Page]:
    """All built-in sources and ops, by kind and name."""
    order = list(KINDS)
    return sorted((page_of(cls) for cls in _classes().values()), key=lambda page: (order.index(page.kind), page.name))


def page(name: str) -> Page:
    """The page of one: a name, or ``module:Class`` of an own op.

    Raises:
        UserError: there is no such op.
    """
    if ":" in name:
        return page_of(load(name, "ops"))
    if name not in _classes():
        raise UserError(f"no op {name!r}; {did_you_mean(name, _classes())}", next="nextloom ops lists all")
    return page_of(_classes()[name])


def _classes() -> dict[str, type[BaseModel]]:
    return {**known(SOURCES), **known(OPS)}


def page_of(cls: type[Any]) -> Page:
    """The page of a class."""
    kind = "source"
    if issubclass(cls, Op):
        kind = next(name for name, base in KINDS.items() if base and issubclass(cls, base))
    own = textwrap.dedent(inspect.getdoc(cls) or "")
    summary, _, more = own.partition("\n")
    module = inspect.getdoc(inspect.getmodule(cls)) or ""
    example, fields = example_of(cls)
    columns, doc = _columns(cls, kind, fields)
    return Page(
        cls.name,
        kind,
        summary.strip(),
        "\n\n".join(part for part in (more.strip(), module.strip()) if part),
        f"{cls.__module__}:{cls.__qualname__}",
        field_pages(cls),
        _inner(cls),
        columns,
        doc,
        example,
    )


def field_pages(cls: type[BaseModel]) -> list[FieldPage]:
    """The fields of a config class, as recipes write them."""
    out = []
    for name, info in cls.model_fields.items():
        annotation, doc = _told(cls, name)
        if info.is_required():
            default = None
        else:
            value = info.get_default(call_default_factory=True)
            default = "" if value is PydanticUndefined else _written(value)
        nested = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        kind = "mapping, see below" if nested else _type(annotation, info.metadata)
        out.append(FieldPage(info.alias or name, kind, default, doc))
    return sorted(out, key=lambda page: COMMON.index(page.name) if page.name in COMMON else -1)


def _inner(cls: type[BaseModel]) -> dict[str, list[FieldPage]]:
    kinds = {info.alias or name: info.annotation for name, info in cls.model_fields.items()}
    return {
        name: field_pages(kind)
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def _told(cls: type, name: str) -> tuple[str, str]:
    """Annotation and docstring of a field, from the class that wrote them last."""
    annotation = doc = ""
    for base in cls.__mro__:
        found = _fields_in(base).get(name)
        if found:
            annotation, doc = annotation or found[0], doc or found[1]
    return annotation, doc


@lru_cache
def _fields_in(cls: type) -> dict[str, tuple[str, str]]:
    """Field -> (annotation, the text under it), as a class itself writes them."""
    if not (isinstance(cls, type) and issubclass(cls, BaseModel)) or cls is BaseModel:
        return {}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    out = {}
    for at, node in enumerate(body.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            below = body.body[at + 1] if at + 1 < len(body.body) else None
            text = below.value if isinstance(below, ast.Expr) else None
            told = text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else ""
            out[node.target.id] = ast.unparse(node.annotation), " ".join(told.split())
    return out


def _type(annotation: str, metadata: list[Any]) -> str:
    """An annotation in words: ``path or null``, ``int, 0 to 8``."""
    text = re.sub(r"Annotated\[(\w+), Field\([^)]*\)\]", r"\1", annotation)
    text = re.sub(r"^Annotated\[(\w+),.*$", r"\1", text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace(", ", " | "), text)
    text = re.sub(r"(?:tuple|list|Sequence)\[([^\[\]]*?)(?:, \.\.\.)?\]", r"list of \1", text)
    text = re.sub(r"(?:dict|Mapping)\[(.*), ([^\[\]]*)\]", r"mapping of \1 to \2", text)
    for name, word in _NAMES.items():
        text = re.sub(rf"\b{name}\b", word, text)
    text = text.replace(" | ", " or ")
    limits = {
        kind: getattr(each, kind) for each in metadata for kind in ("ge", "gt", "le", "lt") if hasattr(each, kind)
    }
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return ", ".join([text, *(f"{words[kind]} {value:,}" for kind, value in limits.items() if value is not None)])


def _written(value: Any) -> str:
    """A value as a recipe writes it."""
    if isinstance(value, BaseModel):
        return "as below"
    if isinstance(value, (tuple, set, frozenset)):
        value = list(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).removesuffix("\n...\n").strip()
    )


# ---- examples


def example_of(cls: type[Any]) -> tuple[str, dict[str, Any]]:
    """(YAML text, the fields of the op in it); ("", {}) where no text of the class or module shows one."""
    for text in (inspect.getdoc(cls) or "", inspect.getdoc(inspect.getmodule(cls)) or ""):
        shown: list[str] = []
        for name, mapping in _entries(text):
            entry = f"{name}: {mapping}"
            shown.append(entry)
            fields = _parsed([entry]) or _parsed(shown) or {}
            own = fields.get(name)
            if isinstance(own, dict) and own.get("op") == cls.name:
                before = [line for line in shown[:-1] if _is_read(line.partition(":")[0], own)]
                return "\n".join([*before, entry]), {key: value for key, value in own.items() if key != "op"}
    return "", {}


def _is_read(name: str, fields: dict[str, Any]) -> bool:
    return name != "source" and (name in (fields.get("reads") or []) or name == fields.get("rows"))


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """(name, flow mapping) of each ``name: {...}`` that begins a line of `text`."""
    for found in _ENTRY.finditer(text):
        depth, quote, end = 0, "", found.end()
        for at in range(found.end(), len(text)):
            char = text[at]
            if quote:
                quote = "" if char == quote else quote
            elif char in "\"'":
                quote = char
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth -= 1
                if depth == 0:
                    end = at + 1
                    break
        yield found[1], " ".join(text[found.end() : end].split())


def _parsed(entries: list[str]) -> dict[str, Any] | None:
    try:
        data = yaml.safe_load("\n".join(entries))
    except yaml.YAMLError:
        return None
    return data if isinstance(data, dict) else None


def _columns(cls: type[Any], kind: str, fields: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Name -> type of what it gives, and what its `columns` says of them."""
    if kind in ("source", "expand"):
        schema = ROWS if kind == "source" else CHILDREN
        return {each.name: str(each.type) for each in schema if each.name not in ("id", "error")}, ""
    if kind == "pack":
        return {}, ""
    try:
        schema = validate(cls, fields, where=cls.name).columns()
    except UserError:  # an own op whose text shows no example
        return {}, ""
    own = cls.columns.__doc__ if "columns" in vars(cls) else ""
    return {each.name: str(each.type) for each in schema}, inspect.cleandoc(own or "")
