"""Finding shards: a folder, one shard, names spelled out, a pattern, an index; `shards` says how they are written.

Names spelled out and an index are taken as they stand, and asked for later; a folder and a pattern are listed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import pyarrow.fs as pafs

from nextloom.curation.sources.globs import MAX_PATTERNS, matcher, spelled
from nextloom.curation.sources.suffixes import shown
from nextloom.errors import UserError
from nextloom.io import filesystem, is_uri, join
from nextloom.store.notices import Tally
from nextloom.untrusted import Door, bare, stamp

INDEX = (".txt", ".list", ".index")
MISSING = "missing"
"""Version of a shard that is named and not there."""
OUTSIDE = "outside"
"""Version of a shard that an index names and that may not be read."""
MAX_INDEX = 2**30
"""Largest index that is read, in bytes."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a source."""

    name: str
    """Relative to the folder, or to the part of the pattern before its first wildcard; as written in an index."""
    uri: str
    stamp: str
    """`content.stamp`; "" where not asked yet."""


def find_shards(
    path: str,
    suffixes: tuple[str, ...],
    door: Door | None = None,
    second: tuple[str, ...] = (),
    passed: Tally | None = None,
) -> list[Shard]:
    """Shards at one path, see the top of this file.

    Args:
        path, suffixes: as in `ShardSource`.
        door: which linked folders are entered; default: those that lead to where `path` lies.
        second: suffixes of shards in a folder that holds none of the others.
        passed: counts files of a folder that are no shards.

    Raises:
        UserError: nothing is there, or it cannot be listed.
    """
    if path.startswith(("http://", "https://", "pipe:")):
        raise UserError(
            f"shards are read by byte range from a disk or a bucket, not from {path}",
            where="source.path",
            next="copy them first, or mount the bucket",
        )
    address, mark, query = path.partition("?") if is_uri(path) else (path, "", "")
    door = door or Door(homes(path, suffixes))
    tail = mark + query  # of s3://bucket/shards?region=...
    plain = not is_uri(path) and os.path.exists(path)
    wild = None if plain else re.search(r"[*\[?]", address)
    if address.lower().endswith(INDEX) and not wild and "{" not in address:
        found = [_named(line, _folder(address), tail) for line in _index(path, door)]
    elif wild:
        found = _matching(address, tail, door)
    elif "{" in address and not plain:
        start = len(_folder(address.partition("{")[0] + "x"))
        found = [Shard(plain_name(name[start:], path), name + tail, "") for name in spelled(address)]
    else:
        found = _at(path, address, tail, (suffixes, second), door, Tally() if passed is None else passed)
    if not found:
        raise UserError(f"no shard at {path}", where="source.path", next="correct the path")
    return found


def _matching(pattern: str, tail: str, door: Door) -> list[Shard]:
    base = _folder(re.split(r"[*?\[{]", pattern)[0] + "x")
    rest = pattern[len(base) :].lstrip("/")
    wanted = [matcher(plain_name(name[len(base) :], pattern)) for name in spelled(pattern, MAX_PATTERNS)]
    every = _below(base, tail, "/" in rest, door)
    return [s for s in every if s.stamp == OUTSIDE or any(fits(s.name) for fits in wanted)]


def _at(
    path: str, address: str, tail: str, suffixes: tuple[tuple[str, ...], ...], door: Door, passed: Tally
) -> list[Shard]:
    """The shard at `path`, or those in the folder there."""
    system, inner = _system(path)
    info = system.get_file_info(inner.rstrip("/") or "/")
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"no such file or folder: {path}", where="source.path", next="correct the path")
    if info.type == pafs.FileType.File:
        return [Shard(plain_name(address.rpartition("/")[2], path), path, stamp(system, info))]
    every = list(_below(address, tail, True, door))
    found = list[Shard]()
    for wanted in suffixes:
        found = found or [shard for shard in every if shard.stamp == OUTSIDE or shard.name.lower().endswith(wanted)]
    chosen = {shard.name for shard in found}
    for shard in every:
        if shard.name not in chosen:
            passed["files are no shards"][shown(os.path.splitext(shard.name)[1].lower())] += 1
    if every and not found:
        raise UserError(
            f"found {', '.join(shard.name for shard in every[:5])} in {path}, expected {' or '.join(suffixes[0])}",
            where="source.path",
            next="correct the path, or choose another source: files, webdataset, table, img2dataset, huggingface",
        )
    return found


def plain_name(name: str, path: str) -> str:
    """A name as it is; in a URI it is percent-encoded."""
    return (unquote(name) if is_uri(path) else name).lstrip("/")


