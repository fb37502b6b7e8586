"""Exports: what a library or our own sources read back is what was kept; a kill loses and doubles nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import datasets
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from engine import write_pictures
from exporting import content_of, exported, listing, manifest, published, recipe_of, tar_names
from nextloom.curation.sources.huggingface import HuggingFace
from nextloom.curation.sources.table import Table
from nextloom.curation.sources.webdataset import WebDataset
from nextloom.errors import UserError
from nextloom.pipelines.export import Chosen, Options, export
from nextloom.pipelines.export.keys import cell, read_cell
from nextloom.pipelines.export.names import Names
from nextloom.pipelines.export.place import Place
from nextloom.store.release import open_release

CAPTIONS = {"a/cat.jpg": 'a cat,\nsaid "so"', "a/dog.png": "Ein Hund, schläft", "b.c/cat.jpg": "=1+1", "d.png": None}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven images of two formats in folders, some with captions and sidecars: (root, release, key -> bytes)."""
    root = tmp_path_factory.mktemp("photos")
    raws = {}
    for number, (key, caption) in enumerate(CAPTIONS.items()):
        out = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(out, "JPEG" if key.endswith("jpg") else "PNG")
        raws[key] = out.getvalue()
        path = root / "pics" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raws[key])
        if caption:
            path.with_suffix(".txt").write_text(caption)
    (root / "pics/a/dog.json").write_text('{"licence": "CC0", "n": [1, 2.50]}')
    write_pictures(root / "pics" / "more", 6)
    (root / "pics/more/p000.jpg").write_bytes(raws["a/cat.jpg"])  # its stem is that of p000.png
    raws |= {f"more/{p.name}": p.read_bytes() for p in sorted((root / "pics/more").iterdir())}
    return root, published(root, {"op": "files", "path": "pics"}), raws


def original(release) -> dict[str, tuple]:
    return {row["key"]: (row["caption"], row["sidecar"]) for row in release.rows().to_pylist()}


def test_webdataset_is_read_back_by_the_library(photos, tmp_path):
    _, release, raws = photos
    folder = exported(release, tmp_path / "out", "webdataset", ("source.size",), shard_rows=4)
    assert len(list(folder.glob("*.tar"))) == 3
    urls = sorted(map(str, folder.glob("*.tar")))
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        told = json.loads(sample["json"])
        raw = sample.get("jpg") or sample["png"]
        assert told["columns"] == {"source": {"size": len(raw)}}
        found[told["key"]] = (raw, sample["txt"].decode() if "txt" in sample else None, told.get("sidecar"))
    assert found == {
        key: (raws[key], caption, json.loads(sidecar) if sidecar else None)
        for key, (caption, sidecar) in original(release).items()
    }
    names = tar_names(folder)
    assert len(set(names)) == len(names)
    assert {"a/cat.jpg", "a/cat.txt", "a/cat.json", "b%2Ec/cat.jpg"} <= set(names), "keys stay where they can"
    assert {"more/p000%2Ejpg.jpg", "more/p000%2Epng.png"} <= set(names), "two keys of one stem"


def test_webdataset_is_read_back_by_its_source(photos, tmp_path):
    _, release, raws = photos
    folder = exported(release, tmp_path / "out", "webdataset", shard_rows=4)
    rows, content = listing(WebDataset(path=str(folder), key="json")), content_of(folder)
    found = {row["key"]: (content.fetch(row), row["caption"]) for row in rows}
    assert [row["key"] for row in rows] == release.rows()["key"].to_pylist()
    assert found == {key: (raws[key], caption) for key, (caption, _) in original(release).items()}


def test_parquet_is_read_back_by_polars_and_by_its_source(photos, tmp_path):
    _, release, raws = photos
    folder = exported(release, tmp_path / "out", "parquet", ("source.size",), shard_rows=4)
    expected = {key: (raws[key], *told, len(raws[key])) for key, told in original(release).items()}
    frame = polars.read_parquet(f"{folder}/*.parquet")
    assert {row[0]: row[1:] for row in frame.iter_rows()} == expected
    assert frame.columns == ["key", "image", "caption", "sidecar", "source.size"]
    rows, content = listing(Table(path=str(folder), key="key")), content_of(folder)
    assert {row["key"]: (content.fetch(row), row["caption"]) for row in rows} == {k: v[:2] for k, v in expected.items()}


