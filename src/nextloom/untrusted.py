"""The one door for bytes whose place a stranger names: rows, sidecars, shards, and what an index lists.

A recipe's owner names roots: the folder or prefix of each `path`, `base`, and `roots`. What lies there, links included,
may be read; nothing else, however it is spelled:

    a local path              resolved, opened without following a link, and judged again by what was opened
    a URI                     of a root's scheme and bucket, below its prefix; its options are the root's, never a row's
    a pipe, socket, device    refused: regular files only, and nothing of /proc, /sys and /dev
    a hidden name             refused, as a listing passes over it
    more than `max_bytes`     refused, before it is read where its size is known

The root itself may be a link or lie anywhere: who writes a recipe is trusted. A row that is refused becomes an error
row (`NotAllowed`, `TooLarge`) whose text never holds what a file contains.

Trade-off: a file link inside a root that leads out of it needs its target's folder under `roots`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from nextloom.io import filesystem, is_uri

MAX_BYTES = 256 * 2**20
"""Default of the most bytes that one row may have."""
MAX_SIDECAR = 16 * 2**20
"""Most bytes of one sidecar."""
KERNEL = ("/proc", "/sys", "/dev")
"""Folders whose files are the machine itself; readable only where a root lies inside of one (`/dev/shm/photos`)."""
OPEN_FILES = "/proc/self/fd"
STEP = 1 << 20
_FOLDERS = 4096
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotAllowed(ValueError):
    """What a row or a file names may not be read; trying again does not help.

    Args:
        message: why, in words that are the same for all rows of this kind.
        detail: what this row named; never what a file contains.
    """

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail


class TooLarge(NotAllowed):
    """More bytes than one row may have."""

    def __init__(self, size: int, most: int) -> None:
        super().__init__("larger than source.max_bytes", f"{size:,} bytes, at most {most:,} are read")


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was let through."""

    file: pa.NativeFile
    """For random access; closed by whoever asked for it."""
    stamp: str
    """Version, see `stamp`."""


@dataclass(frozen=True, slots=True)
class _Address:
    """A URI taken apart; of a local path all but `path` are empty."""

    scheme: str
    host: str
    path: str
    options: str

    @classmethod
    def parse(cls, text: str) -> _Address:
        if not is_uri(text):
            return cls("", "", text, "")
        scheme, _, rest = text.partition("://")
        place, mark, options = rest.partition("?")
        place, hash_, fragment = place.partition("#")
        host, slash, path = place.partition("/")
        if scheme == "file" and host in ("", "localhost"):
            scheme = host = ""
        return cls(scheme, host, unquote(slash + path), mark + options + hash_ + fragment)


