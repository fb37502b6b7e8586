"""Attacks on what lies on disk, links: a verb that writes or deletes outside of the root, or more than its own files.

Somebody sends a root with links in it, or puts one in the way; or keeps files of his own among ours.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

from hostile.attack import Attack, Outcome, patched
from hostile.store_scene import DEAD, FOLLOW, PART, WANTED, guards_off, held, judged, put_link, scene
from nextloom.cli import application
from nextloom.store import vacuum
from nextloom.store.dataset import GONE, ROWS, Dataset


def vacuumed(place: str, goal: str = ""):
    def strike(folder: Path) -> Outcome:
        dataset, outside = scene(folder)
        put_link(dataset, place, outside / goal if goal else outside)

        def act() -> None:
            with dataset.lease("vacuum"):
                vacuum.vacuum(dataset, vacuum.find_garbage(dataset, WANTED))

        return judged(outside, act)

    return strike


def swapped_folder(folder: Path) -> Outcome:
    dataset, outside = scene(folder)

    def act() -> None:
        with dataset.lease("vacuum"):
            garbage = vacuum.find_garbage(dataset, WANTED)
            names = [path.removeprefix(f"{DEAD}/") for each in garbage for path in each.files]
            shutil.rmtree(Path(dataset.uri, DEAD))
            Path(dataset.uri, DEAD).symlink_to(outside)
            (outside / PART).rename(outside / names[-1])
            before.update(held(outside))
            vacuum.vacuum(dataset, garbage)

    before: dict[str, bytes] = {}
    outcome = judged(outside, act)
    return Outcome(held(outside) != before, outcome.what.partition(", but")[0])


def fresh_file(folder: Path) -> Outcome:
    """A file of the listing is replaced by one that a writer has just made."""
    dataset, _ = scene(folder)
    with dataset.lease("vacuum"):
        garbage = vacuum.find_garbage(dataset, WANTED)
        name = next(path for each in garbage for path in each.files if path.endswith(".parquet"))
        Path(dataset.uri, name).write_text("new")
        vacuum.vacuum(dataset, garbage)
    lost = not Path(dataset.uri, name).exists()
    return Outcome(lost, "the new file is gone" if lost else "left alone")


def own_file(name: str):
    def strike(folder: Path) -> Outcome:
        dataset, _ = scene(folder)
        mine = Path(dataset.uri, name)
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("notes")
        os.utime(mine, (1e9, 1e9))
        with dataset.lease("vacuum"):
            vacuum.vacuum(dataset, vacuum.find_garbage(dataset, WANTED))
        return Outcome(not mine.exists(), "left alone" if mine.exists() else "deleted")

    return strike


FOLLOWING_VACUUM = ((vacuum, "is_uri", lambda _: True), *FOLLOW)  # lists and deletes by path, as for a bucket
ALL_OURS = partial(patched, vacuum, "is_ours", lambda path: True)
DELETES = [
    *(
        Attack(
            "links", f"vacuum --delete where {place} is a link", told, vacuumed(place, goal), partial(guards_off, *g)
        )
        for place, goal, told, g in [
            ("columns/strange", "", "left alone", FOLLOWING_VACUUM),
            ("columns/tokens/linked", "", "left alone", FOLLOWING_VACUUM),
            (f"{DEAD}/_delta_log", "_delta_log", "left alone", FOLLOWING_VACUUM),
            ("packs", "", "links are not followed", FOLLOWING_VACUUM),
            ("packs/p", "x", "left alone", FOLLOWING_VACUUM),
            ("packs/p/f", "x/y", "left alone", FOLLOWING_VACUUM),
            ("gone", "x", "links are not followed", FOLLOWING_VACUUM),
            ("copies/gone", "", "links are not followed", FOLLOWING_VACUUM),
        ]
    ),
    Attack(
        "links",
        "vacuum --delete, a folder becomes a link after the listing",
        "links are not followed",
        swapped_folder,
        lambda: guards_off(*FOLLOW, (vacuum, "_stamp", lambda info: (0, 0, 0))),
    ),
    Attack(
        "links",
        "vacuum --delete, a file becomes another after the listing",
        "left alone",
        fresh_file,
        lambda: patched(vacuum, "_stamp", lambda info: (0, 0, 0)),
    ),
    *(
        Attack("links", f"vacuum --delete of {name}", "left alone", own_file(name), ALL_OURS)
        for name in (
            f"{DEAD}/notes.txt",
            f"{DEAD}/part-1.parquet",
            f"{DEAD}/_delta_log/x.json",
            "packs/p/f/thesis.parquet",
        )
    ),
]


# ---- writing


def committed(place: str, path: str):
    def strike(folder: Path) -> Outcome:
        dataset, outside = scene(folder)
        put_link(dataset, place, outside / "x")

        def act() -> None:
            with dataset.lease("run"):
                schema = {"rows": ROWS, "gone": GONE}.get(path, GONE)
                dataset.table(path).commit(schema, [])

        return judged(outside, act)

    return strike


def document_written(kind: str, create: bool):
    def strike(folder: Path) -> Outcome:
        dataset, outside = scene(folder)
        put_link(dataset, kind, outside)
        write = dataset.documents.create if create else dataset.documents.write
        return judged(outside, lambda: write(f"{kind}/000000009.json", {"mine": True}))

    return strike


def linked_root(place: str):
    def strike(folder: Path) -> Outcome:
        _, outside = scene(folder)
        put_link(Dataset(str(folder / "root")), place, outside)
        (folder / "pics").mkdir()
        file = folder / "toy.json"
        file.write_text(json.dumps({"dataset": "toy", "source": {"op": "files", "path": str(folder / "pics")}}))

        def act() -> None:
            _, opened = application.load(str(file), str(folder / "root"), None)
            with opened.lease("run"):
                pass

        return judged(outside, act)

    return strike


NO = partial(guards_off, *FOLLOW)
WRITES = [
    *(
        Attack(
            "links",
            f"a commit to {path}, {place or 'the dataset'} is a link",
            "not followed",
            committed(place, path),
            f,
        )
        for f in [lambda: guards_off(*FOLLOW)]
        for place, path in [
            ("", "columns/new/f"),
            ("columns", "columns/new/f"),
            ("columns/new", "columns/new/f"),
            ("columns/new/f", "columns/new/f"),
            ("columns/new/f/_delta_log", "columns/new/f"),
            ("packs", "packs/p/f"),
            ("gone", "gone"),
            ("copies", "gone"),
        ]
    ),
    *(
        Attack(
            "links",
            f"{'create' if new else 'write'} in {kind}/, a link",
            "not followed",
            document_written(kind, new),
            f,
        )
        for f in [lambda: guards_off(*FOLLOW)]
        for kind, new in [
            ("receipts", False),
            ("releases", True),
            ("lease", True),
            ("broken", False),
            ("copies", False),
        ]
    ),
    *(
        Attack("links", f"a verb where <root>/{place} is a link", "not followed", linked_root(place), NO)
        for place in ("datasets", "datasets/toy")
    ),
]


ATTACKS = [*DELETES, *WRITES]
