"""Sources over shards: finding them, what is looked into again, round trips through a run, buckets never listed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import ClassVar

import datasets
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from engine import build, contents, plans, run
from nextloom.content import Content
from nextloom.curation.sources.finding import find_shards
from nextloom.curation.sources.globs import spelled
from nextloom.curation.sources.img2dataset import Img2Dataset
from nextloom.curation.sources.shards import ShardSource
from nextloom.curation.sources.table import Table
from nextloom.curation.sources.webdataset import WebDataset
from nextloom.errors import UserError
from nextloom.pipelines.release import make_release
from nextloom.store.dataset import Dataset
from nextloom.store.listing import Changes
from nextloom.untrusted import Door
from test_img2dataset import picture, record, write_output
from test_webdataset import write_tar

STEPS = {"sum": {"op": "toy_checksum:Checksum"}}
RELEASE = {"releases": {"all": {"rows": "source", "columns": ["sum"]}}}


def names(path, suffixes=(".tar",)) -> list[str]:
    return [shard.name for shard in find_shards(str(path), suffixes)]


def test_where_shards_are(tmp_path):
    for name in ("a/0.tar", "a/1.tar", "a/b/0.tar", "a/b/c/2.tar", "a/.hidden/3.tar", "a/x.txt", "c[1]/0.tar"):
        write_tar(tmp_path / name, [])
    (tmp_path / "a" / "shards.list").write_text(f"# both\nb/0.tar\n\n{tmp_path}/a/1.tar\nnot-there.tar\n")
    assert names(tmp_path / "a") == ["0.tar", "1.tar", "b/0.tar", "b/c/2.tar"]
    assert names(tmp_path / "a" / "*.tar") == ["0.tar", "1.tar"]
    assert names(tmp_path / "a" / "*" / "?.tar") == ["b/0.tar"]
    assert names(tmp_path / "a" / "**" / "[!1].tar") == ["0.tar", "b/0.tar", "b/c/2.tar"]
    assert names(tmp_path / "{a,a/b}" / "{0..1}.tar") == ["a/0.tar", "a/1.tar", "a/b/0.tar", "a/b/1.tar"]
    assert names(tmp_path / "a" / "1.tar") == ["1.tar"] and names(tmp_path / "c[1]") == ["0.tar"]
    assert names(tmp_path / "a" / "shards.list") == ["b/0.tar", f"{tmp_path}/a/1.tar", "not-there.tar"]
    units = WebDataset(path=(str(tmp_path / "a/b"), str(tmp_path / "a/[1].tar"))).units()
    assert list(units) == ["0.tar", "c/2.tar", "1.tar"]


def test_names_spelled_out():
    assert spelled("s-{098..101}.tar") == ["s-098.tar", "s-099.tar", "s-100.tar", "s-101.tar"]
    assert spelled("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    for wrong in ("x{", "{5..2}", "{a}", "x}y"):
        with pytest.raises(UserError, match="cannot spell out"):
            spelled(wrong)


def test_what_is_no_place_for_shards(tmp_path):
    (tmp_path / "notes.md").write_text("no shard")
    two = [write_tar(tmp_path / name / "0.tar", []) for name in "ab"]
    for path, message in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "no*.tar", "no shard at"),
        (tmp_path / "a", None),
        ("https://x/0.tar", "not from https://x/0.tar\n  next: copy them first"),
        ("pipe:aws s3 cp s3://pictures/0.tar -", "not from pipe:"),
        (tmp_path / "index.txt", "no such index"),
    ):
        if message is None:
            assert names(path) == ["0.tar"]
            continue
        with pytest.raises(UserError, match=message):
            names(path)
    with pytest.raises(UserError, match=r"found a/0.tar, b/0.tar, notes.md in .*, expected .parquet\n.*webdataset"):
        names(tmp_path, (".parquet",))
    with pytest.raises(UserError, match=r"two shards are named '0.tar'"):
        WebDataset(path=tuple(map(str, two))).units()


class Opened(WebDataset):
    """Counts the shards that are looked into."""

    name: ClassVar[str] = "webdataset"
    looked: ClassVar[list[str]] = []

    def look(self, shard):
        self.looked.append(shard.name)
        return super().look(shard)


def changes(dataset: Dataset, source: ShardSource, apply: bool = True) -> tuple[str, list[str]]:
    """What a listing says, and which shards it looked into."""
    Opened.looked.clear()
    found = Changes(dataset, source)
    told = found.describe()
    with dataset.lease("test"):
        if apply:
            found.apply() if found else found.note()
    return told, sorted(Opened.looked)


def ids(dataset: Dataset) -> dict[str, int]:
    return {row["key"]: row["id"] for row in dataset.live_rows(["key"]).to_pylist()}


def test_only_shards_that_changed_are_looked_into(tmp_path):
    folder = tmp_path / "s"
    for shard in "bcd":
        write_tar(folder / f"{shard}.tar", [(f"{shard}{n}.jpg", b"x") for n in range(3)])
    dataset, source = Dataset(str(tmp_path / "d")), Opened(path=str(folder))
    assert changes(dataset, source) == ("+9", ["b.tar", "c.tar", "d.tar"])
    assert changes(dataset, source) == ("", [])
    first = ids(dataset)
    write_tar(folder / "a.tar", [("a0.jpg", b"x")])
    assert changes(dataset, source) == ("+1", ["a.tar"])
    assert ids(dataset) == first | {"a0": 9}, "a new shard in front takes no id of another"
    write_tar(folder / "c.tar", [("c0.jpg", b"longer"), ("c9.jpg", b"new")])
    assert changes(dataset, source) == ("+2 -3", ["c.tar"])
    os.remove(folder / "d.tar")
    assert changes(dataset, source) == ("-3", [])
    now = ids(dataset)
    assert set(now) == {"a0", "b0", "b1", "b2", "c0", "c9"} and now["b1"] == first["b1"] and now["c0"] > 9
    os.rename(folder / "b.tar", folder / "z.tar")
    assert changes(dataset, source) == ("3 moved", ["z.tar"])
    write_tar(folder / "y.tar", [("y0.jpg", b"x")])
    assert changes(dataset, source) == ("+1", ["y.tar"]), "rows that moved belong to their new shard"
    assert ids(dataset) == now | {"y0": 12}
    os.rename(folder, tmp_path / "elsewhere")
    moved = Opened(path=str(tmp_path / "elsewhere"))
    assert changes(dataset, moved)[0] == "7 moved" and ids(dataset) == now | {"y0": 12}
    uris = {row["uri"] for row in dataset.live_rows(["uri"]).to_pylist()}
    assert uris == {f"{tmp_path}/elsewhere/{name}.tar" for name in "acyz"}


def test_a_shard_that_cannot_be_read_is_tried_again_and_a_named_one_may_be_missing(tmp_path):
    folder = tmp_path / "s"
    for shard in "01":
        write_tar(folder / f"{shard}.tar", [(f"{shard}.jpg", b"x")])
    dataset, source = Dataset(str(tmp_path / "d")), Failing(path=str(folder / "{0..2}.tar"))
    Failing.fail = True
    assert changes(dataset, source)[0] == "+3"
    assert set(ids(dataset)) == {"0.tar", "1", "2.tar"}
    told = {row["key"]: row["member"] for row in dataset.live_rows(["key", "member"]).to_pylist()}
    assert told["0.tar"] == "?cannot be read: PermissionError: 0.tar" and told["2.tar"].startswith("!no such file")
    assert changes(dataset, source) == ("", ["0.tar"])
    Failing.fail = False
    assert changes(dataset, source) == ("+1 -1", ["0.tar"])
    assert changes(dataset, source) == ("", [])
    write_tar(folder / "2.tar", [("2.jpg", b"x")])
    assert changes(dataset, source) == ("+1 -1", ["2.tar"])


class Failing(Opened):
    """Cannot read the first shard for a while, as a disk or a bucket may."""

    fail: ClassVar[bool] = True

    def look(self, shard):
        found = super().look(shard)
        if self.fail and shard.name == "0.tar":
            raise PermissionError(shard.name)
        return found


def write_source(folder: Path, kind: str) -> dict[str, tuple[bytes | None, str, dict]]:
    """12 samples in the layout of `kind`: key -> bytes (None: failed there), caption, sidecar."""
    records = [record(0, number) | {"key": f"{number:09d}", "status": "success"} for number in range(12)]
    if kind == "img2dataset":
        good = write_output(folder, "webdataset", shards=2)
        return {
            one["key"]: (
                picture(int(one["key"][:5]), int(one["key"][5:])) if one["status"] == "success" else None,
                one["caption"],
                one,
            )
            for one in good
        }
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(records)
    cells = pa.array([picture(0, n) for n in range(12)], pa.binary())
    if kind == "webdataset":
        for shard in range(2):
            members = []
            for number in range(shard * 6, shard * 6 + 6):
                one = records[number]
                members += [(f"{one['key']}.jpg", picture(0, number)), (f"{one['key']}.json", json.dumps(one).encode())]
            write_tar(folder / f"{shard}.tar", members)
        return {one["key"]: (picture(0, n), one["caption"], one) for n, one in enumerate(records)}
    rest = [{k: v for k, v in one.items() if k not in ("key", "caption")} for one in records]
    if kind == "table":
        pq.write_table(table.append_column("jpg", cells), folder / "t.parquet", row_group_size=5)
    else:
        table = table.append_column("jpg", pa.array([{"bytes": cells[n].as_py(), "path": None} for n in range(12)]))
        saved = datasets.Dataset(table).cast_column("jpg", datasets.Image())
        saved.save_to_disk(str(folder), num_shards=2)
        rest = [{**one, "jpg": {"path": None}} for one in rest]
    return {one["key"]: (picture(0, n), one["caption"], rest[n]) for n, one in enumerate(records)}


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("kind", ["webdataset", "img2dataset", "table", "huggingface"])
def test_round_trip(tmp_path, kind):
    """What went in comes out of a release: the same keys, bytes, captions and sidecars."""
    expected = write_source(tmp_path / "in", kind)
    source = {"op": kind, "path": "in"} | ({"key": "key"} if kind in ("table", "huggingface") else {})
    recipe, dataset = build(tmp_path, STEPS, source=source, **RELEASE)
    result = run(recipe, dataset)["sum"]
    failed = sum(raw is None for raw, _, _ in expected.values())
    assert result == {"rows": 12, "values": 12 - failed, "errors": failed, "done": 12}
    sums = {row["key"]: row for row in contents(recipe, dataset)["sum"]}
    release, _ = make_release(recipe, dataset, "all")
    rows, content = {row["key"]: row for row in release.rows().to_pylist()}, Content(release.door)
    assert list(rows) == list(expected)
    for key, (raw, caption, sidecar) in expected.items():
        assert rows[key]["caption"] == caption and json.loads(rows[key]["sidecar"]) == sidecar
        if raw is None:
            assert sums[key]["error"]["stage"] == "fetch"
            assert sums[key]["error"]["message"] == f"{sidecar['status']}: {sidecar['error_message']}"
        else:
            assert content.fetch(rows[key]) == raw
            assert sums[key]["sha256"] == hashlib.sha256(raw).hexdigest(), "as a worker read it"
    assert all(plan.state == "fresh" for plan in plans(recipe, dataset).values())


def counted(log: Path) -> list[str]:
    """Method and path of the requests since the last call."""
    text = re.sub("\x1b\\[[0-9]+m", "", log.read_text())  # the server colours some lines
    log.write_text("")
    return [line.split('"')[1].rpartition(" ")[0] for line in text.splitlines() if '"' in line and "HTTP/" in line]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An S3 server on this machine: root URI of a bucket, its query, and the file in which it logs requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "requests.log"
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_EC2_METADATA_DISABLED", "1")):
        monkeypatch.setenv(name, value)
    with log.open("ab") as file:
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=file, stderr=file)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).read()
                break
            except OSError:
                time.sleep(0.1)
        query = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        system, _ = pafs.FileSystem.from_uri(f"s3://pictures{query}")
        system.create_dir("pictures")
        yield system, query, log
    finally:
        server.terminate()
        server.wait()


def put(system, path: Path, key: str) -> None:
    pafs.copy_files(str(path), key, destination_filesystem=system)


def test_an_index_in_a_bucket_and_no_listing(tmp_path, bucket):
    system, query, log = bucket
    put(system, write_tar(tmp_path / "0 ü.tar", [("a.jpg", b"x" * 5000), ("a.txt", b"one")]), "pictures/s/0 ü.tar")
    put(system, write_tar(tmp_path / "1.tar", [("b.jpg", b"second")]), "pictures/s/1.tar")
    with system.open_output_stream("pictures/s/index.txt") as file:
        file.write("0 ü.tar\n1.tar\n".encode())
    listed = {row["key"]: row for row in everything(WebDataset(path=f"s3://pictures/s{query}"))}
    assert any("list-type=2" in line for line in counted(log)), "the control: a folder is listed"
    source = WebDataset(path=f"s3://pictures/s/index.txt{query}")
    units = source.units()
    asked = counted(log)
    rows = {row["key"]: row for unit in units for row in source.items(unit, {}).to_pylist()}
    assert rows == listed and rows["a"]["caption"] == "one"
    content = Content(source.door())
    assert content.fetch(rows["a"]) == b"x" * 5000 and content.fetch(rows["b"]) == b"second"
    shards = [f"HEAD /pictures/s/{name}.tar" for name in ("0%20ü", "1")]
    assert sorted(asked) == sorted(["HEAD /pictures/s/index.txt", "GET /pictures/s/index.txt", *shards])
    assert not [line for line in asked + counted(log) if "list-type" in line or line.endswith("/pictures/")]
    assert spelled_out(query) == units
    assert WebDataset(path=f"s3://pictures/s/index.txt{query}", immutable=True).units() == dict.fromkeys(
        units, "immutable"
    )
    assert not [line for line in counted(log) if "list-type" in line]


def everything(source: ShardSource) -> list[dict]:
    return [row for unit in source.units() for row in source.items(unit, {}).to_pylist()]


def spelled_out(query: str) -> dict[str, str]:
    return WebDataset(path=f"s3://pictures/s/{{0%20%C3%BC,1}}.tar{query}").units()


def test_tables_and_img2dataset_in_a_bucket(tmp_path, bucket):
    system, query, _ = bucket
    records = write_output(tmp_path / "out", "webdataset", shards=1)
    pq.write_table(pa.table({"file": ["a b.jpg", "/x.jpg", None], "n": [1, 2, 3]}), tmp_path / "out" / "paths.parquet")
    pq.write_table(pa.table({"jpg": [b"one", b"two"]}), tmp_path / "out" / "cells.parquet")
    (tmp_path / "out" / "a b.jpg").write_bytes(b"by its path")
    for path in (tmp_path / "out").iterdir():
        put(system, path, f"pictures/out/{path.name}")
    content = Content(Door([f"s3://pictures/out{query}"]))
    found = everything(Img2Dataset(path=f"s3://pictures/out/{{00000..00000}}.parquet{query}"))
    good = [row for row in found if row["member"] is None]
    assert [row["key"] for row in found] == [one["key"] for one in records] and len(good) == 4
    assert [content.fetch(row) for row in good] == [picture(0, int(row["key"][5:])) for row in good]
    cells = everything(Table(path=f"s3://pictures/out/cells.parquet{query}"))
    assert [content.fetch(row) for row in cells] == [b"one", b"two"]
    relative, absolute, null = everything(Table(path=f"s3://pictures/out/p*s.parquet{query}"))
    assert relative["key"] == "paths.parquet#0" and content.fetch(relative) == b"by its path"
    assert absolute["uri"] == "/x.jpg" and null["member"] == "!no image in this row\tcolumn 'file' is empty"


@pytest.mark.parametrize("kind", ["table", "webdataset", "img2dataset"])
def test_one_key_in_two_shards_is_refused_with_both_places_and_the_advice_works(tmp_path, kind):
    folder = tmp_path / "in"
    if kind == "table":
        folder.mkdir()
        for name in "ab":
            pq.write_table(pa.table({"id": ["x", name], "jpg": [b"1", b"2"]}), folder / f"{name}.parquet")
        source = {"key": "id"}
    elif kind == "webdataset":
        for name in "ab":
            write_tar(folder / f"{name}.tar", [("x.jpg", b"1"), (f"{name}.jpg", b"2")])
        source = {}
    else:
        write_output(folder, "webdataset", shards=1)
        for part in ("tar", "parquet"):
            shutil.copy(folder / f"00000.{part}", folder / f"00001.{part}")
        shutil.copy(folder / "00000_stats.json", folder / "00001_stats.json")
        source = {}
    recipe, dataset = build(tmp_path, STEPS, source={"op": kind, "path": "in"} | source)
    names = {"table": "a.parquet and b.parquet", "webdataset": "a.tar and b.tar", "img2dataset": "00000 and 00001"}
    with pytest.raises(UserError, match=f"is listed 2 times, in {names[kind]}") as refused:
        plans(recipe, dataset)
    field, value = re.search(r"set source\.(\w+): (\w+)", refused.value.next).groups()
    recipe, dataset = build(tmp_path, STEPS, source={"op": kind, "path": "in", field: value} | source)
    assert plans(recipe, dataset)["source"].todo == (12 if kind == "img2dataset" else 4)
