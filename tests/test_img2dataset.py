"""Source `img2dataset`: its three layouts, links that failed there, shards that are not finished."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nextloom.content import Content, ContentError
from nextloom.curation.sources.img2dataset import Img2Dataset
from nextloom.errors import UserError
from nextloom.untrusted import Door
from test_webdataset import write_tar

ANYWHERE = Door(["/"])

FAILED = {2: ("failed_to_download", "HTTP Error 404: Not Found"), 4: ("failed_to_resize", "Image decoding error")}


def record(shard: int, number: int) -> dict:
    """A row as img2dataset 1.47 writes it to its Parquet file and, where the picture is there, to the .json."""
    status, message = FAILED.get(number, ("success", None))
    good = status == "success"
    return {
        "url": f"http://x/{number}.jpg",
        "caption": f"a picture, {number}",
        "similarity": number / 8,
        "key": f"{shard:05d}{number:04d}",
        "status": status,
        "error_message": message,
        "width": 256 if good else None,
        "height": 192 if good else None,
        "original_width": 1024 if good else None,
        "original_height": 768 if good else None,
        "exif": "{}" if good else None,
        "sha256": f"{number:064x}" if good else None,
    }


def picture(shard: int, number: int) -> bytes:
    return bytes([shard, number]) * 300


def write_output(folder: Path, layout: str, shards: int = 2, count: int = 6) -> list[dict]:
    """What img2dataset leaves behind; returns its records."""
    folder.mkdir(parents=True, exist_ok=True)
    every = []
    for shard in range(shards):
        name = f"{shard:05d}"
        records = [record(shard, number) for number in range(count)]
        every += records
        files = []
        for number, one in enumerate(records):
            if one["status"] == "success":
                files += [(f"{one['key']}.jpg", picture(shard, number)), (f"{one['key']}.txt", one["caption"].encode())]
                files += [(f"{one['key']}.json", json.dumps(one, indent=4).encode())]
        table = pa.Table.from_pylist(records)
        if layout == "webdataset":
            write_tar(folder / f"{name}.tar", files)
        elif layout == "files":
            (folder / name).mkdir()
            for file, data in files:
                (folder / name / file).write_bytes(data)
        else:
            cells = [picture(shard, n) if one["status"] == "success" else None for n, one in enumerate(records)]
            table = table.append_column("jpg", pa.array(cells, pa.binary()))
        pq.write_table(table, folder / f"{name}.parquet")
        stats = {"count": count, "successes": count - 2, "failed_to_download": 1, "failed_to_resize": 1}
        (folder / f"{name}_stats.json").write_text(json.dumps(stats))
    return every


def listing(path, **fields) -> dict[str, dict]:
    source = Img2Dataset(path=str(path), **fields)
    rows = [row for unit in source.units() for row in source.items(unit, {}).to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def outcome(row: dict) -> bytes | str:
    try:
        return Content(ANYWHERE).fetch(row)
    except ContentError as error:
        return str(error)


@pytest.mark.parametrize("layout", ["webdataset", "files", "parquet"])
def test_same_keys_bytes_and_sidecars_and_failures_are_rows(tmp_path, layout):
    records = write_output(tmp_path, layout)
    rows = listing(tmp_path)
    assert list(rows) == [one["key"] for one in records], "in the order of the shards"
    for one in records:
        row, number = rows[one["key"]], int(one["key"][5:])
        assert json.loads(row["sidecar"]) == one and row["caption"] == one["caption"]
        expected = picture(int(one["key"][:5]), number)
        if number in FAILED:
            expected = ": ".join(FAILED[number])
        assert outcome(row) == expected


@pytest.mark.parametrize("layout", ["webdataset", "files"])
def test_pictures_and_records_that_do_not_match(tmp_path, layout):
    write_output(tmp_path, layout, shards=1)
    extra, lost = "000009999", "000000003"
    if layout == "files":
        (tmp_path / "00000" / f"{extra}.jpg").write_bytes(b"extra")
        (tmp_path / "00000" / "z.jpg").write_bytes(b"z")
        (tmp_path / "00000" / f"{lost}.jpg").unlink()
    else:
        kept = [(f"00000{n:04d}.jpg", picture(0, n)) for n in (0, 1, 5)]
        write_tar(tmp_path / "00000.tar", [*kept, (f"{extra}.jpg", b"extra"), ("z.jpg", b"z")])
    rows = listing(tmp_path)
    assert list(rows)[6:] == [extra, "z"] and outcome(rows[extra]) == b"extra" and outcome(rows["z"]) == b"z"
    where = "folder" if layout == "files" else "tar"
    assert outcome(rows[lost]) == f"its status is success, but it is not in the {where}"


def test_a_tar_that_was_cut_off(tmp_path):
    write_output(tmp_path, "webdataset", shards=1)
    tar = tmp_path / "00000.tar"
    tar.write_bytes(tar.read_bytes()[: 512 + 1024 + 200])
    rows = listing(tmp_path)
    assert len(rows) == 6 and outcome(rows["000000000"]) == picture(0, 0)
    assert "not in the tar, which is cut off at byte 1,736" in outcome(rows["000000001"])


def test_a_shard_that_is_not_finished_is_one_failed_row_until_it_is(tmp_path):
    write_output(tmp_path, "webdataset")
    stats = (tmp_path / "00001_stats.json").read_text()
    (tmp_path / "00001_stats.json").unlink()
    rows, before = listing(tmp_path), Img2Dataset(path=str(tmp_path)).units()
    assert len(rows) == 7
    assert outcome(rows["00001"]) == "not finished: there is no 00001_stats.json; run img2dataset again"
    (tmp_path / "00001_stats.json").write_text(stats)
    after = Img2Dataset(path=str(tmp_path)).units()
    assert before["00000"] == after["00000"] and before["00001"] != after["00001"]
    assert len(listing(tmp_path)) == 12


def test_shards_named_without_a_listing(tmp_path):
    write_output(tmp_path, "webdataset")
    (tmp_path / "index.txt").write_text("# ours\n00000.tar\n00001.tar\n")
    whole = Img2Dataset(path=str(tmp_path)).units()
    for path in (tmp_path / "{00000..00001}.tar", tmp_path / "index.txt", tmp_path / "*.parquet"):
        assert Img2Dataset(path=str(path)).units() == whole
    assert set(Img2Dataset(path=str(tmp_path / "*.tar"), immutable=True).units().values()) == {"immutable"}
    assert list(listing(tmp_path / "{00000..00001}.tar", immutable=True)) == list(listing(tmp_path))


def test_another_table_is_refused(tmp_path):
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    with pytest.raises(UserError, match="found columns url; expected key and status of img2dataset"):
        listing(tmp_path)
    write_output(tmp_path / "bare", "webdataset", shards=1)
    (tmp_path / "bare" / "00000.tar").rename(tmp_path / "bare" / "00000.tfrecord")
    with pytest.raises(UserError, match="without pictures\n  next: only webdataset, parquet and files are read"):
        listing(tmp_path / "bare")
