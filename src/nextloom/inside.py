"""Below a folder and nowhere else: paths that no link leads out of.

What we write, read back and delete lies below the root. A link there, made by accident or in a root that somebody
sent, could lead to any folder of the machine, so no part of a path below the base is ever followed: each folder is
opened from the one above it, and the last step is done by that handle. A link that is put in the way between two
steps is refused as well.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nextloom.errors import Damaged, UserError

NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$")
"""One part of a path that we write."""
FOLLOWED = (errno.ELOOP, errno.ENOTDIR)
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would wait for its writer


class Outside(UserError):
    """A path would lead out of the folder that it has to stay in."""


def parts_of(path: str) -> list[str]:
    """The parts of a relative path made of plain names, ``a/b.json``.

    Raises:
        Damaged: absolute, empty, with ``..`` or with characters that no name of ours has.
    """
    parts = path.split("/")
    if not all(map(NAME.match, parts)):
        raise Damaged(f"{path[:200]!r} is no path below a dataset", next="nextloom verify RECIPE --all")
    return parts


def refuse_links(base: str, *parts: str) -> None:
    """Look at ``base/parts[0]``, ``base/parts[0]/parts[1]`` ...; what does not exist yet is well.

    Raises:
        Outside: one of them is a link.
    """
    path = base
    for part in parts:
        path = os.path.join(path, part)
        if os.path.islink(path):
            raise linked(path)


def linked(path: str) -> Outside:
    """The refusal of a link at `path`."""
    try:
        goal = f" to {os.readlink(path)}"
    except OSError:
        goal = ""
    return Outside(
        f"is a link{goal}; below the root links are not followed, so that nothing outside of it is touched",
        where=path,
        next="move what it leads to into its place (or mount it there), or give that folder as --root",
    )


@contextmanager
def folder(base: str, parts: Sequence[str] = (), *, create: bool = False) -> Iterator[int]:
    """A handle on ``base/parts...`` for the ``dir_fd`` arguments of `os`; of `base` itself links are followed.

    Raises:
        FileNotFoundError: it is absent, and `create` is false.
        Outside: a part is a link.
    """
    if create:
        os.makedirs(base, exist_ok=True)
    handle = os.open(base, FOLDER)
    try:
        path = base
        for part in parts:
            path = os.path.join(path, part)
            inner = _enter(handle, part, path, create)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _enter(handle: int, part: str, path: str, create: bool) -> int:
    for again in (create, False):
        try:
            return os.open(part, FOLDER | os.O_NOFOLLOW, dir_fd=handle)
        except FileNotFoundError:
            if not again:
                raise
            try:
                os.mkdir(part, dir_fd=handle)
                os.fsync(handle)
            except FileExistsError:
                pass
        except OSError as error:
            if error.errno in FOLLOWED and is_link(handle, part):
                raise linked(path) from None
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    raise AssertionError("unreachable")


def is_link(handle: int, name: str) -> bool:
    """Whether `name` in an opened folder is a link."""
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def read_regular(handle: int, name: str, path: str, limit: int) -> bytes:
    """All bytes of a regular file in an opened folder; `path` is what messages call it.

    Raises:
        FileNotFoundError: there is none.
        Outside: it is a link.
        Damaged: it is no regular file, or larger than `limit` bytes.
    """
    if is_link(handle, name):
        raise linked(path)
    try:
        file = os.open(name, FILE, dir_fd=handle)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise linked(path) from None
        raise type(error)(error.errno, os.strerror(error.errno or 0), path) from None
    with open(file, "rb") as stream:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise Damaged("is no regular file", where=path, next="move it away")
        data = b"" if found.st_size > limit else stream.read(limit + 1)
    if len(data) > limit or found.st_size > limit:
        raise Damaged(
            f"has {found.st_size:,} bytes, at most {limit:,} are read", where=path, next="nextloom verify RECIPE --all"
        )
    return data
