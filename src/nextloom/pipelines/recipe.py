"""A recipe: one dataset, its source, its steps, and what is released and packed out of them.

`Recipe.load` reads YAML; Python builds the same object from op instances. Either way the graph is checked here:
names exist, rows and reads agree, nothing goes in a circle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import Field, InstanceOf, PrivateAttr, model_validator

from nextloom.config import Model, load_yaml, override, validate
from nextloom.curation.sources.source import Source
from nextloom.errors import UserError, did_you_mean
from nextloom.op import CHILDREN, Annotate, Expand, Pack, Reduce, RowOp, Select
from nextloom.pipelines.registry import find_op, find_source, look_beside
from nextloom.store.dataset import ROWS

SOURCE = "source"
NAME = re.compile(r"^[a-z][a-z0-9_]*$")


class RunOptions(Model):
    """How a run goes; nothing here changes a value."""

    commit_seconds: float = Field(30.0, gt=0)
    """A commit at least this often while results arrive."""
    commit_files: int = Field(500, gt=0)
    """A commit at least every so many files."""
    workers: int | None = Field(None, gt=0)
    """Worker processes; default: as many as the cluster has CPUs."""
    allow_empty: bool = False
    """Bury every row when the source lists nothing; else such a listing is refused."""
    cpu_hour_price: float | None = Field(None, ge=0)
    """What an hour of one CPU costs, in any currency: the report then tells the cost of each step."""


class ReleaseSpec(Model):
    """What a release fixes: which rows, which columns of them."""

    rows: str = SOURCE
    columns: tuple[str, ...] = ()


class Recipe(Model):
    """The whole DAG as data."""

    dataset: str
    source: InstanceOf[Source]
    steps: dict[str, InstanceOf[RowOp]] = {}
    releases: dict[str, ReleaseSpec] = {}
    packs: dict[str, InstanceOf[Pack]] = {}
    run: RunOptions = RunOptions()
    _allowed_environment: frozenset[str] | None = PrivateAttr(None)

    @property
    def allowed_environment(self) -> frozenset[str] | None:
        """Environment variables that were named on the command line; None for a recipe that Python built."""
        return self._allowed_environment

    @classmethod
    def load(cls, path: str, *, root: str, sets: list[str] | None = None) -> Recipe:
        """Read a YAML recipe: a file, or the name of one that ships with the package.

        Own ops (``op: "module:Class"``) are looked for where Python finds modules, and then beside the file.
        """
        data = override(load_yaml(path), sets or [])
        if os.path.isfile(path):
            look_beside(os.path.dirname(os.path.abspath(path)))
        recipe = cls.build(data, root=root)
        named = [text.partition("=") for text in sets or []]
        recipe._allowed_environment = frozenset(
            name.strip() for field, _, name in named if field.endswith("execution.api_key_env")
        )
        return recipe

    @classmethod
    def build(cls, data: dict[str, Any], *, root: str | None = None) -> Recipe:
        """A recipe from plain data, as YAML has it; a source, a step or a pack may also be there as the op it is.

        Errors carry the config path.
        """
        data = dict(data)
        common = _mapping(data.pop("execution", {}), "execution")
        if "source" in data and not isinstance(data["source"], Source):
            kind = dict(_mapping(data["source"], "source"))
            data["source"] = validate(find_source(kind.pop("op", None), "source.op"), kind, where="source", root=root)
        for section in ("steps", "packs"):
            built = {}
            for name, fields in _mapping(data.get(section, {}), section).items():
                where = f"{section}.{name}"
                if isinstance(fields, RowOp | Pack):
                    built[name] = fields
                    continue
                fields = dict(_mapping(fields, where))
                kind = find_op(fields.pop("op", None), f"{where}.op", RowOp if section == "steps" else Pack)
                if common:
                    fields["execution"] = {**common, **fields.get("execution", {})}
                built[name] = validate(kind, fields, where=where, root=root)
            data[section] = built
        return validate(cls, data, where="", root=root)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if not NAME.match(self.dataset):
            raise UserError(f"{self.dataset!r}: lower-case letters, digits and _ only", where="dataset")
        for name in [*self.steps, *self.releases, *self.packs]:
            if not NAME.match(name) or name == SOURCE:
                raise UserError("a name is lower-case letters, digits and _, and not 'source'", where=name)
        Graph(self)
        return self


@dataclass(frozen=True)
class Step:
    """A step in its place: what it reads, which rows it is wanted on, in which domain they live."""

    name: str
    op: RowOp
    rows: str
    """`source`, or the Select or Expand that chooses the rows."""
    domain: str
    """`source`, or the Expand whose children these rows are."""
    reads: tuple[str, ...]
    content: str | None = None
    """The step in `reads` whose column holds the bytes of the row; None: they are where the source says."""

    @property
    def kind(self) -> str:
        """expand, annotate, reduce or select."""
        kinds = {Expand: "expand", Annotate: "annotate", Reduce: "reduce", Select: "select"}
        return next(name for kind, name in kinds.items() if isinstance(self.op, kind))


class Graph:
    """The steps of a recipe in an order in which each comes after what it needs.

    Raises:
        UserError: an unknown step, a circle, or columns and rows of different domains.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._needs = {name: self._depends(name) for name in recipe.steps}
        try:
            order = list(TopologicalSorter(self._needs).static_order())
        except CycleError as error:
            raise UserError(f"steps need each other in a circle: {' -> '.join(error.args[1])}", where="steps") from None
        self.steps: dict[str, Step] = {}
        for name in order:
            if name != SOURCE:
                self.steps[name] = self._place(name)
        for name, spec in recipe.releases.items():
            self._check_release(name, spec)
        for name, pack in recipe.packs.items():
            if pack.release not in recipe.releases:
                raise UserError(
                    f"unknown release {pack.release!r}; {did_you_mean(pack.release, recipe.releases)}",
                    where=f"packs.{name}.release",
                )

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps.values())

    def __getitem__(self, name: str) -> Step:
        return self.steps[name]

    def upto(self, target: str | None) -> list[Step]:
        """All steps, or those that `target` (a step or a release) needs, itself included."""
        if target is None:
            return list(self)
        if target in self._recipe.releases:
            spec = self._recipe.releases[target]
            wanted = {spec.rows, *spec.columns} - {SOURCE}
        elif target in self.steps:
            wanted = {target}
        else:
            names = [*self.steps, *self._recipe.releases]
            raise UserError(f"unknown step or release {target!r}; {did_you_mean(target, names)}", where="--to")
        todo = list(wanted)
        while todo:
            for name in self._needs[todo.pop()] - {SOURCE} - wanted:
                wanted.add(name)
                todo.append(name)
        return [step for step in self if step.name in wanted]

    def _depends(self, name: str) -> set[str]:
        op = self._recipe.steps[name]
        where = f"steps.{name}"
        needs = {op.rows or SOURCE, *self._reads(op)}
        for other in needs - {SOURCE}:
            if other not in self._recipe.steps:
                raise UserError(f"unknown step {other!r}; {did_you_mean(other, self._recipe.steps)}", where=where)
        return needs

    @staticmethod
    def _reads(op: RowOp) -> tuple[str, ...]:
        if isinstance(op, Select):
            return tuple(name for name in op.used() if name != SOURCE)
        return op.reads

    def _place(self, name: str) -> Step:
        op = self._recipe.steps[name]
        rows = op.rows or SOURCE
        reads = self._reads(op)
        bringing = [other for other in reads if getattr(self._recipe.steps[other], "content", "")]
        if len(bringing) > 1:
            raise UserError(f"{bringing[0]!r} and {bringing[1]!r} both bring bytes", where=f"steps.{name}.reads")
        domain = self._domain_of(rows, f"steps.{name}.rows")
        step = Step(name, op, rows, domain, reads, bringing[0] if bringing else None)
        for other in step.reads:
            self._check_covers(other, step)
        known = self._columns_of(step)
        if isinstance(op, Select):
            known[SOURCE] = (ROWS if step.domain == SOURCE else CHILDREN).names
        op.check(known, f"steps.{name}")
        op.check_scales({other: self.steps[other].op.score_scales() for other in step.reads}, f"steps.{name}")
        if isinstance(op, Select):
            schemas = {other: self.steps[other].op.table_schema() for other in step.reads}
            op.check_types({**schemas, SOURCE: ROWS if step.domain == SOURCE else CHILDREN}, f"steps.{name}")
        if isinstance(op, Expand) and step.domain != SOURCE and self.steps[step.domain].domain != SOURCE:
            raise UserError("children of children of children have no room in an id", where=f"steps.{name}.rows")
        return step

    def _columns_of(self, step: Step) -> dict[str, list[str]]:
        return {other: ["id", *self.steps[other].op.columns().names] for other in step.reads}

    def _domain_of(self, rows: str, where: str) -> str:
        if rows == SOURCE:
            return SOURCE
        step = self.steps[rows]
        if isinstance(step.op, Expand):
            return rows
        if isinstance(step.op, Select):
            return step.domain
        raise UserError(f"{rows!r} chooses no rows: name a select or an expand", where=where)

    def _check_covers(self, other: str, step: Step) -> None:
        """`other` must exist for every row that `step` is wanted on: same domain, same rows or a wider set."""
        read = self.steps[other]
        where = f"steps.{step.name}"
        if isinstance(read.op, Expand):
            raise UserError(
                f"reads {other!r}, which makes rows and has no values",
                where=where,
                next=f"set steps.{step.name}.rows to {other} to run on its children",
            )
        if read.domain != step.domain:
            raise UserError(
                f"reads {other!r}, which is about rows of {read.domain!r}, not {step.domain!r}", where=where
            )
        if isinstance(step.op, Annotate | Expand) and isinstance(read.op, Reduce | Select):
            raise UserError(
                f"reads {other!r}, which depends on the whole row set: the value of a row may not change with others",
                where=where,
                next=f"use rows: {other} to run on what it selects, or read it in a select",
            )
        rows = step.rows
        while rows != read.rows:
            if rows in (SOURCE, step.domain):
                raise UserError(
                    f"reads {other!r}, which exists only for the rows of {read.rows!r}",
                    where=where,
                    next=f"set steps.{step.name}.rows to {read.rows}",
                )
            rows = self.steps[rows].rows

    def _check_release(self, name: str, spec: ReleaseSpec) -> None:
        where = f"releases.{name}"
        for step in {spec.rows, *spec.columns} - {SOURCE}:
            if step not in self.steps:
                raise UserError(f"unknown step {step!r}; {did_you_mean(step, self.steps)}", where=where)
        probe = Step(name, Reduce(), spec.rows, self._domain_of(spec.rows, where), spec.columns)
        for column in spec.columns:
            self._check_covers(column, probe)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError("expected a mapping of fields", where=where)
    return value
