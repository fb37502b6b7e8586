"""What went wrong outside of us, in words: what, where, why, and what to do next.

Disks, object stores, Delta, Arrow, model files and Ray raise errors of their own, some with a page of Rust. `explain`
turns each kind into a `UserError`; `one_line` shortens any error for a log line. No secret of a URL gets through.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator

from nextloom.errors import UserError
from nextloom.printable import printable, redacted

TRACEBACK = "NEXTLOOM_TRACEBACK"
"""Environment variable: set to 1, an error that nobody foresaw is shown with its traceback."""
RERUN = "run the same command again"
SYSTEM = {
    errno.EACCES: ("no permission", "get the right to read and write there, then " + RERUN),
    errno.EPERM: ("not permitted", "get the right to read and write there, then " + RERUN),
    errno.EROFS: ("the disk is read-only", "mount it for writing, or give another --root, then " + RERUN),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n 65536), then " + RERUN),
    errno.ENFILE: ("the machine has too many open files", "close other programs, then " + RERUN),
    errno.ENAMETOOLONG: ("the name is too long", "use shorter names or a --root nearer to the top"),
    errno.ESTALE: ("the network disk lost this file (stale handle)", "mount the disk again, then " + RERUN),
    errno.EIO: ("the disk does not answer (input/output error)", "look at its health (dmesg), then " + RERUN),
    errno.ENOMEM: ("out of memory", "close other programs or use fewer workers (--set run.workers=1), then " + RERUN),
    errno.ENOENT: ("no such file or folder", "bring it back or mend the path, then " + RERUN),
    errno.ENOTDIR: ("a part of the path is a file and no folder", "move it away or mend the path, then " + RERUN),
    errno.EISDIR: ("is a folder, a file is expected", "move it away or mend the path, then " + RERUN),
    errno.EEXIST: ("exists already", "move it away, then " + RERUN),
    errno.ENOTEMPTY: ("the folder is not empty", "move it away, then " + RERUN),
    errno.ELOOP: ("links lead in a circle, or where none may be", "remove the link, then " + RERUN),
    errno.EFBIG: ("the file is too large for this disk", "give a --root on another disk, then " + RERUN),
    errno.EBUSY: ("is in use", "close what uses it, then " + RERUN),
    errno.ECONNREFUSED: ("the server refuses the connection", "start it or mend the address, then " + RERUN),
    errno.ECONNRESET: ("the server broke the connection off", RERUN),
    errno.EHOSTUNREACH: ("the server cannot be reached", "look at the network and the address, then " + RERUN),
    errno.ENETUNREACH: ("the network cannot be reached", "look at the network, then " + RERUN),
    errno.ETIMEDOUT: ("the server does not answer", "look at the network and the address, then " + RERUN),
}
"""errno -> (what, next)."""
FULL = (errno.ENOSPC, errno.EDQUOT)
NUMBER = re.compile(r"(?:os error |\[?errno )(\d+)", re.IGNORECASE)
PATH = re.compile(r"(?:file://|['\"(\s]|^)(/[^'\"\s,:;)\]]+)")
QUERY = re.compile(r"([?&][^=\s&]*=)[^&\s'\")]+")
"""Of an address: what its options are set to is nobody's business."""
CLASSES = {
    FileNotFoundError: errno.ENOENT,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    PermissionError: errno.EACCES,
    FileExistsError: errno.EEXIST,
    MemoryError: errno.ENOMEM,
}
"""Errors without a number, as libraries raise them."""
STORE = {
    "PermissionDeniedError": ("the store denies access", "check your rights there and the credentials"),
    "UnauthenticatedError": ("the store does not accept the credentials", "set the credentials of the store"),
    "NotFoundError": ("the store has no such object or bucket", "check the address"),
    "NotSupportedError": ("the store cannot do this", "use another store or --root"),
    "PreconditionError": ("another writer changed the object at this moment", RERUN),
    "GenericError": ("the store does not answer as it should", "check address, network and credentials"),
}
"""obstore's exceptions."""


def explain(error: BaseException) -> UserError | None:
    """`error` as what, where, next; None for one that nobody foresaw."""
    for each in _chain(error):
        if isinstance(each, UserError):
            return each
    for each in _chain(error):
        if found := _system(each) or _named(each):
            return found
    return None


