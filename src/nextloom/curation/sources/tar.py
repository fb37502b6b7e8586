"""What lies where in an uncompressed tar: names, offsets and sizes, without reading what is between the headers.

Python's own `tarfile` reads the headers (GNU long names, pax, base-256 numbers); this adds what a listing needs and
it does not tell: that the archive was cut off, damaged in the middle, or goes on behind its end mark.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from nextloom.curation.sources.finding import utf8
from nextloom.curation.sources.packing import packing_of
from nextloom.curation.sources.shards import Refusal
from nextloom.io import is_uri
from nextloom.untrusted import Door

READ_AHEAD = 4 << 20
"""Bytes read at once from a bucket: a header of 512 bytes costs as much as a few megabytes there."""
SAMPLE = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]*)", re.DOTALL)
LAST = re.compile(r"((?:.*/|)[^./][^/]*)\.([^./]*)", re.DOTALL)
MAX_RECORDS = 1000
"""Most pax records that hold for all members."""
MAX_HEADER = 1 << 20
"""Most bytes of a long name or of pax records; a header that announces more is damage."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar."""

    name: str
    offset: int
    """Where its bytes begin."""
    size: int
    problem: str = ""
    """Why its bytes cannot be had: a link to nowhere, a pipe, a sparse file."""

    def sample(self, key: str = "first_dot") -> tuple[str, str] | None:
        """(key, suffix) of a name behind its last slash; None without either.

        Args:
            key: first_dot, as webdataset splits it; or last_dot.
        """
        match = (LAST if key == "last_dot" else SAMPLE).fullmatch(self.name)
        return (match[1], match[2].lower()) if match else None


class Damage(Exception):
    """The archive ends or breaks before its end mark; members before are good."""


def open_shard(uri: str, door: Door) -> BinaryIO:
    """A buffered, seekable file at a path or URI."""
    return io.BufferedReader(door.open(uri).file, READ_AHEAD if is_uri(uri) else 1 << 14)  # type: ignore[arg-type]


def members(file: BinaryIO, uri: str) -> Iterator[Member]:
    """Members of an uncompressed tar in their order; links are followed to members before them.

    Raises:
        Refusal: it is compressed, or no tar.
        Damage: behind the last good member.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(512)
    if packing := packing_of(head):
        raise Refusal("a compressed tar has no byte ranges", packing.unpack(uri))
    file.seek(0)
    seen: dict[str, Member] = {}
    last, end = "the beginning", 0
    try:
        tar = tarfile.TarFile(fileobj=_Headers(file), encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        while info := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]
            if len(tar.pax_headers) > MAX_RECORDS:  # they are copied for each member
                raise Damage(f"{len(tar.pax_headers):,} pax records for all members, behind {last}")
            if info.size < 0 or info.offset < end:
                raise Damage(f"damaged at byte {info.offset:,}, behind {last}")
            end = info.offset_data
            name = utf8(info.name)
            if info.isfile() and not info.issparse() and info.offset_data + info.size > size:
                raise Damage(f"cut off at byte {size:,}, inside {name}")
            last = name
            if info.isdir():
                continue
            if info.isfile() and not info.issparse():
                member = Member(name, info.offset_data, info.size)
            elif info.islnk() or info.issym():
                target = seen.get(_target(info))
                told = f"a link to no member before it in this tar\t{utf8(info.linkname)}"
                member = Member(name, target.offset, target.size) if target else Member(name, 0, 0, told)
            else:
                kind = "sparse file" if info.issparse() else "pipe or device"
                member = Member(name, 0, 0, f"a {kind}, which has no byte range")
            seen[info.name] = member
            yield member
    except (tarfile.TarError, _TooLong, ValueError, OverflowError, MemoryError, RecursionError) as error:
        if not seen and size >= tarfile.BLOCKSIZE and not _is_tar(head):
            raise Refusal("no tar", "give .tar files, or another source") from None
        raise Damage(f"cut off or damaged behind {last} ({error})") from None
    _expect_end(file, tar.offset, size, last)


class _TooLong(Exception):
    """A header announces more bytes than `MAX_HEADER`, or fewer than none."""


class _Headers:
    """The file as `tarfile` may read it: headers only."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise _TooLong(f"a header of {size:,} bytes")
        return self._file.read(size)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar" or not head.strip(b"\0")


def _target(info: tarfile.TarInfo) -> str:
    """Name of the member a link points to; a symbolic link is relative to its own folder."""
    if info.islnk():
        return info.linkname
    parts: list[str] = info.name.split("/")[:-1]
    for part in info.linkname.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _expect_end(file: BinaryIO, offset: int, size: int, last: str) -> None:
    """Two blocks of zeros end a tar, and only zeros follow."""
    if offset >= size:
        raise Damage(f"cut off at byte {size:,}, behind {last}: it has no end mark")
    file.seek(offset)
    first = True
    while block := file.read(1 << 16):
        if block.strip(b"\0"):
            if first and size - offset < tarfile.BLOCKSIZE:
                raise Damage(f"cut off at byte {size:,}, behind {last}")
            if first and block[: tarfile.BLOCKSIZE].strip(b"\0"):
                raise Damage(f"damaged at byte {offset:,}, behind {last}")
            raise Damage(f"the end mark at byte {offset:,} is not the end: two tars in one?")
        first = False
