"""The source contract: where rows come from.

A source lists objects; it decodes nothing and keeps nothing. Identity of rows (ids, tombstones) belongs to the
store, which compares two listings by `key` and `version`: a new version under a known key is a new row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from nextloom.config import Model


@dataclass(frozen=True, slots=True)
class Item:
    """One object of a source: a reference to bytes, and what the source says about them."""

    key: str
    """The source's own name for the object, such as a posix path relative to the folder, suffix included."""
    uri: str
    """Absolute path, or a URI that `pyarrow.fs.FileSystem.from_uri` takes."""
    size: int
    """Bytes; 0 where unknown."""
    version: str
    """Changes when the object or one of its sidecars changes."""
    caption: str | None = None
    sidecar: str | None = None
    """JSON text: the sidecar as it is, or an object with `error` where one could not be read."""


class Source(Model):
    """Base of all sources; a frozen config, as ops are."""

    name: ClassVar[str]

    def listing(self, known: Mapping[str, str] | None = None) -> list[Item]:
        """Every object, sorted by key, keys unique.

        Args:
            known: key -> version of objects whose sidecars are not wanted again; where the version is still the
                same, `caption` and `sidecar` are None and nothing but the folder was read.
        """
        raise NotImplementedError
