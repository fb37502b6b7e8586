"""Attacks on what lies on disk, documents and names: reading outside of the root, hanging, filling memory, crashing.

One document of a root that somebody sent must not stop a verb with anything but a message that names it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine import build, write_pictures
from hostile.attack import Attack, Outcome, patched
from hostile.store_scene import FOLLOW, SECRET, following, guards_off, judged, scene
from nextloom import documents, inside
from nextloom.errors import UserError
from nextloom.pipelines import recipe as recipes
from nextloom.pipelines.status import dataset_status
from nextloom.store import dataset as datasets
from nextloom.store import lease as leases
from nextloom.store import records, release, table, vacuum
from nextloom.store.dataset import Dataset
from nextloom.store.files import read_files, write_file
from nextloom.store.release import open_release

ANY = re.compile(r".*", re.DOTALL)


def split(path: str) -> list[str]:
    return path.split("/")


def traversing(handle: int, part: str, path: str, create: bool) -> int:
    return following(handle, part, os.path.normpath(path), create)


TRAVERSE = (
    (inside, "_enter", traversing),
    (inside, "parts_of", split),
    (documents, "parts_of", split),
    (datasets, "parts_of", split),
    (records, "parts_of", split),
    (recipes, "NAME", ANY),
)


def document_read(plant: Callable[[Path, Path], object]):
    def strike(folder: Path) -> Outcome:
        dataset, outside = scene(folder)
        Path(dataset.uri, "receipts").mkdir()
        plant(Path(dataset.uri, "receipts/stats.json"), outside)
        told: list = []

        def read() -> None:
            try:
                told.append(dataset.documents.read("receipts/stats.json"))
            except UserError as error:
                told.append(f"refused: {error.what}")

        tracemalloc.start()
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(0.5)
        hangs = reader.is_alive()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if hangs:
            with open(Path(dataset.uri, "receipts/stats.json"), "wb") as fifo:
                fifo.write(b"1")
            reader.join()
        leaked = told[-1] == json.loads(SECRET)
        what = "hangs" if hangs else "the secret is read" if leaked else str(told[-1])
        return Outcome(hangs or leaked or peak > 8e6, f"{what[:80]} ({peak / 1e6:.0f} MB)")

    return strike


def sparse(file: Path, _: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(documents.LIMIT + 2**24)


def plain_read(handle: int, name: str, path: str, limit: int) -> bytes:
    """`inside.read_regular` as anybody would write it."""
    return Path(path).read_bytes()


READS = [
    Attack("documents", f"a receipt that is {name}", told, document_read(plant), partial(guards_off, *guards))
    for name, told, plant, guards in [
        ("a link to a secret", "is a link", lambda f, out: f.symlink_to(out / "secret.json"), FOLLOW),
        ("a FIFO", "no regular file", lambda f, out: os.mkfifo(f), ((documents, "read_regular", plain_read),)),
        ("of 272 MB", "at most", sparse, ((documents, "read_regular", plain_read),)),
    ]
]


def manifest_of(change: Callable[[dict, str], object]):
    """A manifest that names a table or file outside; whether rows of another project are read through it."""

    def strike(folder: Path) -> Outcome:
        dataset, outside = scene(folder)
        data = pa.table({"id": np.arange(2), "key": ["stolen", "stolen"]})
        file = write_file(str(outside / "rows"), data)
        path = Path(dataset.uri, "releases/tokens-0001.json")
        document = json.loads(path.read_text())
        change(document, file.path)
        document["rows"]["files"] = document["rows"]["files"][:1]
        path.write_text(json.dumps(document))
        try:
            keys = open_release(dataset.uri, "tokens").rows(np.arange(2))["key"].to_pylist()
        except UserError as error:
            return Outcome(False, f"refused: {error.what}")
        return Outcome(keys == ["stolen", "stolen"], f"read {keys}")

    return strike


def to_table(place: str):
    def change(document: dict, name: str) -> None:
        document["rows"]["table"] = place
        document["rows"]["files"][0]["path"] = name

    return change


def to_file(place: str):
    def change(document: dict, name: str) -> None:
        document["rows"]["files"][0]["path"] = place + name

    return change


def foreign_log(spelled: str):
    """A Delta log whose add action names a file outside."""

    def strike(folder: Path) -> Outcome:
        dataset, outside = scene(folder)
        file = write_file(str(outside / "rows"), pa.table({"id": np.arange(2), "key": ["stolen", "stolen"]}))
        (entry,) = Path(dataset.uri, "columns/text/t/_delta_log").glob("*1.json")
        there = re.search(r'"path":"([^"]+)"', entry.read_text())
        assert there
        entry.write_text(entry.read_text().replace(there[1], spelled + file.path))
        try:
            found = dataset.column("text", "t")
            keys = read_files(found.uri, found.files(), ["id", "key"])["key"].to_pylist()
        except UserError as error:
            return Outcome(False, f"refused: {error.what}")
        return Outcome(keys == ["stolen", "stolen"], f"read {keys}")

    return strike


def unchecked(document: dict, *_: object) -> dict:
    return document


READS += [
    *(
        Attack("documents", f"a manifest whose table is {place}", "refused", manifest_of(to_table(place)), off)
        for off in [lambda: patched(release, "check_manifest", unchecked)]
        for place in ("../../../outside/rows", "rows/../../../../outside/rows", "./../../../outside//rows")
    ),
    *(
        Attack("documents", f"a manifest whose file is {place}...", "refused", manifest_of(to_file(place)), off)
        for off in [lambda: patched(release, "check_manifest", unchecked)]
        for place in ("../../../../outside/rows/", "./../../../../outside/rows/")
    ),
    *(
        Attack("documents", f"a log whose file is {place}...", "refused", foreign_log(place), off)
        for off in [lambda: patched(table, "FILE_NAME", ANY)]
        for place in ("../../../../../../outside/rows/", "./../../../../../../outside/rows/")
    ),
]


# ---- names


def named_release(name: str):
    def strike(folder: Path) -> Outcome:
        dataset, outside = scene(folder)
        document = json.loads(Path(dataset.uri, "releases/tokens-0001.json").read_text())
        (outside / "evil-0001.json").write_text(json.dumps({**document, "name": name}))
        try:
            found = release.read_release(dataset.uri, name)
        except UserError as error:
            return Outcome(False, f"refused: {error.what}")
        return Outcome(found is not None, "a manifest outside is read" if found else "none")

    return strike


def named_in_recipe(section: str, name: str):
    """A recipe whose dataset or step leads out of the root; whether its receipt is written there."""

    def strike(folder: Path) -> Outcome:
        _, outside = scene(folder)
        (folder / "root/pics").mkdir()
        data: dict = {"dataset": "toy", "source": {"op": "files", "path": "pics"}}
        data |= {"dataset": name} if section == "dataset" else {"steps": {name: {"op": "image_stats"}}}

        def act() -> None:
            loaded = recipes.Recipe.build(data, root=str(folder / "root"))
            dataset = Dataset(os.path.normpath(folder / "root/datasets" / loaded.dataset))
            with dataset.lease("run"):
                dataset.write_receipt(next(iter(loaded.steps), "source"), {})

        return judged(outside, act)

    return strike


def named_fingerprint(value: str):
    """A receipt whose fingerprint leads to a table outside; whether its files are taken for the dataset's."""

    def strike(folder: Path) -> Outcome:
        dataset, outside = scene(folder)
        shutil.copytree(Path(dataset.uri, "columns/text/t"), outside / "table")
        Path(dataset.uri, "receipts").mkdir()
        Path(dataset.uri, "receipts/text.json").write_text(json.dumps({"fingerprint": value}))
        try:
            found = [path for path in vacuum.live_tables(dataset) if dataset.table(path).files() and "outside" in path]
        except UserError as error:
            return Outcome(False, f"refused: {error.what}")
        return Outcome(bool(found), f"reads {found}")

    return strike