def unforeseen(error: BaseException) -> str:
    """The lines for an error that `explain` does not know."""
    return (
        f"{type(error).__name__}: {one_line(error)}\n"
        f"  next: {TRACEBACK}=1 before the same command shows where this happened; please report it with that"
    )


def one_line(error: BaseException) -> str:
    """The first line of an error's text, without secrets and control characters, at most 300 characters."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return _clean(lines[0])[:300] if lines else type(error).__name__


def _system(error: BaseException) -> UserError | None:
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if number is None and (found := NUMBER.search(text)):
        number = int(found[1])
    if number is None:
        number = next((code for kind, code in CLASSES.items() if isinstance(error, kind)), None)
    if number in FULL:
        place = _place(error, text)
        return UserError(f"disk full: {_free(place)}", where=place, next="make room, then " + RERUN)
    if number in SYSTEM:
        what, hint = SYSTEM[number]
        return UserError(what, where=_place(error, text), next=hint)
    return None


def _named(error: BaseException) -> UserError | None:
    """Errors known by their class, without importing what they come from."""
    module, name, text = type(error).__module__ or "", type(error).__name__, str(error)
    place, first = _place(error, text), one_line(error)
    if module.startswith("obstore") or (module == "builtins" and name in STORE):
        what, hint = STORE.get(name, STORE["GenericError"])
        return UserError(f"{what}: {first}", where=place, next=f"{hint}, then {RERUN}")
    if name == "SafetensorError":
        hint = "fetch or make the file again; nextloom plan RECIPE says how"
        return UserError(f"the weights cannot be read, the file is cut or damaged: {first}", where=place, next=hint)
    if name in ("DeltaError", "TableNotFoundError", "DeltaProtocolError", "CommitFailedError", "SchemaMismatchError"):
        return UserError(
            f"a table's log: {first.removeprefix('Kernel error: ')}", where=place, next="nextloom verify RECIPE --all"
        )
    if module.startswith("pyarrow"):
        hint = "nextloom verify RECIPE --all says whether a file of the dataset is damaged"
        return UserError(f"a file cannot be read: {first}", where=place, next=hint)
    if _in_ray_start(error):
        return UserError(
            f"Ray does not start: {first}",
            next="look at free memory, at space in /tmp and at --address; `ray stop` ends what is left of an "
            f"earlier start; then {RERUN}",
        )
    if module.startswith("ray.exceptions"):
        lines = [line for line in text.splitlines() if line.strip()]
        return UserError(f"Ray: {_clean(lines[-1])[:300] if lines else name}", next=RERUN)
    if isinstance(error, (ConnectionError, TimeoutError)):
        return UserError(f"no connection: {first}", next=f"look at the network and the address, then {RERUN}")
    if isinstance(error, OSError):
        return UserError(first, where=place, next=RERUN)
    return None


def _in_ray_start(error: BaseException) -> bool:
    """Whether it comes out of `ray.init`."""
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        if code.co_name == "init" and code.co_filename.replace("\\", "/").endswith("ray/_private/worker.py"):
            return True
        trace = trace.tb_next
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, Ray's causes included."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        hidden = None if each.__suppress_context__ else each.__context__
        waiting += [e for e in (getattr(each, "cause", None), each.__cause__, hidden) if isinstance(e, BaseException)]


def _place(error: BaseException, text: str) -> str | None:
    """The file that an error is about, where it says so."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if isinstance(name, (str, bytes, os.PathLike)):
        return _clean(os.fsdecode(name))[:500]
    found = PATH.search(text)
    return _clean(found[1])[:500] if found else None


def _free(place: str | None) -> str:
    """Free space where `place` lies, or in the present folder."""
    path = os.path.abspath(place or ".")
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        free = shutil.disk_usage(path).free
    except OSError:
        return "no room left"
    return f"{free / 2**20:,.0f} MB free, or a quota is used up" if free >= 2**20 else "nothing is left"


def _clean(text: str) -> str:
    """Without secrets and control characters."""
    return printable(QUERY.sub(r"\1...", redacted(text)))
