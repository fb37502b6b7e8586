"""Source `huggingface`: datasets of the Hugging Face `datasets` library that lie on a disk.

    source: {op: huggingface, path: saved}                   save_to_disk: Arrow files, pictures referred to in them
    source: {op: huggingface, path: clone, split: train}     a clone of a hub repository: Parquet, CSV, JSONL, tars

The library itself says which files make a split (names, folders, the README's `configs`); they are then listed as
`table` and `webdataset` list them, and never loaded. The same holds for a dataset one would stream: a streamed row
has no address to come back to, the files below it have. Nothing is downloaded; a hub name is refused with the
command that fetches it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import pyarrow as pa
import yaml

from nextloom.curation.sources.finding import Shard
from nextloom.curation.sources.shards import Refusal
from nextloom.curation.sources.suffixes import SUFFIXES
from nextloom.curation.sources.table import Table
from nextloom.curation.sources.webdataset import WebDataset
from nextloom.errors import UserError
from nextloom.io import is_uri, join
from nextloom.untrusted import MAX_SIDECAR, Door, NotAllowed

CARDS = ("README.md", ".huggingface.yaml")
"""Files of a clone in which the library looks for the names of others."""


class HuggingFace(Table):
    """A saved dataset, or a clone of a dataset repository."""

    name: ClassVar[str] = "huggingface"

    split: str | None = None
    """Which split, or ``all``. Default: the only one."""
    config: str | None = None
    """Which configuration of a repository that has several."""

    def find(self, path: str) -> Iterable[Shard]:
        """Files of the split."""
        door = Door(self.door().roots, MAX_SIDECAR)
        if (names := _read(door, path, "dataset_dict.json")) is not None:
            splits = {name: [f"{name}/{file}" for file in _saved(door, join(path, name))] for name in names["splits"]}
        elif _read(door, path, "state.json") is not None:
            splits = {"": _saved(door, path)}
        elif is_uri(path):
            raise UserError(
                f"no state.json and no dataset_dict.json in {path}",
                where="source.path",
                next="a clone of a repository is read from a disk; in a bucket, give its files: {op: table, path: ...}",
            )
        elif not os.path.isdir(path):
            raise UserError(
                f"no such folder: {path}",
                where="source.path",
                next="nothing is fetched from the hub; do that first: hf download NAME --repo-type dataset --local-dir "
                + path,
            )
        else:
            splits = _of_clone(door, path, self.config)
        if self.split not in (None, "all", *splits):
            raise UserError(f"no split {self.split!r}; found {', '.join(splits)}", where="source.split")
        if self.split is None and len(splits) > 1:
            raise UserError(
                f"several splits: {', '.join(splits)}", where="source.split", next="choose one, or write split: all"
            )
        chosen = splits if self.split in (None, "all") else {self.split: splits[self.split]}
        return [Shard(name, join(path, name), "") for files in chosen.values() for name in files]

    def look(self, shard: Shard) -> pa.Table:
        """As in `ShardSource`."""
        if shard.name.lower().endswith(SUFFIXES):
            raise Refusal(f"found pictures such as {shard.name}", "use {op: files, path: ...}")
        if shard.name.lower().endswith(WebDataset.suffixes):
            whole = WebDataset(path=shard.uri, roots=(*self.places(), *self.roots), max_bytes=self.max_bytes)
            return whole.look(shard)
        return super().look(shard)


def _read(door: Door, folder: str, name: str) -> Any | None:
    try:
        return json.loads(door.read(join(folder, name)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {name}: {error}", where=f"source.path ({folder})") from None


def _saved(door: Door, folder: str) -> list[str]:
    """Arrow files of one saved dataset."""
    state = _read(door, folder, "state.json")
    if state is None:
        raise UserError(f"no state.json in {folder}", where="source.path", next="save it again with save_to_disk")
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder} keeps its order in a file of indices, as old versions of `datasets` did",
            where="source.path",
            next="load it and save it again: datasets.load_from_disk(A).flatten_indices().save_to_disk(B)",
        )
    return [file["filename"] for file in state["_data_files"]]


def _of_clone(door: Door, path: str, config: str | None) -> dict[str, list[str]]:
    """Split -> names of its files, as the library finds them."""
    import datasets

    _expect_inside(door, path)

    with tempfile.TemporaryDirectory() as cache:
        try:
            files = datasets.load_dataset_builder(path, name=config, cache_dir=cache).config.data_files or {}
        except Exception as error:
            raise UserError(
                f"the datasets library finds no dataset in {path}: {error}",
                where="source.path",
                next="correct the path, or name the files: {op: table, path: ...}",
            ) from None
    root = os.path.realpath(path)
    return {
        str(split): sorted(os.path.relpath(os.path.realpath(f), root) for f in found) for split, found in files.items()
    }


def _expect_inside(door: Door, path: str) -> None:
    """Refuse a README whose `configs` name a place outside of the clone, before the library goes there."""
    from huggingface_hub import DatasetCard

    for name in CARDS:
        try:
            own = join(path, name)  # hidden, and so a root of its own, unless it leads elsewhere
            roots = door.roots if os.path.islink(own) else (*door.roots, own)
            text = Door(roots, MAX_SIDECAR).read(own).decode("utf-8-sig")
            card = DatasetCard(text).data.to_dict() if name == "README.md" else yaml.safe_load(text)
        except FileNotFoundError:
            continue
        except (NotAllowed, OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"cannot read {name}: {error}", where=f"source.path ({path})") from None
        for named in _texts(card.get("configs") if isinstance(card, dict) else None):
            if "://" in named or "::" in named or os.path.isabs(named) or ".." in named.split("/"):
                raise UserError(
                    f"{name} names files outside of the clone: {named[:200]!r}",
                    where=f"source.path ({path})",
                    next="fetch them first, and name the files: {op: table, path: ...}",
                )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
