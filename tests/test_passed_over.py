"""What a listing passes over is counted and said, by plan and run, and no empty source counts as fresh in silence."""

from __future__ import annotations

import json
import os
import socket
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import zoo
from engine import build, plans
from nextloom import cli
from nextloom.curation.sources.files import Files
from nextloom.curation.sources.suffixes import SUFFIXES
from nextloom.curation.sources.table import Table
from nextloom.curation.sources.webdataset import WebDataset
from nextloom.store.dataset import Dataset
from nextloom.store.listing import Changes
from nextloom.store.notices import Tally, lines, notices_of, with_notices
from test_webdataset import write_tar

STEPS = {"sum": {"op": "toy_checksum:Checksum"}}
PNG = zoo.encoded(zoo.halves(), "PNG")
NOT_READ = "captions were looked for and not read"


def write(path, data: bytes | str = b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def notices(source) -> list[str]:
    told = [notices_of(source.items(unit, {})) for unit in source.units()]
    return lines([source.passed_over(), *told])


def test_files_that_are_no_rows(tmp_path):
    for name in ("a.jpg", "b.PSD", "c.psd", "d.mp4", "README", ".hidden.jpg", ".git/x.jpg", "a.txt", "alone.txt"):
        write(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.jpg")
    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "s.jpg"))
    assert set(notices(Files(path=str(tmp_path)))) == {
        "2 hidden names are passed over",
        "2 pipes, sockets and devices are no rows",
        "4 files are no rows (suffixes: any looks into them): 2 .psd, 1 .mp4, 1 without suffix",
        "1 texts belong to no image: 1 .txt",
    }
    assert "1 images match no pattern of glob: 1 .jpg" in notices(Files(path=str(tmp_path), glob="x/*"))
    assert not notices(Files(path=str(tmp_path / ".git"))), "and nothing where nothing is passed over"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_an_image_in_any_case(tmp_path, suffix):
    write(tmp_path / f"a{suffix.upper()}", PNG)
    assert [item.key for item in Files(path=str(tmp_path)).listing()] == [f"a{suffix.upper()}"]


FORMATS = {"JPEG": "RGB", "PNG": "RGB", "GIF": "P", "WEBP": "RGB", "BMP": "RGB", "TIFF": "RGB", "AVIF": "RGB"}
FORMATS |= {"JPEG2000": "RGB", "PPM": "RGB", "MPO": "RGB"}


def test_any_sniffs_images_of_all_formats_and_nothing_else(tmp_path):
    for kind, mode in FORMATS.items():
        write(tmp_path / kind, zoo.encoded(zoo.halves().convert(mode), kind))
    write(tmp_path / "pbm", zoo.encoded(zoo.halves().convert("1"), "PPM"))
    write(tmp_path / "pgm.bin", zoo.encoded(zoo.halves().convert("L"), "PPM"))
    write(tmp_path / "heic", (zoo.DATA / "halves.heic").read_bytes())
    texts = {"PS": b"P.S. I love you", "P1": b"P1x", "BM": b"BMW is a car and no bitmap", "html": b"<html>", "e": b""}
    others = {**texts, "psd": b"8BPS\0\1", "pdf": b"%PDF-1.7", "gz": b"\x1f\x8b\x08", "wav": b"RIFF\0\0\0\0WAVEfmt "}
    for name, data in others.items():
        write(tmp_path / "others" / name, data)
    source = Files(path=str(tmp_path), suffixes="any")
    assert {item.key for item in source.listing()} == {*FORMATS, "pbm", "pgm.bin", "heic"}
    assert "9 files are no rows (suffixes: any looks into them): 9 without suffix" in notices(source)


