"""Source `files`: pictures in folders, with the captions that lie beside them.

    source: {op: files, path: photos}                       every picture below photos/
    source: {op: files, path: "s3://bucket/photos", glob: ["2024/*"]}

A listing costs one `scandir` and one `stat` per file and opens nothing but sidecars: for `a/cat.jpg` these are
`a/cat.txt` (the caption) and `a/cat.json` (kept whole; its `caption` or `text` is the caption where there is
no .txt). A file is never dropped for being odd: a broken link, an empty file or a sidecar in another encoding is
a row, and the step that needs its pixels says what is wrong. Suffixes decide what is an image (`suffixes: any` also
opens files of other ones); every other file is no row, and is counted. A folder that cannot be read ends the listing,
since rows that go missing would pass for deleted.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import ClassVar, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from nextloom.config import RootPath
from nextloom.content import BARRED
from nextloom.curation.sources import captions
from nextloom.curation.sources.source import Item, Source, item_table
from nextloom.curation.sources.suffixes import LIKELY_FILES, SUFFIXES, shown
from nextloom.encoded import is_image
from nextloom.errors import UserError
from nextloom.io import filesystem, is_uri
from nextloom.store.notices import Tally, with_notices
from nextloom.untrusted import MAX_SIDECAR, Door, NotAllowed, TooLarge

SIDECARS = (".txt", ".json")
HIDDEN = "hidden names are passed over"


@dataclass(frozen=True, slots=True)
class _File:
    """One file as a listing sees it; `rel` is its posix path below the listed folder."""

    rel: str
    uri: str
    size: int
    stamp: str
    problem: str = ""
    """Why it may not be read, where a listing sees that."""


class Files(Source):
    """Pictures in one or more folders, local or at any URI that pyarrow opens."""

    name: ClassVar[str] = "files"

    path: RootPath | tuple[RootPath, ...]
    """A folder or a list of folders. Keys are relative to the folder they were found in."""
    glob: str | tuple[str, ...] = ()
    """Patterns on the key; a file that matches any is kept. `*` also crosses folders. Default: every file."""
    recursive: bool = True
    """Whether to look into sub-folders."""
    suffixes: tuple[str, ...] | Literal["any"] = SUFFIXES
    """Suffixes that make a file an image, in any case; any: also a file of another suffix that begins as one does."""
    caption: str | None = None
    """Field of the .json that is the caption where there is no .txt; names inside of names are joined by dots.
    Default: `caption`, else `text`."""

    def items(self, unit: str, known: Mapping[str, str]) -> pa.Table:
        """As in `Source`; all folders are one unit."""
        tally = Tally()
        return with_notices(item_table(self.listing(known, tally)), tally)

    def listing(self, known: Mapping[str, str] | None = None, tally: Tally | None = None) -> list[Item]:
        """Images sorted by key, keys unique; those that are `known` without captions and sidecars.

        Args:
            known: as in `Source.items`.
            tally: counts what is no row.

        Raises:
            UserError: a folder is missing or cannot be read, or two folders of the list hold the same key.
        """
        known, tally = known or {}, Tally() if tally is None else tally
        items: dict[str, Item] = {}
        for root in (self.path,) if isinstance(self.path, str) else self.path:
            for item in self._of_root(root, known, tally):
                if other := items.get(item.key):
                    raise UserError(
                        f"two files have the key {item.key!r}: {other.uri} and {item.uri}",
                        where="source.path",
                        next="give the folder above both as path, and choose with glob",
                    )
                items[item.key] = item
        return [items[key] for key in sorted(items)]

    def _of_root(self, root: str, known: Mapping[str, str], tally: Tally) -> Iterator[Item]:
        list_files, door = _remote_files if is_uri(root) else _local_files, self.door()
        images: list[_File] = []
        passed = set[str]()
        sidecars: dict[tuple[str, str], _File] = {}
        wanted = {suffix.lower() for suffix in (SUFFIXES if self.suffixes == "any" else self.suffixes)}
        for file in list_files(root, self.recursive, door, tally):
            if file.problem:
                yield Item(file.rel, file.uri, 0, file.stamp, member=file.problem)
                continue
            stem, suffix = os.path.splitext(file.rel)
            suffix = suffix.lower()
            if suffix in SIDECARS:
                sidecars[stem, suffix] = file
            if suffix not in wanted and not self._sniffed(file, suffix, known, door, tally):
                if suffix not in SIDECARS:
                    tally["files are no rows (suffixes: any looks into them)"][shown(suffix)] += 1
                if suffix in LIKELY_FILES:
                    more = " ({op: table} reads a table)" if suffix in TABLES else ""
                    tally[captions.NOT_READ][f"in a {suffix}{more}"] += 1
            elif self._chosen(file):
                images.append(file)
            else:
                passed.add(file.rel)
                tally["images match no pattern of glob"][shown(suffix)] += 1
        _count_texts(sidecars, {image.rel for image in images}, passed, tally)
        for file in images:
            stem = os.path.splitext(file.rel)[0]
            beside = [sidecars.get((stem, suffix)) for suffix in SIDECARS]
            version = "+".join([file.stamp, *(f"{s.rel[-4:]}:{s.stamp}" for s in beside if s)])
            caption = sidecar = None
            if known.get(file.rel) != version:
                caption, sidecar = self._texts(door, beside[0], beside[1], tally)
            yield Item(file.rel, file.uri, file.size, version, caption, sidecar)

    def _chosen(self, file: _File) -> bool:
        patterns = (self.glob,) if isinstance(self.glob, str) else self.glob
        return not patterns or any(fnmatchcase(file.rel, pattern) for pattern in patterns)

    def _sniffed(self, file: _File, suffix: str, known: Mapping[str, str], door: Door, tally: Tally) -> bool:
        """Whether a file of another suffix is to be looked into, and begins as an image does."""
        if self.suffixes != "any" or suffix in SIDECARS or not self._chosen(file):
            return False
        if known.get(file.rel, "").partition("+")[0] == file.stamp:
            return True
        try:
            with door.open(file.uri).file as opened:
                return is_image(opened.read(32))
        except (OSError, NotAllowed) as error:
            tally["files could not be looked into"][type(error).__name__] += 1
            return False

    def _texts(self, door: Door, txt: _File | None, jsn: _File | None, tally: Tally) -> tuple[str | None, str | None]:
        """Caption and sidecar JSON; what cannot be read is told in the latter as `error`, never raised."""
        problems: list[str] = []
        text = _text(door, txt, problems) if txt else None
        record = _text(door, jsn, problems) if jsn else None
        name = PurePosixPath(jsn.rel).stem if jsn else ""
        caption, sidecar, _ = captions.beside(name, text, record, problems, self.caption, tally)
        return caption, captions.with_problems(sidecar, problems)


def _count_texts(texts: Iterable[tuple[str, str]], images: set[str], passed: set[str], tally: Tally) -> None:
    """Counts texts, given by (path without suffix, suffix), that are no sidecar of an image."""
    stems = {os.path.splitext(rel)[0] for rel in images | passed}
    for stem, suffix in texts:
        if stem in images:
            tally[captions.NOT_READ][f"named NAME{os.path.splitext(stem)[1]}{suffix}, not NAME{suffix}"] += 1
        elif stem not in stems and stem not in passed:
            tally["texts belong to no image"][suffix] += 1


TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


def _text(door: Door, file: _File, problems: list[str]) -> str | None:
    try:
        return door.read(file.uri, MAX_SIDECAR).decode("utf-8-sig")
    except TooLarge:
        problems.append(f"{PurePosixPath(file.rel).name}: {file.size:,} bytes are too long for a sidecar")
    except NotAllowed as error:
        problems.append(f"{PurePosixPath(file.rel).name}: {error}")
    except UnicodeDecodeError as error:
        problems.append(f"{PurePosixPath(file.rel).name}: not UTF-8 at byte {error.start}")
    except OSError as error:
        problems.append(f"{PurePosixPath(file.rel).name}: {error.strerror or type(error).__name__}")
    return None


def _local_files(root: str, recursive: bool, door: Door, tally: Tally) -> Iterator[_File]:
    """Files below a local folder; names that begin with a dot are passed over, links to folders followed."""
    if not os.path.isdir(root):
        raise _missing(root)
    pending: list[tuple[str, str, tuple[str, ...]]] = [(os.path.abspath(root), "", (os.path.realpath(root),))]
    while pending:
        folder, prefix, chain = pending.pop()
        for entry in _entries(folder, root if not prefix else None, tally):
            if _is_dir(entry):
                real = os.path.realpath(entry.path)
                if recursive and entry.is_symlink() and not door.holds(entry.path):
                    told = f"{BARRED}a link to a folder outside of the source's; name that in source.roots to follow it"
                    yield _File(_utf8(prefix + entry.name), _utf8(entry.path), 0, f"link-{real}", told)
                elif recursive and real not in chain:  # a link to a folder above would never end
                    pending.append((entry.path, f"{prefix}{entry.name}/", (*chain, real)))
                elif not recursive:
                    tally["folders are not looked into (recursive: false)"][""] += 1
            elif file := _local_file(entry, prefix, tally):
                yield file


def _entries(folder: str, root: str | None, tally: Tally) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing of one that vanished since its parent was listed, unless it is the `root`."""
    try:
        with os.scandir(folder) as entries:
            every = list(entries)
    except FileNotFoundError:
        if root is not None:
            raise _missing(root) from None
        return []
    except OSError as error:
        raise _unreadable(folder, error) from None
    shown = [entry for entry in every if not entry.name.startswith(".")]
    if len(shown) < len(every):
        tally[HIDDEN][""] += len(every) - len(shown)
    return shown


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or into a folder that may not be entered
        return False


