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
from collections.abc import Iterable
from typing import Any, ClassVar

import pyarrow as pa

from nextloom.curation.sources.files import SUFFIXES as PICTURES
from nextloom.curation.sources.shards import Refusal, Shard
from nextloom.curation.sources.table import Table
from nextloom.curation.sources.webdataset import WebDataset
from nextloom.errors import UserError
from nextloom.io import fetch, is_uri, join


class HuggingFace(Table):
    """A saved dataset, or a clone of a dataset repository."""

    name: ClassVar[str] = "huggingface"

    split: str | None = None
    """Which split, or ``all``. Default: the only one."""
    config: str | None = None
    """Which configuration of a repository that has several."""

    def find(self, path: str) -> Iterable[Shard]:
        """Files of the split."""
        if (names := _read(path, "dataset_dict.json")) is not None:
            splits = {name: [f"{name}/{file}" for file in _saved(join(path, name))] for name in names["splits"]}
        elif _read(path, "state.json") is not None:
            splits = {"": _saved(path)}
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
            splits = _of_clone(path, self.config)
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
        if shard.name.lower().endswith(PICTURES):
            raise Refusal(f"found pictures such as {shard.name}", "use {op: files, path: ...}")
        if shard.name.lower().endswith(WebDataset.suffixes):
            return WebDataset(path=shard.uri).look(shard)
        return super().look(shard)


def _read(folder: str, name: str) -> Any | None:
    try:
        return json.loads(fetch(join(folder, name)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {name}: {error}", where=f"source.path ({folder})") from None


def _saved(folder: str) -> list[str]:
    """Arrow files of one saved dataset."""
    state = _read(folder, "state.json")
    if state is None:
        raise UserError(f"no state.json in {folder}", where="source.path", next="save it again with save_to_disk")
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder} keeps its order in a file of indices, as old versions of `datasets` did",
            where="source.path",
            next="load it and save it again: datasets.load_from_disk(A).flatten_indices().save_to_disk(B)",
        )
    return [file["filename"] for file in state["_data_files"]]


def _of_clone(path: str, config: str | None) -> dict[str, list[str]]:
    """Split -> names of its files, as the library finds them."""
    import datasets

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