TRAVERSING = partial(guards_off, *TRAVERSE)
NAMES = [
    *(
        Attack("names", f"verify --release {name}", "refused", named_release(name), TRAVERSING)
        for name in ("../../../../outside/evil-0001", "../releases/../../../../outside/evil-0001")
    ),
    *(
        Attack(
            "names",
            f"a recipe's {what} is {name}",
            "refused",
            named_in_recipe(what, name),
            lambda: guards_off(*TRAVERSE),
        )
        for what, name in [
            ("dataset", "../../outside"),
            ("dataset", "x/../../../outside"),
            ("dataset", "../datasets/../../outside/x"),
            ("step", "../../../../outside/mine"),
            ("step", "a/../../../../../outside/x/mine"),
        ]
    ),
    *(
        Attack("names", f"a receipt's fingerprint is {value}", "refused", named_fingerprint(value), off)
        for off in [lambda: guards_off(*TRAVERSE, (datasets, "check_receipt", lambda step, document, where: document))]
        for value in ("../../../../../outside/table", "t/../../../../../../outside/table")
    ),
]


# ---- absurd content


def crash(name: str, text: str):
    """Whether one document stops `status` or the next writer with anything but a message."""

    def strike(folder: Path) -> Outcome:
        write_pictures(folder / "pics", 1)
        recipe, dataset = build(folder, {"stats": {"op": "image_stats"}})
        target = Path(dataset.uri, name)
        target.parent.mkdir(parents=True)
        target.write_text(text)
        try:
            told = "; ".join(dataset_status(recipe, dataset)["problems"])
            with dataset.lease("run"):
                told = told or "taken"
        except UserError as error:
            told = f"refused: {error.what}"
        except Exception as error:
            return Outcome(True, f"crashes: {type(error).__name__}: {error}")
        return Outcome(False, told)

    return strike