def test_hf_is_read_back_by_datasets_and_by_its_source(photos, tmp_path):
    _, release, raws = photos
    folder = exported(release, tmp_path / "out", "hf", ("source.size",), shard_rows=4)
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].size == (16, 16)
    plain = loaded.cast_column("image", datasets.Image(decode=False))
    expected = {key: (raws[key], caption) for key, (caption, _) in original(release).items()}
    assert {row["key"]: (row["image"]["bytes"], row["caption"]) for row in plain} == expected
    assert plain["source.size"] == [len(raws[key]) for key in plain["key"]]
    rows, content = listing(HuggingFace(path=str(folder), key="key")), content_of(folder)
    assert {row["key"]: (content.fetch(row), row["caption"]) for row in rows} == expected


def test_keys_are_read_back_and_no_image_is_needed(tmp_path):
    rows = [
        {"url": f"https://example.org/{n}.jpg", "id": key, "text": key}
        for n, key in enumerate(["=1", "b\n", "'c", "ü"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "links.parquet")
    release = published(tmp_path, {"op": "table", "path": str(tmp_path / "links.parquet"), "key": "id"})
    folder = exported(release, tmp_path / "out", "keys", ("source.uri",), shard_rows=3)
    read = [row for path in sorted(folder.glob("*.csv")) for row in csv.DictReader(path.open(newline=""))]
    assert [read_cell(row["key"]) for row in read] == ["=1", "b\n", "'c", "ü"]
    assert [row["source.uri"] for row in read] == [row["url"] for row in rows]
    assert [row["key"] for row in read] == ["'=1", "b\n", "''c", "ü"]
    frame = polars.read_csv(f"{folder}/*.csv")
    assert frame.height == 4


@pytest.mark.parametrize(
    "text", ["=1", "'=1", "''", "%41", "a%41", "\r", " -x", "a\0b", "é\n", "＝", "\u202e%", 'plain, "x"']
)
def test_a_cell_gives_its_text_back(text):
    assert read_cell(cell(text)) == text


KEYS = [
    *(
        "cat",
        "cat.jpg",
        "cat.png",
        "cat.jpg.png",
        "cat%2Ejpg",
        "cat%2Ejpg.png",
        "cat.JPG",
        "a/cat",
        "/a/cat",
        "//a/cat",
    ),
    *(
        "a//cat",
        "a/cat/",
        "a/",
        "",
        "%",
        "%25",
        ".",
        "..",
        "../..",
        " a",
        "a ",
        "con",
        "CON.jpg",
        "%63on",
        "~",
        "a~b",
        "-a",
    ),
    *(
        "x" * 5000,
        "x" * 4999 + "y",
        "x" * 5000 + ".jpg",
        "a/" * 999,
        "é",
        "e\u0301",
        "\0",
        "\n",
        "\u202e",
        "a\\b",
        "a:b",
    ),
]


def test_names_are_never_two_alike_and_give_the_key_back():
    names = [Names(KEYS).of(key) for key in KEYS]
    assert len(set(names)) == len(KEYS)
    for key, name in zip(KEYS, names, strict=True):
        assert "~" in name or unquote(name) in (key, key.rpartition(".")[0]) or key == ""
        assert not name.startswith("/") and "//" not in name and "." not in name
    assert [Names(KEYS).of(key) for key in ("a/cat", "con")] == ["a/cat", "%63on"]
    assert Names(["é.jpg"]).of("é.jpg") == "é"
    folded = [unicodedata.normalize("NFC", name.casefold()) for name in names]
    assert len(set(folded)) == len(KEYS), "nor where a file system folds case or composes accents"
    alike = ["cat.jpg", "Cat.jpg", "CAT.png", "straße.jpg", "STRASSE.jpg"]
    assert [Names(alike).of(key).partition("~")[0] for key in alike] == [
        "cat%2Ejpg", "Cat%2Ejpg", "CAT%2Epng", "straße%2Ejpg", "STRASSE%2Ejpg",
    ]  # fmt: skip
    assert Names(["b/cat.jpg", "a.b", "1.0/x.PNG"]).of("1.0/x.PNG") == "1%2E0/x"


def test_an_export_is_the_same_twice_and_its_manifest_says_what_it_holds(photos, tmp_path):
    _, release, raws = photos
    for to in ("webdataset", "parquet", "hf", "keys"):
        first, second = (exported(release, tmp_path / f"{to}{n}", to, shard_rows=4) for n in (1, 2))
        files = sorted(p.name for p in first.iterdir() if p.is_file())
        assert files == sorted(p.name for p in second.iterdir() if p.is_file())
        assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
        told = manifest(first)
        assert told == manifest(second)
        assert (told["release"], told["digest"]) == ("all-0001", release.digest)
        assert (told["rows"], told["written"], told["failed"]) == (len(raws), len(raws), 0)
        assert [shard["rows"] for shard in told["shards"]] == [4, 4, 3]
        assert all((first / shard["name"]).stat().st_size == shard["size"] for shard in told["shards"])


def test_shards_end_by_size_too(photos, tmp_path):
    _, release, raws = photos
    exported(release, tmp_path / "out", "webdataset", shard_mb=2000 / 2**20)
    sizes, largest = [], max(map(len, raws.values()))
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            images = [m.size for m in tar if m.name.endswith(("jpg", "png"))]
        sizes.append(sum(images))
        assert len(images) == 1 or sum(images) <= 2000
    assert len(sizes) > 3 and sum(sizes) == sum(map(len, raws.values())) and largest < 2000


class Stop(BaseException):
    """A kill, in this process."""


@pytest.mark.parametrize("to", ["webdataset", "parquet", "hf", "keys"])
def test_a_kill_at_any_moment_and_again_gives_the_same(photos, tmp_path, monkeypatch, to):
    _, release, raws = photos
    whole = exported(release, tmp_path / "whole", to, shard_rows=4)
    expected = {p.name: p.read_bytes() for p in whole.iterdir() if p.is_file()}
    replace, count = os.replace, 0
    moments = 12
    for moment in range(moments):
        folder = tmp_path / f"killed{moment}"

        def dying(*args, moment=moment, **options):
            nonlocal count
            count += 1
            if count > moment:
                raise Stop
            replace(*args, **options)

        count = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            ended = None
            try:
                exported(release, folder, to, shard_rows=4)
                ended = moment
            except Stop:
                pass
        shards = [p for p in folder.iterdir() if p.is_file()]
        assert ended is not None or not (folder / ".nextloom/export.json").exists()
        assert all(expected[p.name] == p.read_bytes() for p in shards), "a shard appears whole"
        before = {p.name: p.stat().st_ino for p in shards}
        done = export(Chosen.of(release), folder, Options(to, shard_rows=4))
        assert (done.written, done.failed) == (len(raws), 0)
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == expected
        kept = {name: (folder / name).stat().st_ino for name in before if name != "README.md"}
        assert kept == {name: inode for name, inode in before.items() if name != "README.md"}, "written twice"
        assert not list((folder / ".nextloom").glob("tmp-*"))
        if ended is not None:
            return
    raise AssertionError(f"an export takes more than {moments} steps; the last ones were not tried")


def test_a_killed_process_and_again_loses_and_doubles_nothing(tmp_path):
    write_pictures(tmp_path / "pics", 300)
    _, dataset = recipe_of(tmp_path, {"op": "files", "path": "pics"})
    release = published(tmp_path, {"op": "files", "path": "pics"})
    code = (
        "from pathlib import Path; import sys\n"
        "from nextloom.store.release import open_release\n"
        "from nextloom.pipelines.export import Chosen, Options, export\n"
        f"release = open_release({dataset.uri!r}, 'all')\n"
        f"export(Chosen.of(release), {str(tmp_path / 'out')!r}, Options('webdataset', shard_rows=2))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.tar"))) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    early = {p.name: p.stat().st_ino for p in (tmp_path / "out").glob("*.tar")}
    assert 20 <= len(early) < 150
    done = export(Chosen.of(release), tmp_path / "out", Options("webdataset", shard_rows=2))
    assert done.written == 300 and done.made >= 150 - len(early)
    again = {p.name: p.stat().st_ino for p in (tmp_path / "out").glob("*.tar")}
    assert len(again) == 150 and sum(again[name] != inode for name, inode in early.items()) <= 1
    images = [name for name in tar_names(tmp_path / "out") if name.endswith(".png")]
    assert images == [f"p{n:03d}.png" for n in range(300)]