class Door:
    """Opens what lies in `roots`; can be sent to workers.

    Args:
        roots: absolute folders, or URIs with the options that all below them are opened with.
        max_bytes: most bytes of one row.
    """

    def __init__(self, roots: Sequence[str], max_bytes: int = MAX_BYTES) -> None:
        self.roots, self.max_bytes = tuple(dict.fromkeys(roots)), max_bytes
        self._local: list[str] | None = None
        self._folders: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Door, (self.roots, self.max_bytes)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for a manifest."""
        return {"roots": list(self.roots), "max_bytes": self.max_bytes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Door:
        """The door that `as_dict` described."""
        return cls(data["roots"], data["max_bytes"])

    def read(self, uri: str, most: int | None = None) -> bytes:
        """All bytes of one object.

        Args:
            uri: an absolute path or a URI.
            most: bytes, where they are fewer than `max_bytes`.

        Raises:
            NotAllowed: it may not be read.
            TooLarge: it has more bytes.
            OSError: it is gone, or cannot be read.
        """
        most = min(self.max_bytes, most or self.max_bytes)
        where = self._remote(uri)
        if where is not None:
            with where[0].open_input_file(where[1]) as file:
                return _bounded(file, file.size(), most)
        with self._descriptor(_Address.parse(uri).path) as number:
            file = open(number, "rb", buffering=0, closefd=False)  # noqa: SIM115  (`_descriptor` closes it)
            return _bounded(file, os.fstat(number).st_size, most)

    def open(self, uri: str, *, mapped: bool = False) -> Opened:
        """One object for random access; a shard may have any size.

        Args:
            uri: an absolute path or a URI.
            mapped: map a local file into memory, so that only what is touched is read.

        Raises:
            NotAllowed, OSError: as `read`.
        """
        where = self._remote(uri)
        if where is not None:
            return Opened(where[0].open_input_file(where[1]), stamp(*where))
        with self._descriptor(_Address.parse(uri).path) as number:
            info = os.fstat(number)
            held = f"{OPEN_FILES}/{number}"
            place = held if os.path.exists(held) else _resolved(_Address.parse(uri).path)
            file = pa.memory_map(place) if mapped and info.st_size else pa.OSFile(place)
            return Opened(file, f"{info.st_mtime_ns}-{info.st_size}")

    def stamp(self, uri: str) -> str:
        """Version of one object, see `stamp`; nothing is read.

        Raises:
            NotAllowed: it may not be read.
            FileNotFoundError: there is none.
        """
        where = self._remote(uri)
        if where is not None:
            return stamp(*where)
        path = _Address.parse(uri).path
        real = self._judged(path)
        if os.path.islink(real):
            real = self._target(path)
        info = os.lstat(real)
        _expect_regular(info.st_mode)
        return f"{info.st_mtime_ns}-{info.st_size}"

    def holds(self, path: str) -> bool:
        """Whether a local path, its links followed, lies in a root."""
        return self._inside(os.path.realpath(path))

    # ---- URIs

    def _remote(self, uri: str) -> tuple[pafs.FileSystem, str] | None:
        """Filesystem and inner path of a URI; None of a local path."""
        address = _Address.parse(uri)
        if not address.scheme:
            if address.options:
                raise NotAllowed("its address brings options of its own", bare(uri))
            return None
        if "@" in address.host:
            raise NotAllowed("its address holds a user name or a password", bare(uri))
        for root in self.roots:
            own = _Address.parse(root)
            if (own.scheme, own.host) != (address.scheme, address.host):
                continue
            prefix = own.path.rstrip("/")
            if address.path.rstrip("/") != prefix and not address.path.startswith(prefix + "/"):
                continue
            below = address.path[len(prefix) :].removeprefix("/")
            if any(part in (".", "..") for part in below.split("/")):
                continue
            if address.options not in ("", own.options):
                raise NotAllowed("its address brings options of its own", bare(uri))
            if _hidden(below):
                raise NotAllowed("it names a hidden file; name its folder in source.roots to read it", bare(uri))
            system, base = filesystem(root)
            return system, f"{base.rstrip('/')}/{below}" if below else base
        raise _outside(uri)

    # ---- local files

    @property
    def _reals(self) -> list[str]:
        if self._local is None:
            addresses = (_Address.parse(root) for root in self.roots)
            self._local = [os.path.realpath(a.path) for a in addresses if not a.scheme]
        return self._local

    def _inside(self, real: str, *, shown: bool = False) -> bool:
        """Whether a resolved path lies in a root; `shown`: and no part of it below the root is hidden."""
        for root in self._reals:
            if real != root and not real.startswith(root.rstrip("/") + "/"):
                continue
            if any(_in(real, kernel) and not _in(root, kernel) for kernel in KERNEL):
                continue
            if not (shown and _hidden(real[len(root) :])):
                return True
        return False

    def _judged(self, path: str) -> str:
        """`path` with its folder resolved; what it is called there may still be a link.

        Raises:
            NotAllowed: it leaves the roots.
        """
        if "\0" in path or not os.path.isabs(path):
            raise NotAllowed("no path that can be read", path.replace("\0", "\\0"))
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            folder, name = os.path.split(os.path.realpath(path))
        if folder not in self._folders:
            if len(self._folders) >= _FOLDERS:
                self._folders.clear()
            self._folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._folders[folder], name)
        if self._inside(real, shown=True):
            return real
        if self._inside(real):
            raise NotAllowed("it names a hidden file; name its folder in source.roots to read it", path)
        raise _outside(path)

    def _target(self, path: str) -> str:
        """Where a link leads in the end."""
        real = os.path.realpath(path)
        if not self._inside(real):
            raise _outside(path, real)
        return real

    @contextlib.contextmanager
    def _descriptor(self, path: str) -> Generator[int]:
        """A regular file, open for reading; judged by its name first and then by what was opened."""
        real = self._judged(path)
        try:
            number = _open(real)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            number = _open(self._target(path))
        try:
            _expect_regular(os.fstat(number).st_mode)
            found = _opened_path(number, path)
            if not self._inside(found):
                raise _outside(path, found)
            yield number
        finally:
            os.close(number)


def _open(real: str) -> int:
    """A descriptor; a pipe does not block, a terminal does not become ours, a link at the end is refused (ELOOP)."""
    try:
        return os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):  # a socket, a device without a driver
            _expect_regular(os.lstat(real).st_mode)
        raise


def _opened_path(number: int, path: str) -> str:
    """Where an open file lies: what the kernel says, else where its name leads now, if that is the same file."""
    held = f"{OPEN_FILES}/{number}"
    if os.path.islink(held):
        return os.readlink(held)
    real = _resolved(path)
    if not os.path.samestat(os.lstat(real), os.fstat(number)):
        raise FileNotFoundError(errno.ENOENT, "it was replaced while it was opened", path)
    return real


def _resolved(path: str) -> str:
    return os.path.realpath(path)


def _expect_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAllowed("no regular file", _KINDS.get(stat.S_IFMT(mode), "of another kind"))


def _in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _hidden(below: str) -> bool:
    return any(part.startswith(".") for part in below.split("/"))


def _outside(uri: str, leads: str | None = None) -> NotAllowed:
    told = f"{bare(uri)} leads to {leads}" if leads and leads != uri else bare(uri)
    return NotAllowed("outside of the source's folders; name its folder in source.roots to read it", told)


def _bounded(file: Any, size: int, most: int) -> bytes:
    """All of `file`, which should have `size` bytes and may have grown."""
    if size > most:
        raise TooLarge(size, most)
    parts, have = [file.read(size)] if size else [], 0
    have = len(parts[0]) if parts else 0
    while have <= most and (part := file.read(min(STEP, most + 1 - have))):
        parts.append(part)
        have += len(part)
    if have > most:
        raise TooLarge(have, most)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def bare(uri: str) -> str:
    """`uri` without a user name, a password, options and a fragment: what may be stored and told."""
    if not is_uri(uri.lower()):
        return uri
    scheme, _, rest = uri.partition("://")
    place = rest.partition("?")[0].partition("#")[0]
    host, slash, path = place.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def stamp(system: pafs.FileSystem, found: pafs.FileInfo | str) -> str:
    """Version of an object, or of the one at a path: time of its last change and size.

    In a bucket the time is whole seconds: some servers tell more when they list than when one object is asked for.

    Raises:
        FileNotFoundError: there is none.
    """
    info = system.get_file_info(found) if isinstance(found, str) else found
    if info.type != pafs.FileType.File:
        raise FileNotFoundError(info.path)
    unit = 1 if isinstance(system, pafs.LocalFileSystem) else 10**9
    return f"{info.mtime_ns // unit * unit}-{info.size}"
