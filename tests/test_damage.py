"""Every kind of damage on disk: what each verb says, and that the data are equal after its advice was followed.

``SHOW_DAMAGE=1`` prints a line for each damage and verb.

No verb shows a traceback or the text of a Rust library, each error ends in a next command, `verify --all` names what
is damaged, and the commands it prints are run as printed until it finds nothing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine import contents, write_pictures
from nextloom.cli import main
from nextloom.op import CHILD_BITS
from nextloom.pipelines.recipe import Recipe
from nextloom.store.dataset import Dataset

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = {
    "stats": {"op": "image_stats"},
    "phash": {"op": "perceptual_hash"},
    "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_distance": 0},
    "keep": {"op": "select", "where": "stats.brightness >= 0.1 and not duplicate.hit"},
    "frames": {"op": "gif_frames"},
    "mean": {"op": "toy_ops:Mean", "rows": "frames"},
}
VERBS = {
    "plan": ["plan"],
    "run": ["run"],
    "status": ["status"],
    "verify": ["verify"],
    "report": ["report"],
    "release": ["release"],
    "pack": ["pack"],
    "compact": ["compact"],
    "vacuum": ["vacuum", "--older-than", "0"],
}
FOREIGN = ("Traceback", "<unknown>", "os error", "Kernel", "DeltaError", "ArrowInvalid", "\x1b", "↳", "RECIPE")


@dataclass
class World:
    """One dataset on disk."""

    root: Path
    recipe: Path

    def path(self, name: str) -> Path:
        return self.root / "datasets/toy" / name

    def table(self, step: str) -> Path:
        if step in ("rows", "gone"):
            return self.path(step)
        (folder,) = self.path(f"columns/{step}").iterdir()
        return folder

    def files(self, step: str) -> list[Path]:
        return sorted(self.table(step).glob("part-*.parquet"))

    def entry(self, step: str, number: int) -> Path:
        """A log entry; -1 is the newest."""
        return sorted((self.table(step) / "_delta_log").glob("*.json"))[number]

    def contents(self) -> dict:
        loaded = Recipe.load(str(self.recipe), root=str(self.root))
        dataset = Dataset(str(self.root / "datasets/toy"))
        rows, gone = dataset.all_rows(["key", "version"]).to_pylist(), dataset.gone_ids().tolist()
        values = contents(loaded, dataset)
        bits = {"frames": CHILD_BITS, "mean": CHILD_BITS}
        live = {s: [row for row in column if row["id"] >> bits.get(s, 0) not in gone] for s, column in values.items()}
        return {"all rows": rows, "tombstones": gone, **live}


def flip(file: Path) -> None:
    """One bit of the last byte of the first column's last page."""
    column = pq.ParquetFile(file).metadata.row_group(0).column(1)
    raw = bytearray(file.read_bytes())
    raw[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 0x10
    file.write_bytes(raw)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def swap(a: Path, b: Path) -> None:
    one, other = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(one)


def without_line(file: Path, word: str) -> None:
    lines = file.read_text().splitlines()
    assert any(f'"{word}"' in line for line in lines)
    file.write_text("\n".join(line for line in lines if not line.startswith(f'{{"{word}"')) + "\n")


def another_number(file: Path) -> None:
    text = file.read_text()
    assert '\\"minValues\\": {\\"id\\": ' in text
    file.write_text(re.sub(r'(minValues\\": \{\\"id\\": )', r"\g<1>7", text))


Plant = Callable[[World], None]
DAMAGES: dict[str, Plant] = {
    "a column's file lost": lambda w: w.files("stats")[0].unlink(),
    "a column's file flipped": lambda w: flip(w.files("stats")[0]),
    "a column's file cut": lambda w: cut(w.files("stats")[0]),
    "a column's file empty": lambda w: empty(w.files("stats")[0]),
    "a column's file all zeros": lambda w: zeros(w.files("phash")[0]),
    "two files of a column exchanged": lambda w: swap(*w.files("stats")[:2]),
    "all files of a column lost": lambda w: [file.unlink() for file in w.files("stats")],
    "a decision's file flipped": lambda w: [flip(file) for file in w.files("keep")],
    "a reduce's file lost": lambda w: [file.unlink() for file in w.files("duplicate")],
    "an expand's file flipped": lambda w: flip(w.files("frames")[0]),
    "an expand's file lost": lambda w: w.files("frames")[0].unlink(),
    "a file of children's values lost": lambda w: w.files("mean")[0].unlink(),
    "a log entry lost in the middle": lambda w: w.entry("stats", 1).unlink(),
    "the first log entry lost": lambda w: w.entry("stats", 0).unlink(),
    "the newest log entry lost": lambda w: w.entry("stats", -1).unlink(),
    "a log entry cut": lambda w: cut(w.entry("stats", -1)),
    "a log entry empty": lambda w: empty(w.entry("stats", 1)),
    "a log entry all zeros": lambda w: zeros(w.entry("stats", 1)),
    "a log entry without a file": lambda w: without_line(w.entry("stats", 1), "add"),
    "a log entry of a decision without its removal": lambda w: without_line(w.entry("keep", -1), "remove"),
    "a log entry with other numbers": lambda w: another_number(w.entry("stats", 1)),
    "a log lost": lambda w: shutil.rmtree(w.table("phash") / "_delta_log"),
    "the log of an expand cut": lambda w: cut(w.entry("frames", -1)),
    "log and file of a column damaged": lambda w: (cut(w.entry("stats", 1)), flip(w.files("stats")[0])),
    "a file of rows lost": lambda w: w.files("rows")[0].unlink(),
    "a file of rows flipped": lambda w: flip(w.files("rows")[0]),
    "all files of rows lost": lambda w: [file.unlink() for file in w.files("rows")],
    "the log of rows cut": lambda w: cut(w.entry("rows", -1)),
    "the newest log entry of rows lost": lambda w: w.entry("rows", -1).unlink(),
    "a log entry of rows without a file": lambda w: without_line(w.entry("rows", 1), "add"),
    "the log of rows lost": lambda w: shutil.rmtree(w.table("rows") / "_delta_log"),
    "rows lost whole": lambda w: shutil.rmtree(w.table("rows")),
    "tombstones lost whole": lambda w: shutil.rmtree(w.table("gone")),
    "a file of tombstones flipped": lambda w: cut(w.files("gone")[0]),
    "the list of copies empty": lambda w: empty(w.path("copies/rows.json")),
    "a copy of rows lost": lambda w: next(w.path("copies/rows").iterdir()).unlink(),
    "all copies lost": lambda w: shutil.rmtree(w.path("copies")),
    "a receipt empty": lambda w: empty(w.path("receipts/stats.json")),
    "a receipt cut": lambda w: cut(w.path("receipts/duplicate.json")),
    "a receipt of another kind": lambda w: w.path("receipts/keep.json").write_text('{"fingerprint": 5}'),
    "the receipt of the source empty": lambda w: empty(w.path("receipts/source.json")),
    "a receipt that is a list": lambda w: w.path("receipts/source.json").write_text("[1, 2]"),
    "the lease empty": lambda w: empty(sorted(w.path("lease").iterdir())[-1]),
    "the lease of another kind": lambda w: sorted(w.path("lease").iterdir())[-1].write_text('{"pid": "x"}'),
    "a manifest empty": lambda w: empty(w.path("releases/r-0001.json")),
    "a manifest cut": lambda w: cut(w.path("releases/r-0001.json")),
    "a manifest of another release": lambda w: w.path("releases/r-0001.json").write_text('{"name": "x-0001"}'),
    "manifest and copy empty": lambda w: [empty(w.path(f"{at}releases/r-0001.json")) for at in ("", "copies/")],
}
ALWAYS = {
    "a column's file flipped",
    "two files of a column exchanged",
    "a reduce's file lost",
    "an expand's file flipped",
    "a log entry lost in the middle",
    "the newest log entry lost",
    "a file of rows lost",
    "rows lost whole",
    "a receipt empty",
    "the receipt of the source empty",
    "the lease empty",
    "a manifest empty",
}
"""One of each kind; the others are run by `make proofs`."""
LOSES = {"manifest and copy empty"}
"""Damages after which a release comes back under another number."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> World:
    """Two runs, so that tables have several commits and files; one image vanished in between."""
    base = tmp_path_factory.mktemp("made")
    images = base / "pics"
    write_pictures(images, 7)
    frames = [Image.new("RGB", (24, 24), (40 * n, 90, 30)) for n in range(3)]
    frames[0].save(images / "q.gif", save_all=True, append_images=frames[1:])
    data = {
        "dataset": "toy",
        "source": {"op": "files", "path": str(images)},
        "execution": {"chunk_rows": 4},
        "steps": STEPS,
        "releases": {"r": {"rows": "keep", "columns": ["stats"]}},
    }
    world = World(base / "data", base / "toy.yaml")
    world.recipe.write_text(json.dumps(data))
    said: list = []
    assert verb(world, said, "run") == 0, said
    write_pictures(images, 3, start=7)
    (images / "p005.png").unlink()
    for name in ("run", "release", "status"):
        assert verb(world, said, name) == 0, said
    return world


@pytest.fixture
def world(made, tmp_path) -> World:
    shutil.copytree(made.root, tmp_path / "data")
    return World(tmp_path / "data", made.recipe)


def verb(world: World, said: list, *arguments: str, capsys=None) -> int:
    """Run a verb in this process; its output is appended to `said`."""
    name, *options = arguments
    recipe = [str(world.recipe), "--root", str(world.root)]
    return typed(["nextloom", name, *recipe, *options], said, capsys)


def typed(command: list[str], said: list, capsys=None) -> int:
    argv, path = sys.argv, [*sys.path]
    sys.argv = command
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv, sys.path[:] = argv, path
    out, err = capsys.readouterr() if capsys else ("", "")
    said.append(out + err)
    return int(end.value.code or 0)


def advised(world: World, text: str) -> list[list[str]]:
    """The commands after `next:` in what a verb printed, as a user would type them."""
    told = re.findall(rf"next: .*?(nextloom \w+ {re.escape(str(world.recipe))}.*)", text)
    commands = {re.split(r" (?:writes|takes|restores|makes|publishes) |[;(]", line)[0].rstrip(" .,") for line in told}
    return [shlex.split(command) for command in sorted(commands)]


@pytest.mark.parametrize("damage", [d if d in ALWAYS else pytest.param(d, marks=pytest.mark.proof) for d in DAMAGES])
def test_damage_is_told_by_every_verb_and_mended_by_its_advice(made, world, damage, capsys, record_property):
    before = made.contents()
    releases = world.path("releases/r-0001.json").read_text()
    DAMAGES[damage](world)
    kept = world.root.parent / "damaged"
    shutil.copytree(world.root, kept)
    lines = []
    for name, arguments in {**VERBS, "verify --all": ["verify", "--all"]}.items():
        shutil.rmtree(world.root)
        shutil.copytree(kept, world.root)  # what one verb mends the next one must not find mended
        said: list = []
        code = verb(world, said, *arguments, capsys=capsys)
        text = said[0]
        line = next((line for line in text.splitlines() if line.startswith("error: ")), text.strip().partition("\n")[0])
        lines.append(f"{damage} | {name} | {code} | {line}")
        assert code in (0, 1), text
        assert not [word for word in FOREIGN if word in text], text
        if code:
            assert "error: " in text and "\n  next: " in text, text
    record_property("damage", "\n".join(lines))
    if os.environ.get("SHOW_DAMAGE"):
        with capsys.disabled():
            print("", *lines, sep="\n")
    assert code == 1 and advised(world, text), text

    for _ in range(4):
        for command in advised(world, text):
            said = []
            typed(command, said, capsys)
            assert "Traceback" not in said[0], said
        for name in ("run", "release"):
            said = []
            verb(world, said, name, capsys=capsys)
            assert "Traceback" not in said[0], said
        said = []
        code = verb(world, said, "verify", "--all", capsys=capsys)
        text = said[0]
        if not code:
            break
    assert code == 0, text
    assert world.contents() == before
    if damage not in LOSES:
        assert world.path("releases/r-0001.json").read_text() == releases
    assert verb(world, said, "plan", "--json", capsys=capsys) == 0
    assert {plan["state"] for plan in json.loads(said[-1])} == {"fresh"}
