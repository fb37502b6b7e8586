"""The folder of an export: claimed for one export, written so that a kill at any moment leaves nothing half.

    DIR/shard-000000.tar ...              whole shards; one appears by a rename, when its bytes are on the disk
    DIR/.nextloom/claim.json              whose folder it is, written first
    DIR/.nextloom/shards/000000.json      what a shard holds, written just before it appears
    DIR/.nextloom/export.json             the manifest, written last
    DIR/.nextloom/errors.jsonl            rows whose bytes could not be had

Everything is done below the folder that was opened, by names of our own, and no link is followed: a link that lies
where a file is to be is replaced, and what it points to stays as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from nextloom.errors import UserError
from nextloom.io import is_uri

OWN = ".nextloom"
CLAIM, MANIFEST, ERRORS = "claim.json", "export.json", "errors.jsonl"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Sink:
    """A file that is being written: counts and hashes what goes through."""

    def __init__(self, file: Any) -> None:
        self._file, self._hash, self.size = file, hashlib.sha256(), 0
        self.closed = False

    def write(self, data: Any) -> int:
        """All of `data`."""
        view = memoryview(data)
        self._file.write(view)
        self._hash.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Bytes so far."""
        return self.size

    def flush(self) -> None:
        """Nothing: the file is flushed when it is whole."""

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def digest(self) -> str:
        """sha256 in hexadecimal."""
        return self._hash.hexdigest()