LEASE = {"epoch": 1, "host": "h", "pid": 1, "started": "1", "purpose": "p", "since": 1, "beat": 1, "released": False}
HERE = {**LEASE, "host": leases._host(), "pid": os.getpid(), "started": leases._process_start(os.getpid())}
RECEIPT = {"op": "image_stats", "version": "1", "config": {}, "fingerprint": "f", "inputs": "", "result": ""}
ABSURD = [
    *(
        Attack("documents", f"a lease with {name}", "who writes is not known", crash("lease/000000001.json", text), off)
        for off in [lambda: guards_off((leases, "FIELDS", {}), (leases, "LARGEST", float("inf")))]
        for name, text in [
            ("no field", "{}"),
            ("a number as host", json.dumps({**LEASE, "host": 5, "beat": 1e308, "since": []})),
            ("a list as heartbeat", json.dumps({**LEASE, "beat": []})),
            ("a heartbeat of 400 digits", json.dumps(LEASE).replace('"beat": 1', f'"beat": 1{"0" * 400}')),
            ("an object as process", json.dumps({**HERE, "pid": {"x": 1}, "since": "s"})),
        ]
    ),
    *(
        Attack("documents", f"a receipt that is {name}", "is no receipt", crash("receipts/stats.json", text), off)
        for off in [lambda: patched(datasets, "check_receipt", lambda step, document, where: document)]
        for name, text in [
            ("a list", "[1]"),
            ("a number", "7"),
            ("without fingerprint", json.dumps({"counts": {}})),
            ("a text", '"x"'),
        ]
    ),
    Attack(
        "documents",
        "a receipt of 100,000 brackets",
        "is not valid JSON",
        crash("receipts/stats.json", "[" * 100_000),
        lambda: patched(documents, "BROKEN", (ZeroDivisionError,)),
    ),
]

ATTACKS = [*READS, *NAMES, *ABSURD]