def test_captions_that_are_not_read(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        write(tmp_path / name)
    write(tmp_path / "a.jpg.txt", "a cat")
    write(tmp_path / "b.json", '{"prompt": "a dog"}')
    write(tmp_path / "c.caption", "a cow")
    write(tmp_path / "metadata.jsonl", '{"file_name": "d.jpg", "text": "a fish"}')
    source = Files(path=str(tmp_path))
    (told,) = [line for line in notices(source) if NOT_READ in line]
    assert told.startswith(f"4 {NOT_READ}: ")
    for part in (
        "1 named NAME.jpg.txt, not NAME.txt",
        "1 in the field 'prompt' of a .json (caption: prompt)",
        "1 in a .caption",
        "1 in a .jsonl ({op: table} reads a table)",
    ):
        assert part in told
    named = {item.key: item.caption for item in Files(path=str(tmp_path), caption="prompt").listing()}
    assert named["b.jpg"] == "a dog", "and the advice works"


def test_captions_of_columns_and_members_that_are_not_read(tmp_path):
    pq.write_table(pa.table({"url": ["http://x/1.jpg"] * 3, "alt": ["a"] * 3}), tmp_path / "t.parquet")
    assert notices(Table(path=str(tmp_path))) == [f"3 {NOT_READ}: 3 in the column 'alt' (caption: alt)"]
    assert not notices(Table(path=str(tmp_path), caption="alt"))
    (tmp_path / "l.csv").write_text("url,TEXT\nhttp://x/1.jpg,big letters\n")
    source = Table(path=str(tmp_path / "l.csv"))
    assert not notices(source) and source.items("l.csv", {})["caption"].to_pylist() == ["big letters"]
    members = [("a.jpg", b"x"), ("a.json", b'{"description": "y"}'), ("a.npy", b"1"), ("b.JPG", b"x"), ("README", b"")]
    write_tar(tmp_path / "w" / "s.tar", members)
    write(tmp_path / "w" / "notes.md")
    assert set(notices(WebDataset(path=str(tmp_path / "w")))) == {
        f"1 {NOT_READ}: 1 in the field 'description' of a .json (caption: description)",
        "1 members are not read: 1 .npy",
        "1 members are of no sample: 1 without suffix",
        "1 files are no shards: 1 .md",
    }


def test_a_plan_says_it_also_when_no_shard_is_opened_again(tmp_path):
    for shard in "ab":
        write_tar(tmp_path / "in" / f"{shard}.tar", [(f"{shard}.jpg", b"x"), (f"{shard}.npy", b"1")])
    dataset, source = Dataset(str(tmp_path / "d")), WebDataset(path=str(tmp_path / "in"))
    for _ in range(2):
        changes = Changes(dataset, source)
        assert changes.notices == ["2 members are not read: 2 .npy"]
        with dataset.lease("test"):
            changes.apply() if changes else changes.note()
    os.remove(tmp_path / "in" / "b.tar")
    assert Changes(dataset, source).notices == ["1 members are not read: 1 .npy"]


@pytest.mark.parametrize(
    ("files", "source", "reason"),
    [
        ({"a.psd": b"x"}, {}, "1 files are no rows (suffixes: any looks into them): 1 .psd"),
        ({"a.jpg": b"x"}, {"glob": "b*"}, "1 images match no pattern of glob: 1 .jpg"),
        ({}, {}, "the source lists no object"),
        ({"sub/a.jpg": b"x"}, {"recursive": False}, "1 folders are not looked into (recursive: false)"),
        ({"a.csv": "url,text\n"}, {"op": "table"}, "1 shards, none with a row"),
        ({"a.jsonl": ""}, {"op": "table"}, "1 shards, none with a row"),
    ],
)
def test_no_row_is_no_silence(tmp_path, files, source, reason):
    (tmp_path / "pics").mkdir()
    for name, data in files.items():
        write(tmp_path / "pics" / name, data)
    recipe, dataset = build(tmp_path, STEPS, source={"op": "files", "path": "pics"} | source)
    for _ in range(2):
        plan = plans(recipe, dataset)["source"]
        assert plan.cause == f"NO ROWS: {reason}"
        changes = Changes(dataset, recipe.source)
        with dataset.lease("test"):
            changes.note()


@pytest.mark.usefixtures("ray_local")
def test_run_warns_where_there_is_no_row(tmp_path, capsys, caplog, monkeypatch):
    write(tmp_path / "pics" / "a.psd")
    (tmp_path / "r.yaml").write_text("dataset: toy\nsource: {op: files, path: pics}\nsteps: {s: {op: image_stats}}\n")
    arguments = [str(tmp_path / "r.yaml"), "--root", str(tmp_path)]
    for verb in ("run", "plan"):
        monkeypatch.setattr(sys, "argv", ["nextloom", verb, *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert not done.value.code
    assert "there are no rows: 1 files are no rows" in caplog.text
    out = capsys.readouterr().out
    assert "NO ROWS: 1 files are no rows" in out and "note         source: 1 files are no rows" in out


def test_units_far_away_are_looked_into_at_once(tmp_path):
    class Far(WebDataset):
        name = "webdataset"

        def look(self, shard):
            time.sleep(0.05)
            return super().look(shard)

    for number in range(60):
        write_tar(tmp_path / "in" / f"{number}.tar", [(f"{number}.jpg", b"x")])
    start = time.perf_counter()
    changes = Changes(Dataset(str(tmp_path / "d")), Far(path=str(tmp_path / "in")))
    assert time.perf_counter() - start < 60 * 0.05 * 0.6
    assert changes.new["key"].to_pylist() == sorted((str(n) for n in range(60)), key=lambda n: f"{n}.tar")


def test_names_of_strangers_stay_short_and_few(tmp_path):
    tally = Tally()
    for number in range(1000):
        tally["files are no rows"][f".{number:03d}" + "x" * 300] += 1
    told = notices_of(with_notices(pa.table({"a": [1]}), tally))
    assert len(json.dumps(told)) < 4000 and sum(told["files are no rows"].values()) == 1000
    (line,) = lines([told, {"files are no rows": {".md": 5}}])
    assert line.startswith("1,005 files are no rows: 980 of other kinds, 5 .md, ") and line.endswith(", ...")