class Place:
    """A claimed folder; a context manager.

    Args:
        folder: is made if it is not there; the one above it must be.
        claim: the identity of the export, plain data.

    Raises:
        UserError: on entering: the folder is a link, holds something else, or is being written by another export.
    """

    def __init__(self, folder: str | os.PathLike[str], claim: Mapping[str, Any]) -> None:
        self.path, self._claim = os.path.abspath(folder), json.loads(json.dumps(claim))
        self._open = contextlib.ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Place:
        try:
            self._enter()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _enter(self) -> None:
        if os.path.islink(self.path):
            raise UserError(
                f"a link to {os.path.realpath(self.path)}; nothing is written through links",
                where=self.path,
                next="give the folder itself",
            )
        if not os.path.isdir(os.path.dirname(self.path)):
            raise UserError("the folder above it is not there", where=self.path, next="make it, or correct the path")
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path)
        try:
            self._folder = self._opened(os.open(self.path, _FOLDER))
        except NotADirectoryError:
            raise UserError("a file, not a folder", where=self.path, next="choose another folder") from None
        held = sorted(os.listdir(self._folder))
        if held and held != [OWN] and not self._claimed():
            shown = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
            raise UserError(
                f"it is not empty and no export of ours: it holds {shown}",
                where=self.path,
                next="choose an empty folder, or one that is not there yet",
            )
        for name, above in ((OWN, self._folder), ("shards", None)):
            where = self._own if above is None else above
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=where)
            try:
                number = self._opened(os.open(name, _FOLDER, dir_fd=where))
            except OSError:
                raise UserError(
                    f"{OWN} in it is a link or a file, and no folder of ours",
                    where=self.path,
                    next="choose another folder",
                ) from None
            if above is None:
                self._shards = number
            else:
                self._own = number
        try:
            fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another export writes here at this moment", where=self.path, next="wait for it") from None
        self._take()
        for name in os.listdir(self._own):
            if name.startswith("tmp-"):  # of an export that was killed
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._own)

    def _claimed(self) -> bool:
        try:
            own = os.open(OWN, _FOLDER, dir_fd=self._folder)
        except OSError:
            return False
        try:
            return stat.S_ISREG(os.stat(CLAIM, dir_fd=own, follow_symlinks=False).st_mode)
        except OSError:
            return False
        finally:
            os.close(own)

    def _take(self) -> None:
        """Claim the folder, or see that it is claimed for this very export."""
        found = self.read(CLAIM)
        if found is None:
            self.write(CLAIM, self._claim)
        elif found != self._claim:
            changed = [key for key in self._claim if found.get(key) != self._claim[key]] or list(found)
            told = ", ".join(
                f"{key} {_short(found.get(key))}, not {_short(self._claim.get(key))}" for key in changed[:3]
            )
            raise UserError(
                f"it holds another export: {told}",
                where=self.path,
                next="choose another folder; a release never goes into that of another one",
            )

    def _opened(self, number: int) -> int:
        self._open.callback(os.close, number)
        return number

    # ---- documents

    def read(self, name: str) -> Any | None:
        """A JSON document of ours; None when there is none.

        Raises:
            UserError: it is damaged.
        """
        folder, name = self._where(name)
        try:
            number = os.open(name, _READ, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._damaged(name, error.strerror or str(error)) from None
        with open(number, "rb") as file:
            try:
                return json.loads(file.read())
            except ValueError as error:
                raise self._damaged(name, f"not JSON: {error}") from None

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(f"{OWN}/{name}: {what}", where=self.path, next="export into an empty folder")

    def write(self, name: str, document: Any) -> None:
        """Put a JSON document in place, whole and on the disk."""
        text = json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
        folder, name = self._where(name)
        self._replace(folder, name, text)

    def write_errors(self, lines: list[Any]) -> None:
        """Put the list of failed rows in place, a JSON object a line."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self._replace(self._own, ERRORS, text.encode("utf-8", "backslashreplace"))

    def _where(self, name: str) -> tuple[int, str]:
        folder, slash, last = name.rpartition("/")
        return (self._shards, last) if slash and folder == "shards" else (self._own, name)

    def _replace(self, folder: int, name: str, data: bytes) -> None:
        with self._temporary() as (file, temporary):
            file.write(data)
            _settle(file)
            os.replace(temporary, name, src_dir_fd=self._own, dst_dir_fd=folder)
        os.fsync(folder)

    # ---- shards

    @contextlib.contextmanager
    def shard(self, name: str) -> Generator[tuple[Sink, Any]]:
        """A file to write; the second value is called to put it in place. Without that, nothing is left of it."""
        with self._temporary() as (file, temporary):
            sink = Sink(file)

            def finish() -> None:
                _settle(file)
                os.replace(temporary, name, src_dir_fd=self._own, dst_dir_fd=self._folder)
                os.fsync(self._folder)

            yield sink, finish

    def size_of(self, name: str) -> int | None:
        """Bytes of a shard; None where there is no regular file of that name."""
        try:
            info = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def put(self, name: str, data: bytes) -> None:
        """A small file beside the shards."""
        self._replace(self._folder, name, data)

    @contextlib.contextmanager
    def _temporary(self) -> Generator[tuple[Any, str]]:
        name = f"tmp-{next(self._numbers)}"
        with open(os.open(name, _NEW, 0o666, dir_fd=self._own), "wb", buffering=1 << 20) as file:
            try:
                yield file, name
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._own)


def _settle(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_apart(folder: str | os.PathLike[str], *, root: str, sources: Iterable[str]) -> None:
    """Refuse a folder inside of the datasets of `root`, or of a folder that a source lists.

    Raises:
        UserError: naming the one and the other.
    """
    if is_uri(str(folder)):
        raise UserError(
            f"an export is written to a folder of this machine, not to {folder}",
            next="export to a folder, then copy what was made",
        )
    real = os.path.realpath(os.path.abspath(folder))
    barred = {} if is_uri(root) else {os.path.join(os.path.abspath(root), "datasets"): "the datasets of this root"}
    barred |= {os.path.abspath(path): "what the source lists" for path in sources if not is_uri(path)}
    for inside, told in barred.items():
        outer = os.path.realpath(inside)
        if real == outer or real.startswith(outer.rstrip("/") + "/"):
            raise UserError(f"it lies in {told}, {inside}", where=str(folder), next="choose a folder elsewhere")
