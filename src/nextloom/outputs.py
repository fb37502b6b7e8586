"""Folders that a verb replaces: where one may lie, and what may be thrown away there.

`train` and `generate` replace the folder that a recipe names in `output:` as a whole. Two things are asked before
the first step, and again before the old folder goes:

- Is it a place for an output? Relative paths stay below the root, links included. An absolute path is taken as its
  owner typed it. `..`, links, a folder that the recipe reads from, the root, the home and the working folder, the
  folders of datasets, samples and reports, and the inside of another output are no places.
- Is everything there ours? Each file must be one that a receipt of ours names with its digest. Notes, a model that was
  edited, a link, a folder: any of them makes the output foreign, and it is refused, also with `--fresh`.

Trade-off: a README that somebody put beside a model has to be moved before the model can be trained anew.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

from nextloom.config import resolve
from nextloom.errors import UserError
from nextloom.io import digest_path, is_uri

RUN_SUFFIX = ".run"
OURS_SUFFIXES = (RUN_SUFFIX, ".part", ".old")
"""Ends of names that stand for what we keep beside an output; no output may have one."""
RESERVED = ("datasets", "reports", "samples")
"""Folders below a root that other verbs write."""
RECEIPTS = ("run.json", "receipt.json")
"""What makes a folder ``X.run`` that of the training into X."""


def _output(value: str, info: ValidationInfo) -> str:
    root = (info.context or {}).get("root")
    refuse_name(value, root)
    if is_uri(value):
        return value  # the verbs that can write there say so themselves
    return resolve(value, root) if root is not None else str(Path(value).expanduser())


def refuse_name(value: str, root: str | None) -> None:
    """Refuse what cannot be the path of an output, from the path and the links on its way alone.

    Args:
        value: as typed.
        root: that relative paths are below; None where it is not known.

    Raises:
        ValueError: says why.
    """
    if (root is not None and not value.strip()) or any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise ValueError("an output is the path of a folder, without control characters")
    if is_uri(value):
        return
    if ".." in Path(value).parts:
        raise ValueError(f"{value}: no '..' in an output; give its absolute path")
    if Path(value).name.endswith(OURS_SUFFIXES):
        raise ValueError(f"{value}: names that end with {', '.join(OURS_SUFFIXES)} are kept for what is in work")
    if root is not None and not is_uri(root):
        _below(Path(root).absolute(), Path(resolve(value, root)))


def _below(root: Path, path: Path) -> None:
    """Refuse what lies below the root in name only, and the folders of other verbs."""
    if not path.is_relative_to(root):
        return  # an absolute path, typed by the recipe's owner
    parts = path.relative_to(root).parts
    if not parts:
        raise ValueError(f"{path} is the root itself, and holds other files")
    if parts[0] in RESERVED or parts == ("runs",):
        raise ValueError(f"{path} holds other files: {parts[0]}/ below the root is kept for them; try runs/NAME")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"{path} leads out of the root by a link; give the absolute path of where it leads")


OutputPath = Annotated[str, AfterValidator(_output)]
"""Path of a folder that a verb replaces: absolute, or below the root of the run."""


def check_place(output: str, reads: Mapping[str, str], *, where: str = "output") -> None:
    """Refuse an output at a place where something else lives.

    Args:
        output: absolute path.
        reads: field -> path of what the same recipe reads.
        where: config path of the output.

    Raises:
        UserError: a link or no folder; the home, the working folder or a folder above them; equal to, inside of or
            around what the recipe reads; inside another output.
    """
    path = Path(output)
    if path.is_symlink():
        raise _refused(f"{path} is a link, and an output is replaced as a whole", where)
    if path.exists() and not path.is_dir():
        raise _refused(f"{path} is not a folder", where)
    real = Path(os.path.realpath(path))
    for name, folder in (("home folder", Path.home()), ("working folder", Path.cwd())):
        if Path(os.path.realpath(folder)).is_relative_to(real):
            raise _refused(f"{path} is the {name} or above it, and holds other files", where)
    for name, read in reads.items():
        if is_uri(read):
            continue
        other = Path(os.path.realpath(read))
        if real.is_relative_to(other) or other.is_relative_to(real):
            raise _refused(f"{path} and {name}, which is read, lie in one another: {read}", where)
    for above in real.parents:
        beside = above.with_name(above.name + RUN_SUFFIX) if above.name else above
        if above.name.endswith(OURS_SUFFIXES) or any((beside / name).is_file() for name in RECEIPTS):
            raise _refused(f"{path} lies inside another output, {above}, which is replaced as a whole", where)


def strangers(folder: Path, *receipts: Mapping[str, str]) -> list[str]:
    """Names in a folder that no receipt names with the digest of what lies there now; an absent folder has none.

    Args:
        folder: of an output.
        receipts: name -> digest (`digest_files`), of all that may have written there.
    """
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if not _named(entry, receipts))


def check_ours(output: str, *receipts: Mapping[str, str], maker: str, where: str = "output") -> None:
    """Refuse to replace a folder with anything in it that is not ours.

    Args:
        output: absolute path.
        receipts: as `strangers`.
        maker: the verb, for the message.
        where: config path of the output.

    Raises:
        UserError: names what is foreign or was changed.
    """
    if found := strangers(Path(output), *receipts):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise _refused(
            f"{output} holds other files than `{maker}` left there, or they were changed since: "
            f"{', '.join(found[:3])}{more}; it would be replaced as a whole",
            where,
        )


def digest_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Name -> sha256 (16 hex digits) of the files in a folder; `names`: only those."""
    chosen = sorted(names) if names is not None else sorted(p.name for p in folder.iterdir() if p.is_file())
    return {name: digest_path(str(folder / name)) for name in chosen}


def remove_own(folder: Path, pattern: str) -> None:
    """Remove from a folder the files and folders whose whole name fits `pattern`; then the folder, if it is empty.

    Whatever else lies there stays. Links are not followed, and not removed.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for entry in list(os.scandir(folder)):
        if not re.fullmatch(pattern, entry.name) or entry.is_symlink():
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    if not os.listdir(folder):
        folder.rmdir()


def _named(entry: os.DirEntry[str], receipts: Iterable[Mapping[str, Any]]) -> bool:
    known = [receipt[entry.name] for receipt in receipts if entry.name in receipt]
    return bool(known) and entry.is_file(follow_symlinks=False) and digest_path(entry.path) in known


def _refused(what: str, where: str) -> UserError:
    return UserError(
        what, where=where, next="name another output, or move what lies there: --fresh does not replace it either"
    )