def _named(name: str, folder: str, tail: str) -> Shard:
    """A shard as an index names it."""
    if is_uri(name) or os.path.isabs(name):
        return Shard(bare(name), name, "")
    return Shard(name, join(folder, quote(name)) + tail if is_uri(folder) else join(folder, name), "")


def homes(path: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """The folder at `path`, or the one in which its shards, pattern or index lie; a file of it may be a link."""
    address, mark, query = path.partition("?") if is_uri(path) else (path, "", "")
    if not is_uri(path) and os.path.exists(path):
        return (path,) if os.path.isdir(path) else (_folder(path), path)
    if wild := re.search(r"[*?\[{]", address):
        return (_folder(address[: wild.start()] + "x") + mark + query,)
    single = address.lower().endswith((*suffixes, *INDEX)) or not is_uri(path)
    return ((_folder(address) if single else address) + mark + query,)


def _index(path: str, door: Door) -> list[str]:
    try:
        text = Door(door.roots, MAX_INDEX).read(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no such index: {path}", where="source.path", next="correct the path") from None
    except (OSError, ValueError) as error:  # NotAllowed is one
        raise UserError(f"cannot read the index {path}: {error}", where="source.path") from None
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _system(path: str) -> tuple[Any, str]:
    try:
        return filesystem(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot open {path}: {error}", where="source.path", next="correct the path") from None


def _below(base: str, tail: str, deep: bool, door: Door) -> Iterator[Shard]:
    """Every file below `base`, hidden ones left out, sorted by name.

    A linked folder that leads out of the roots is not entered and is one shard, `OUTSIDE`.
    """
    if not is_uri(base):
        yield from sorted(_below_folder(base, deep, door), key=lambda shard: shard.name)
        return
    system, inner = _system(base + tail)
    inner = inner.rstrip("/") or "/"
    try:
        found = system.get_file_info(pafs.FileSelector(inner, recursive=deep))
        listed = sorted((info.path, info) for info in found if info.type == pafs.FileType.File)
    except FileNotFoundError:
        raise UserError(f"no such folder: {base}", where="source.path", next="correct the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot list {base}: {error}", where="source.path", next="correct the path") from None
    for path, info in listed:
        name = path[len(inner) :].lstrip("/")
        if not any(part.startswith(".") for part in name.split("/")):
            uri = join(base, quote(name)) + tail if is_uri(base) else join(base, name)
            yield Shard(name, uri, stamp(system, info))


def _below_folder(base: str, deep: bool, door: Door) -> Iterator[Shard]:
    pending: list[tuple[str, str, tuple[str, ...]]] = [(base, "", (os.path.realpath(base),))]
    while pending:
        folder, prefix, chain = pending.pop()
        try:
            with os.scandir(folder) as listed:
                entries = [entry for entry in listed if not entry.name.startswith(".")]
        except FileNotFoundError:
            if prefix:  # it vanished since its parent was listed
                continue
            raise UserError(f"no such folder: {base}", where="source.path", next="correct the path") from None
        except OSError as error:
            told = f"cannot list {folder}: {error.strerror or error}"
            raise UserError(told, where="source.path", next="correct the path") from None
        for entry in entries:
            name = utf8(prefix + entry.name)
            if not os.path.isdir(entry.path):
                yield Shard(name, join(base, name), _quick_stamp(entry))
            elif deep:
                real = os.path.realpath(entry.path)
                if entry.is_symlink() and not door.holds(entry.path):
                    yield Shard(name, join(base, name), OUTSIDE)
                elif real not in chain:
                    pending.append((entry.path, f"{prefix}{entry.name}/", (*chain, real)))


def _quick_stamp(entry: os.DirEntry[str]) -> str:
    """Stamp of a plain file; "" of what has to be asked for through the door: a link, a pipe, one that vanished."""
    try:
        if entry.is_file(follow_symlinks=False):
            info = entry.stat(follow_symlinks=False)
            return f"{info.st_mtime_ns}-{info.st_size}"
    except OSError:
        pass
    return ""


def utf8(text: str) -> str:
    r"""`text`, where it holds half of a surrogate pair or a byte that is no UTF-8 with `\xNN` or `\uNNNN`."""
    if text.isascii():
        return text
    with contextlib.suppress(UnicodeEncodeError):
        text.encode()
        return text
    return text.encode("utf-8", "surrogateescape" if _only_bytes(text) else "backslashreplace").decode(
        "utf-8", "backslashreplace"
    )


def _only_bytes(text: str) -> bool:
    return all(not 0xD800 <= ord(c) <= 0xDFFF or 0xDC80 <= ord(c) <= 0xDCFF for c in text)