def test_rows_whose_bytes_are_gone_are_listed(tmp_path):
    write_pictures(tmp_path / "pics", 12)
    release = published(tmp_path, {"op": "files", "path": "pics"})
    (tmp_path / "pics/p003.png").unlink()
    raw = (tmp_path / "pics/p004.png").read_bytes()
    (tmp_path / "pics/p004.png").write_bytes(raw[:-1])
    (tmp_path / "pics/p011.png").write_bytes((tmp_path / "pics/p011.png").read_bytes()[::-1])  # as long as before
    for to in ("webdataset", "parquet", "hf"):
        done = export(Chosen.of(release), tmp_path / to, Options(to, shard_rows=4))
        assert (done.rows, done.written, done.failed) == (12, 9, 3)
        failed = [json.loads(line) for line in Path(done.errors).read_text().splitlines()]
        assert [(row["key"], row["type"]) for row in failed] == [
            ("p003.png", "FileNotFoundError"),
            ("p004.png", "ContentError"),
            ("p011.png", "ContentError"),
        ]
        assert "changed" in failed[2]["message"]
        assert (manifest(tmp_path / to)["written"], manifest(tmp_path / to)["failed"]) == (9, 3)
        assert export(Chosen.of(release), tmp_path / to, Options(to, shard_rows=4)).made == 0


