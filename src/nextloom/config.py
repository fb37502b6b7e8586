"""Config as data: frozen pydantic models, YAML as their file form, Python builds the same objects.

Every model refuses unknown fields. `RootPath` fields are resolved once, while loading, against the
root folder of the run (``data/`` by default), so that what code sees is always an absolute path or a URI.
"""

from __future__ import annotations

import json
import os
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo

from nextloom import strict_yaml
from nextloom.errors import UserError, did_you_mean
from nextloom.io import is_uri, join

DEFAULT_ROOT = "data"
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: a date such as 2024-13-45


def _resolve(value: str, info: ValidationInfo) -> str:
    root = (info.context or {}).get("root")
    return value if root is None else resolve(value, root)


def resolve(path: str, root: str) -> str:
    """Absolute form of `path`: URIs and absolute paths as they are, others below `root`."""
    expanded = Path(path).expanduser()
    if is_uri(path) or expanded.is_absolute():
        return path if is_uri(path) else str(expanded)
    return join(root, expanded.as_posix()) if is_uri(root) else str(Path(root).absolute() / expanded)


def local_root(root: str, verb: str) -> Path:
    """`root` as a folder of this machine, for the verbs that write plain files.

    Raises:
        UserError: it is a URI.
    """
    if is_uri(root):
        raise UserError(
            f"`{verb}` writes plain files and cannot write to {root}",
            next="give a folder of this machine, then copy what was made",
        )
    return Path(root)


RootPath = Annotated[str, AfterValidator(_resolve)]
"""A path in a recipe: absolute, a URI, or relative to the run's root folder."""


class Model(BaseModel):
    """Base of every config object: frozen, keyword-only, unknown fields and infinite or undefined numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False, allow_inf_nan=False)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, or in the recipe of that bare name that ships with the package.

    Raises:
        UserError: no such recipe, unreadable, not UTF-8, or not a mapping; names file and line.
    """
    file = Path(path)
    if not os.path.isfile(path):
        shipped = {p.name.removesuffix(".yaml"): p for p in files("nextloom.recipes").iterdir()}
        if str(path) not in shipped:
            names = [name for name in shipped if not name.startswith("_")]
            raise UserError(f"no such recipe; {did_you_mean(str(path), names)}", where=str(path))
        file = Path(str(shipped[str(path)]))
    try:
        if (size := file.stat().st_size) > strict_yaml.MAX_BYTES:
            raise UserError(f"{size:,} bytes are no recipe; the limit is {strict_yaml.MAX_BYTES:,}", where=str(path))
        data = strict_yaml.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=str(path), next="save the file as UTF-8") from None
    except _NOT_YAML as error:
        raise UserError(f"not valid YAML: {error}", where=str(path)) from None
    if not isinstance(data, dict):
        raise UserError("a recipe is a mapping of fields", where=str(path))
    return data


def override(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`data` with each ``a.b=c`` applied; values are read as YAML. Parents must exist, typos are refused later."""
    for assignment in assignments:
        path, eq, text = assignment.partition("=")
        if not eq or not path:
            raise UserError(f"--set wants a.b=value, got {assignment!r}", next="for example --set source.path=photos")
        keys = path.split(".")
        node = data
        for depth, key in enumerate(keys[:-1]):
            child = node.get(key)
            if child is None and key not in node:
                child = {}
            if not isinstance(child, dict):
                raise UserError("not a mapping, so it has no fields to set", where=".".join(keys[: depth + 1]))
            child = dict(child)
            node[key] = child
            node = child
        try:
            node[keys[-1]] = strict_yaml.parse(text)
        except _NOT_YAML as error:
            quoted = shlex.quote(f"{path}={json.dumps(text, ensure_ascii=False)}")
            problem = getattr(error, "problem", None) or error
            raise UserError(f"not valid YAML: {problem}", where=path, next=f"quote the value: --set {quoted}") from None
    return data


def validate(kind: type[BaseModel], data: Any, *, where: str, root: str | None = None) -> Any:
    """Build `kind` from plain data; a pydantic error becomes a `UserError` with config path and suggestion."""
    try:
        return kind.model_validate(data, context={"root": root})
    except ValidationError as error:
        first = error.errors()[0]
        names = [str(key) for key in first["loc"] if "[" not in str(key)]  # the others are pydantic's own: "f[str]"
        path = ".".join([where, *names]).strip(".")
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(str(first["loc"][-1]), _fields_at(kind, first["loc"][:-1]))
            raise UserError(f"unknown field; {hint}", where=path) from None
        raise UserError(first["msg"].removeprefix("Value error, "), where=path) from None


def _fields_at(kind: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    for key in loc:
        field = kind.model_fields.get(str(key))
        inner = getattr(field, "annotation", None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return [field.alias or name for name, field in kind.model_fields.items()]
