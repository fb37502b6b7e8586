"""Filesystems by path or URI, and digests of weights.

Everything takes a plain path or a URI that `pyarrow.fs` understands.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs


def is_uri(path: str) -> bool:
    """True for ``scheme://...``."""
    return re.match(r"^[a-z][a-z0-9+.-]*://", path) is not None


def join(base: str, *parts: str) -> str:
    """`base` with `parts` below it, for paths and URIs."""
    return "/".join([base.rstrip("/"), *parts])


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of `path`, and the path inside it."""
    if not is_uri(path):
        return _local(), path
    if path.startswith("s3://"):
        parts = urlsplit(path)
        inner = parts.netloc.rpartition("@")[2] + unquote(parts.path)
        return _bucket(f"s3://{parts.netloc}{'?' if parts.query else ''}{parts.query}"), inner.rstrip("/")
    return pafs.FileSystem.from_uri(path)


@lru_cache
def _bucket(root: str) -> pafs.FileSystem:
    """One client for all objects of a bucket: its connections are kept."""
    return pafs.FileSystem.from_uri(root)[0]


@lru_cache
def _local() -> pafs.FileSystem:
    return pafs.LocalFileSystem()


def digest_path(path: str) -> str:
    """sha256 (16 hex digits) of a file, or of a folder's relative names and contents.

    Raises:
        FileNotFoundError: nothing is there.
    """
    target = Path(path)
    if target.is_file():
        return _digest_file(target)
    files = sorted(p for p in target.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not files:
        raise FileNotFoundError(path)
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(target).as_posix()}\0{_digest_file(file)}\n".encode())
    return total.hexdigest()[:16]


def _digest_file(path: Path) -> str:
    stat = path.stat()
    return _digest_version(os.fspath(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_version(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