def test_when_all_rows_failed_there_is_a_manifest_and_no_shard(tmp_path):
    write_pictures(tmp_path / "pics", 3)
    release = published(tmp_path, {"op": "files", "path": "pics"})
    for path in (tmp_path / "pics").iterdir():
        path.unlink()
    done = export(Chosen.of(release), tmp_path / "out", Options("parquet"))
    assert (done.written, done.failed, done.shards) == (0, 3, 0)
    assert not list((tmp_path / "out").glob("*.parquet")) and manifest(tmp_path / "out")["failed"] == 3


def test_a_lost_shard_is_made_again_and_other_bytes_are_refused(tmp_path):
    write_pictures(tmp_path / "pics", 8)
    release = published(tmp_path, {"op": "files", "path": "pics"})
    folder = exported(release, tmp_path / "out", "webdataset", shard_rows=3)
    lost = folder / "shard-000001.tar"
    expected = lost.read_bytes()
    lost.unlink()
    assert export(Chosen.of(release), folder, Options("webdataset", shard_rows=3)).made == 1
    assert lost.read_bytes() == expected
    lost.write_bytes(expected[:100])
    (tmp_path / "pics/p004.png").write_bytes(b"other")
    with pytest.raises(UserError, match=r"shard-000001\.tar is gone or cut off, and its rows give other bytes now"):
        export(Chosen.of(release), folder, Options("webdataset", shard_rows=3))


def test_a_folder_of_something_else_is_refused(tmp_path):
    write_pictures(tmp_path / "pics", 4)
    release = published(tmp_path, {"op": "files", "path": "pics"})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, what in (("thesis", "holds notes.txt"), ("file", "a file"), ("no/where", "above it is not there")):
        with pytest.raises(UserError, match=what):
            exported(release, tmp_path / name, "parquet")
    assert (tmp_path / "thesis/notes.txt").read_text() == "mine" and not (tmp_path / "thesis/.nextloom").exists()
    folder = exported(release, tmp_path / "out", "parquet")
    with pytest.raises(UserError, match="holds another export: to parquet, not webdataset"):
        exported(release, folder, "webdataset")
    with pytest.raises(UserError, match="another export: shard_rows None, not 2"):
        exported(release, folder, "parquet", shard_rows=2)
    write_pictures(tmp_path / "pics", 1, start=4)
    second = published(tmp_path, {"op": "files", "path": "pics"})
    with pytest.raises(UserError, match="another export: release all-0001, not all-0002"):
        exported(second, folder, "parquet")
    assert exported(open_release(second.dataset_uri, "all-0001"), folder, "parquet"), "the old one still fits"
    with Place(tmp_path / "busy", {"a": 1}), pytest.raises(UserError, match="another export writes here"):
        Place(tmp_path / "busy", {"a": 1}).__enter__()


def test_columns_are_chosen_by_name_and_wrong_ones_are_refused(photos):
    _, release, _ = photos
    assert list(Chosen.of(release, ["source.size,source.uri"]).fields) == ["source.size", "source.uri"]
    for name, what in (("stats.width", "no column 'stats'"), ("source.sise", "did you mean 'size'")):
        with pytest.raises(UserError, match=what):
            Chosen.of(release, [name])


def test_a_format_that_is_none_and_empty_shards_are_refused(photos, tmp_path):
    _, release, _ = photos
    with pytest.raises(UserError, match="known: webdataset, parquet, hf, keys"):
        exported(release, tmp_path / "a", "tar")
    with pytest.raises(UserError, match="more than nothing"):
        exported(release, tmp_path / "a", "keys", shard_rows=0)
    assert not (tmp_path / "a").exists()


def test_members_of_tars_and_cells_of_tables_are_taken_out_as_they_are(photos, tmp_path):
    _, release, raws = photos
    first = exported(release, tmp_path / "one", "webdataset", shard_rows=4)
    second = published(tmp_path / "w", {"op": "webdataset", "path": str(first)})
    third = exported(second, tmp_path / "two", "hf")
    fourth = published(tmp_path / "h", {"op": "huggingface", "path": str(third), "key": "key"})
    last = exported(fourth, tmp_path / "three", "parquet")
    frame = polars.read_parquet(f"{last}/*.parquet")
    assert sorted(frame["image"]) == sorted(raws.values())
    assert sorted(filter(None, frame["caption"])) == sorted(filter(None, (c for c, _ in original(release).values())))
