"""The ops that recipes may name: one entry each. An own op needs none: ``op: "mypackage.module:MyOp"``.

Own ops are imported from where Python finds modules, and last from the folder of the recipe that names one. A recipe
that names none imports nothing from its folder, and the working directory is no place to look in.
"""

from __future__ import annotations

import importlib
import sys
from functools import lru_cache

from nextloom.curation.sources.source import Source
from nextloom.errors import UserError, did_you_mean
from nextloom.op import Op

SOURCES = (
    "nextloom.curation.sources.adapters:CommonCatalog",
    "nextloom.curation.sources.adapters:Coyo",
    "nextloom.curation.sources.adapters:Laion",
    "nextloom.curation.sources.adapters:Megalith",
    "nextloom.curation.sources.adapters:Pd12m",
    "nextloom.curation.sources.files:Files",
    "nextloom.curation.sources.huggingface:HuggingFace",
    "nextloom.curation.sources.img2dataset:Img2Dataset",
    "nextloom.curation.sources.table:Table",
    "nextloom.curation.sources.webdataset:WebDataset",
)

OPS = (
    "nextloom.curation.captions.caption:Caption",
    "nextloom.curation.captions.caption:Recaption",
    "nextloom.curation.captions.caption_qa:CaptionQa",
    "nextloom.curation.decisions.balance:Balance",
    "nextloom.curation.decisions.quantile:Quantile",
    "nextloom.curation.decisions.select:SelectWhere",
    "nextloom.curation.duplicates.near_duplicate:NearDuplicate",
    "nextloom.curation.duplicates.semantic_duplicate:SemanticDuplicate",
    "nextloom.curation.gif_frames:GifFrames",
    "nextloom.curation.scores.aesthetic_score:AestheticScore",
    "nextloom.curation.scores.embed:Embed",
    "nextloom.curation.scores.image_stats:ImageStats",
    "nextloom.curation.scores.nsfw:Nsfw",
    "nextloom.curation.scores.perceptual_hash:PerceptualHash",
    "nextloom.curation.scores.pick_labels:PickLabels",
    "nextloom.curation.scores.quality:Quality",
    "nextloom.curation.scores.source_hash:SourceHash",
    "nextloom.curation.scores.source_score:SourceScore",
    "nextloom.curation.scores.source_text:SourceText",
    "nextloom.curation.scores.text_area:TextArea",
    "nextloom.curation.scores.zero_shot:ZeroShot",
    "nextloom.curation.web.download:Download",
    "nextloom.tokenize.image_tokens:ImageTokens",
    "nextloom.tokenize.packing:PackSamples",
    "nextloom.tokenize.text_tokens:TextTokens",
)


_folders: list[str] = []


def look_beside(folder: str) -> None:
    """Look for own ops in `folder` too, once a recipe names one."""
    if folder not in _folders:
        _folders.append(folder)


def load(path: str, where: str) -> type:
    """The class at ``module:Class``.

    Raises:
        UserError: there is none, or its module raises while it is imported.
    """
    module, _, name = path.partition(":")
    if module.partition(".")[0] != "nextloom":
        sys.path.extend(folder for folder in _folders if folder not in sys.path)  # last: it replaces no module
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UserError(
            f"cannot import {path!r}: {type(error).__name__}: {error}",
            where=where,
            next=f'python -c "import {module}" shows where' if module else 'write "module:Class"',
        ) from None


@lru_cache
def known(paths: tuple[str, ...]) -> dict[str, type]:
    """name -> class of built-in ops or sources."""
    classes = [load(path, "registry") for path in paths]
    return {cls.name: cls for cls in classes}


def find(name: object, paths: tuple[str, ...], base: type, where: str) -> type:
    """The class called `name`, or imported from ``module:Class``; unknown names are refused with a suggestion."""
    if not isinstance(name, str):
        raise UserError("a step names its op: {op: image_stats}", where=where)
    cls = load(name, where) if ":" in name else known(paths).get(name)
    if cls is None:
        raise UserError(f"unknown op {name!r}; {did_you_mean(name, known(paths))}", where=where)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{name!r} is no {base.__name__}: packs stand under packs:, all else under steps:", where=where)
    needed = {"name": str} | ({"code_version": int} if issubclass(base, Op) else {})
    for field, kind in needed.items():
        if not isinstance(getattr(cls, field, None), kind):
            raise UserError(
                f"class {cls.__module__}:{cls.__qualname__} has no `{field}`",
                where=where,
                next=f"write in the class: {field}: ClassVar[{kind.__name__}] = ...",
            )
    return cls


def find_op(name: object, where: str, base: type[Op]) -> type[Op]:
    """Class of the op called `name`, of kind `base`."""
    return find(name, OPS, base, where)


def find_source(name: object, where: str) -> type[Source]:
    """Class of the source called `name`."""
    return find(name, SOURCES, Source, where)