def _local_file(entry: os.DirEntry[str], prefix: str, tally: Tally) -> _File | None:
    """The file of an entry; None for a pipe or a device, and for a file that vanished since its folder was read."""
    broken = False
    try:
        try:
            info = entry.stat()
        except OSError:
            if not entry.is_symlink():
                raise
            info, broken = entry.stat(follow_symlinks=False), True
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(entry.path, error) from None
    if broken:  # a link to nowhere: listed, so that reading it fails as a row
        size, stamp = 0, f"broken-{info.st_mtime_ns}"
    elif stat.S_ISREG(info.st_mode):
        size, stamp = info.st_size, f"{info.st_mtime_ns}-{info.st_size}"
    else:
        tally["pipes, sockets and devices are no rows"][""] += 1
        return None
    return _File(_utf8(prefix + entry.name), _utf8(entry.path), size, stamp)


def _utf8(name: str) -> str:
    r"""`name`, or where it is no UTF-8 the same with `\xNN`: Arrow strings are UTF-8, and no row may go missing."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _remote_files(root: str, recursive: bool, door: Door, tally: Tally) -> Iterator[_File]:
    """Files below a URI, through `pyarrow.fs`; item URIs are percent-encoded as Arrow wants them."""
    address, mark, query = root.partition("?")  # s3://bucket/photos?region=...
    try:
        system, base = filesystem(root)
        base = base.rstrip("/")
        if system.get_file_info(base).type != pafs.FileType.Directory:
            raise _missing(root)
        found = system.get_file_info(pafs.FileSelector(base, recursive=recursive))
        listed = [(info, info.path) for info in found]  # a name that is no UTF-8 raises here
    except (OSError, ValueError) as error:
        raise _unreadable(root, error) from None
    for info, path in listed:
        rel = path[len(base) :].lstrip("/")
        if info.type == pafs.FileType.Directory:
            continue
        if any(part.startswith(".") for part in rel.split("/")):
            tally[HIDDEN][""] += 1
            continue
        uri = f"{address.rstrip('/')}/{quote(rel)}{mark}{query}"
        yield _File(rel, uri, info.size or 0, f"{info.mtime_ns}-{info.size}")


def _unreadable(path: str, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(
        f"cannot list {_utf8(path)}: {reason}", where="source.path", next="make it readable, or choose another path"
    )


def _missing(root: str) -> UserError:
    samples = "" if is_uri(root) else f", or write sample pictures there: nextloom samples {shlex.quote(root)}"
    return UserError(f"no such folder: {root}", where="source.path", next=f"correct the path{samples}")
