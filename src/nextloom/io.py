"""Files by path or URI: small documents with atomic writes, filesystems, and digests of weights.

Documents (leases, receipts, releases) go through obstore, whose `create` is a put-if-absent on a local disk and
on S3 alike. Everything takes a plain path or a URI that obstore and `pyarrow.fs` understand.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
import pyarrow.fs as pafs
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, from_url

from nextloom.errors import UserError


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


class Folder:
    """Small JSON documents below one path or URI. Writes are atomic: a reader sees all of a document or none."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._opened: Any = None

    def _store(self, create: bool = False) -> Any:
        """The object store, or None where a local folder does not exist; only writing makes one."""
        if self._opened is None and (create or is_uri(self.uri) or Path(self.uri).is_dir()):
            self._opened = from_url(self.uri) if is_uri(self.uri) else LocalStore(self.uri, mkdir=True)
        return self._opened

    def read(self, name: str) -> Any | None:
        """The document, or None when there is none."""
        store = self._store()
        if store is None:
            return None
        try:
            raw = bytes(obstore.get(store, name).bytes())
        except FileNotFoundError:
            return None
        try:
            return json.loads(raw)
        except ValueError as error:
            raise UserError(f"not valid JSON: {error}", where=join(self.uri, name)) from None

    def write(self, name: str, document: Any) -> None:
        """Create or replace a document."""
        obstore.put(self._store(create=True), name, _text(document))

    def create(self, name: str, document: Any) -> bool:
        """Put if absent: False when a document of this name exists already."""
        try:
            obstore.put(self._store(create=True), name, _text(document), mode="create")
        except AlreadyExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Remove a document; one that is gone already is no error."""
        try:
            obstore.delete(self._store(), name)
        except FileNotFoundError:
            return

    def names(self, prefix: str) -> list[str]:
        """Names of the documents below `prefix`, sorted."""
        store = self._store()
        return sorted(meta["path"] for page in obstore.list(store, prefix) for meta in page) if store else []


def _text(document: Any) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False, default=str).encode()


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
