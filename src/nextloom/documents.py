"""Small JSON documents below one path or URI: leases, receipts, releases.

A write is atomic and lasting: a reader sees all of a document or none, and when `write` returns, the document
outlives a power cut (on a local disk the bytes and the folder are flushed; an object store answers when it has them).
`create` is a put-if-absent on both. On a local disk no link below the folder is followed (see `nextloom.inside`).
"""

from __future__ import annotations

import json
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nextloom.errors import Damaged, UserError
from nextloom.inside import folder, is_link, linked, parts_of, read_regular
from nextloom.io import is_uri, join

LIMIT = 2**28
"""Bytes of a document; a manifest of a release may have 16 times as many."""
BROKEN = (ValueError, RecursionError)
"""What bytes that are no JSON document raise; nesting without end among them."""
DRAFT = re.compile(r"^\.[A-Za-z0-9_.-]+\.json\.[0-9a-f]{32}$")
"""Name of a document that is being written; a kill leaves it behind."""


class Folder:
    """The documents below `uri`; the folder is made by the first write."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._opened: Any = None

    def read(self, name: str) -> Any | None:
        """The document, or None when there is none.

        Raises:
            Damaged: it is not valid JSON, no regular file, or beyond all size.
        """
        _names(name)
        where = join(self.uri, name)
        raw = self._remote_bytes(name) if is_uri(self.uri) else self._local_bytes(name)
        if raw is None:
            return None
        try:
            return json.loads(raw)
        except BROKEN as error:
            what = "is empty" if not raw.strip(b"\0 \n") else f"is not valid JSON: {str(error)[:200]}"
            raise Damaged(what, where=where, next="nextloom verify RECIPE --all") from None

    def write(self, name: str, document: Any) -> None:
        """Create or replace a document."""
        self._put(name, document, create=False)

    def create(self, name: str, document: Any) -> bool:
        """Put if absent: False when a document of this name exists already."""
        return self._put(name, document, create=True)

    def delete(self, name: str) -> None:
        """Remove a document; one that is gone already is no error."""
        parts = _names(name)
        try:
            if is_uri(self.uri):
                import obstore

                obstore.delete(self._store(), name)
            else:
                with self._folder(parts[:-1]) as handle:
                    os.unlink(parts[-1], dir_fd=handle)
                    os.fsync(handle)
        except FileNotFoundError:
            return

    def names(self, prefix: str) -> list[str]:
        """Names of the documents in the folder `prefix`, sorted; links and what is no document are left out."""
        if is_uri(self.uri):
            import obstore

            pages = obstore.list(self._store(), prefix)
            return sorted(m["path"] for page in pages for m in page if m["path"].endswith(".json"))
        try:
            with self._folder(_names(prefix)) as handle:
                found = [name for name in os.listdir(handle) if name.endswith(".json") and not name.startswith(".")]
                return sorted(f"{prefix}/{name}" for name in found if _regular(handle, name))
        except FileNotFoundError:
            return []

    def strangers(self, prefix: str) -> Iterator[str]:
        """Names in the folder `prefix` that no document of ours has: links, folders, other files; drafts apart."""
        if is_uri(self.uri):
            return
        try:
            with self._folder(_names(prefix)) as handle:
                for name in sorted(os.listdir(handle)):
                    if not (name.endswith(".json") and _regular(handle, name)) and not DRAFT.match(name):
                        yield f"{prefix}/{name}"
        except FileNotFoundError:
            return

    def _folder(self, parts: list[str], create: bool = False):
        """The handle of a folder; `uri` itself may be no link either."""
        above, _, last = self.uri.rstrip("/").rpartition("/")
        return folder(above or ("/" if self.uri.startswith("/") else "."), [last, *parts], create=create)

    def _store(self) -> Any:
        if self._opened is None:
            from obstore.store import from_url

            self._opened = from_url(self.uri)
        return self._opened

    def _remote_bytes(self, name: str) -> bytes | None:
        import obstore

        try:
            return bytes(obstore.get(self._store(), name).bytes())
        except FileNotFoundError:
            return None

    def _local_bytes(self, name: str) -> bytes | None:
        *above, last = _names(name)
        limit = LIMIT * 16 if "releases" in above else LIMIT
        try:
            with self._folder(above) as handle:
                return read_regular(handle, last, join(self.uri, name), limit)
        except FileNotFoundError:
            return None

    def _put(self, name: str, document: Any, *, create: bool) -> bool:
        *above, last = _names(name)
        raw = json.dumps(document, indent=1, ensure_ascii=False, default=str).encode()
        if not is_uri(self.uri):
            with self._folder(above, create=True) as handle:
                return _put_local(handle, last, raw, join(self.uri, name), create)
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self._store(), name, raw, mode="create" if create else "overwrite")
        except AlreadyExistsError:
            return False
        return True


def _put_local(handle: int, name: str, raw: bytes, path: str, create: bool) -> bool:
    """Write a draft, flush it, give it its name, flush the folder."""
    if is_link(handle, name):
        raise linked(path)
    draft = f".{name}.{uuid.uuid4().hex}"
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=handle)
    try:
        with open(file, "wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(file)
        if create:
            try:
                os.link(draft, name, src_dir_fd=handle, dst_dir_fd=handle, follow_symlinks=False)
            except FileExistsError:
                return False
        else:
            os.rename(draft, name, src_dir_fd=handle, dst_dir_fd=handle)
            draft = ""
        os.fsync(handle)
    except OSError as error:
        raise type(error)(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        if draft:
            os.unlink(draft, dir_fd=handle)
    return True


def _regular(handle: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _names(name: str) -> list[str]:
    """The parts of a document's name, which may come from the command line."""
    try:
        return parts_of(name)
    except Damaged:
        raise UserError(
            f"{Path(name).name[:100]!r} is no name: letters, digits, '_', '-' and '.'", where=name[:200]
        ) from None
