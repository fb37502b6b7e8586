"""A root with a dataset, what lies beside it, and the guards against leaving it: for the attacks on the store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path

import toy_dataset
from hostile.attack import Outcome, patched
from nextloom import documents, inside
from nextloom.cli import application
from nextloom.errors import UserError
from nextloom.store import dataset as datasets
from nextloom.store.dataset import Dataset

DEAD = "columns/tokens/dead"
WANTED = {"text": "t", "tokens": "i0"}
PART = f"part-{0:032x}-{0:032x}.parquet"
SECRET = '{"secret": "of another project"}'


def following(handle: int, part: str, path: str, create: bool) -> int:
    """`inside._enter` as anybody would write it."""
    if create:
        os.makedirs(path, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


@contextmanager
def guards_off(*patches: tuple[object, str, object]):
    with ExitStack() as stack:
        for owner, name, replacement in patches:
            stack.enter_context(patched(owner, name, replacement))
        yield


def nothing(*_: object) -> None:
    """Instead of a check."""


FOLLOW = (
    (inside, "_enter", following),
    (inside, "is_link", lambda *_: False),
    (documents, "is_link", lambda *_: False),
    (inside, "FILE", os.O_RDONLY | os.O_NONBLOCK),
    (datasets, "refuse_links", nothing),
    (application, "refuse_links", nothing),
)


def scene(folder: Path) -> tuple[Dataset, Path]:
    """A dataset with a dead column, all two hours old, and a foreign folder with files of the names that we write."""
    uri, outside = folder / "root/datasets/toy", folder / "outside"
    toy_dataset.build(str(uri), ["a", "b"])
    shutil.copytree(uri / "columns/tokens/i0", uri / DEAD)
    for name in (PART, f"x/{PART}", f"x/y/{PART}", "_delta_log/00000000000000000000.json"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_text("of another project")
    (outside / "secret.json").write_text(SECRET)
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    return Dataset(str(uri)), outside


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def judged(outside: Path, act: Callable[[], object]) -> Outcome:
    """Whether anything outside was made, changed or deleted by `act`."""
    before = held(outside)
    try:
        act()
        what = "left alone"
    except UserError as error:
        what = f"refused: {error.what}"
    except OSError as error:
        what = f"failed: {error}"
    after = held(outside)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return Outcome(bool(changed), f"{what}{f', but changed outside: {changed[:3]}' if changed else ''}")


def put_link(dataset: Dataset, place: str, goal: Path) -> None:
    where = Path(dataset.uri, place) if place else Path(dataset.uri)
    if where.exists() and not where.is_symlink():
        where.rename(where.parent / f"{where.name}.aside")
    where.parent.mkdir(parents=True, exist_ok=True)
    where.symlink_to(goal)
