"""Source `webdataset`: what becomes a row, where its bytes are, and what a damaged shard costs."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

import zoo
from nextloom import pixels
from nextloom.content import Content, ContentError
from nextloom.curation.sources.webdataset import WebDataset
from nextloom.errors import UserError
from nextloom.untrusted import Door

ANYWHERE = Door(["/"])

PNG = zoo.encoded(zoo.halves(), "PNG")


def write_tar(path: Path, members, **options) -> Path:
    """A tar of (name, bytes) or ready `TarInfo`s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def listing(path, **fields) -> dict[str, dict]:
    source = WebDataset(path=str(path), **fields)
    rows = [row for unit in source.units() for row in source.items(unit, {}).to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def failures(rows: dict[str, dict]) -> dict[str, str]:
    """Key -> why, of the rows whose bytes cannot be had."""
    out = {}
    for key, row in rows.items():
        try:
            Content(ANYWHERE).fetch(row)
        except ContentError as error:
            out[key] = f"{error}: {error.detail}" if error.detail else str(error)
    return out


def test_shards_of_the_webdataset_library(tmp_path):
    rng = np.random.default_rng(0)
    samples = [
        {
            "__key__": f"part/{n:04d}",
            "jpg": rng.bytes(int(rng.integers(1, 5000))),
            "txt": f"caption {n}",
            "json": {"n": n, "licence": "CC0"},
            "cls": n,
        }
        for n in range(50)
    ]
    with webdataset.ShardWriter(f"file:{tmp_path}/s-%04d.tar", maxcount=20, verbose=0, encoder=True) as writer:
        for sample in samples:
            writer.write(sample)
    rows, content = listing(tmp_path), Content(ANYWHERE)
    read_back = list(webdataset.WebDataset(sorted(map(str, tmp_path.glob("*.tar"))), shardshuffle=False))
    assert list(rows) == [sample["__key__"] for sample in read_back] == [s["__key__"] for s in samples]
    for sample in read_back:
        row = rows[sample["__key__"]]
        assert content.fetch(row) == sample["jpg"]
        assert row["caption"] == sample["txt"].decode()
        assert json.loads(row["sidecar"]) == json.loads(sample["json"]) | {"cls": int(sample["cls"])}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_odd_and_foreign_names_are_keys_and_nothing_is_written(tmp_path, form):
    long = "ordner/" + "n" * 240
    names = [f"{long}.png", "../up.png", "/abs.png", "a.b.c/x.png", "风景/一.PNG", "./dot.png", "two.dots.png"]
    write_tar(tmp_path / "in" / "s.tar", [(name, PNG) for name in names], format=form)
    before = sorted(tmp_path.rglob("*"))
    rows = listing(tmp_path / "in")
    assert list(rows) == [long, "../up", "/abs", "a.b.c/x", "风景/一", "./dot", "two"]
    assert not failures(rows) and all(Content(ANYWHERE).fetch(row) == PNG for row in rows.values())
    assert sorted(tmp_path.rglob("*")) == before


def test_captions_and_sidecars(tmp_path):
    record = '{"text": "from json", "x": [1, 2.50]}'
    write_tar(
        tmp_path / "s.tar",
        [
            ("txt.jpg", b"1"), ("txt.txt", b"\xef\xbb\xbf from txt \n"), ("txt.json", record.encode()),
            ("json.json", record.encode()), ("json.jpg", b"2"),
            ("cls.jpg", b"3"), ("cls.cls", b"7"),
            ("list.jpg", b"4"), ("list.json", b"[1]"), ("list.cls", b"cat"),
            ("bad.jpg", b"5"), ("bad.json", b"{oops"), ("bad.cls", b"1"),
            ("latin.jpg", b"6"), ("latin.txt", b"caf\xe9"),
            ("odd.jpg", b"8"), ("odd.json", rb'{"alt": "\ud83d"}'), ("odd.cls", b"1"),
            ("half.jpg", b"7"), ("half.json", rb'{"caption": "\ud83d"}'),
        ],
    )  # fmt: skip
    rows = listing(tmp_path)
    assert (rows["txt"]["caption"], rows["txt"]["sidecar"]) == ("from txt", record), "kept as it is"
    assert (rows["json"]["caption"], rows["json"]["sidecar"]) == ("from json", record)
    assert json.loads(rows["cls"]["sidecar"]) == {"cls": 7}
    assert json.loads(rows["list"]["sidecar"]) == {"cls": "cat", "json": [1]}
    bad = json.loads(rows["bad"]["sidecar"])
    assert bad["error"].startswith("bad.json: not JSON") and json.loads(bad["json"]) == {"cls": 1, "json": "{oops"}
    assert rows["latin"]["caption"] is None and "not UTF-8 at byte 3" in rows["latin"]["sidecar"]
    assert json.loads(rows["odd"]["sidecar"]) == {"alt": r"\ud83d", "cls": 1}
    assert rows["half"]["caption"] == "\\ud83d" and "half of a surrogate" in rows["half"]["sidecar"]
    assert not failures(rows)


def test_several_pictures_none_twice_and_links(tmp_path):
    link, nowhere, pipe = (tarfile.TarInfo(name) for name in ("d/same.jpg", "gone.jpg", "pipe.jpg"))
    link.type, link.linkname = tarfile.SYMTYPE, "../pair.input.jpg"
    nowhere.type, nowhere.linkname = tarfile.LNKTYPE, "nowhere.jpg"
    pipe.type = tarfile.FIFOTYPE
    write_tar(
        tmp_path / "s.tar",
        [
            ("pair.input.jpg", b"in"), ("pair.output.jpg", b"out"), ("pair.txt", b"make it snow"),
            ("lone.txt", b"no picture"), ("lone.mp4", b"video"),
            ("twice.jpg", b"first"), ("twice.JPG", b"second"),
            link, nowhere, pipe, ("README", b"no sample"), (".hidden.jpg", b"no sample"),
        ],
    )  # fmt: skip
    rows, content = listing(tmp_path), Content(ANYWHERE)
    second = next(key for key in rows if key.startswith("twice.JPG@"))
    assert set(rows) == {"pair.input.jpg", "pair.output.jpg", "lone", "twice", second, "d/same", "gone", "pipe"}
    assert content.fetch(rows["pair.input.jpg"]) == content.fetch(rows["d/same"]) == b"in"
    assert content.fetch(rows["pair.output.jpg"]) == b"out" and content.fetch(rows["twice"]) == b"first"
    assert rows["pair.input.jpg"]["caption"] == rows["pair.output.jpg"]["caption"] == "make it snow"
    assert failures(rows) == {
        "lone": "no image in this sample: only .txt .mp4",
        second: "a name stands twice in this tar; this is the second: twice.JPG",
        "gone": "a link to no member before it in this tar: nowhere.jpg",
        "pipe": "a pipe or device, which has no byte range",
    }


def test_every_cut_of_a_shard_keeps_what_is_before_and_says_where(tmp_path):
    """Whatever the byte: rows before the cut are the rows of the whole shard, and one row tells of the rest."""
    members = [(f"{n}.{suffix}", bytes([n]) * 700) for n in range(4) for suffix in ("jpg", "txt")]
    raw = write_tar(tmp_path / "whole.tar", members).read_bytes()
    whole = listing(tmp_path / "whole.tar")
    end = len(raw.rstrip(b"\0")) // 512 * 512 + 512
    path = tmp_path / "cut.tar"
    for at in [*range(1, end, 97), 512, 1024, 1536, 2048, 4096, end]:
        path.write_bytes(raw[:at])
        rows = listing(path)
        told = failures(rows)
        assert list(told) == ["cut.tar"], at
        assert "cut off" in told["cut.tar"] or "damaged" in told["cut.tar"]
        for key, row in rows.items():
            if key not in told:
                assert (row["offset"], row["size"]) == (whole[key]["offset"], whole[key]["size"])
                assert row["offset"] + row["size"] <= at
        complete = sum(whole[key]["offset"] + whole[key]["size"] <= at for key in whole)
        assert len(rows) - 1 == complete, at


def test_damage_in_the_middle_and_two_tars_in_one(tmp_path):
    members = [(f"{n}.jpg", bytes([n]) * 600) for n in range(4)]
    raw = bytearray(write_tar(tmp_path / "good.tar", members).read_bytes())
    (tmp_path / "joined.tar").write_bytes(bytes(raw) * 2)
    third = listing(tmp_path / "good.tar")["2"]["offset"] - 512
    raw[third : third + 512] = b"\xaa" * 512
    (tmp_path / "middle.tar").write_bytes(raw)
    assert failures(rows := listing(tmp_path / "middle.tar")) == {
        "middle.tar": f"the shard is cut off or damaged: damaged at byte {third:,}, behind 1.jpg"
    }
    assert list(rows) == ["0", "1", "middle.tar"]
    joined = failures(listing(tmp_path / "joined.tar"))
    assert list(joined) == ["joined.tar"] and "two tars in one?" in joined["joined.tar"]


def test_a_negative_size_ends_the_listing(tmp_path):
    """A header may say -512 in base 256, which sends a careless reader back to the same header for ever."""
    raw = bytearray(write_tar(tmp_path / "s.tar", [("a.jpg", b"x" * 600), ("b.jpg", b"y")]).read_bytes())
    at = 512 + 1024
    raw[at + 124 : at + 136] = (-1024).to_bytes(12, "big", signed=True)
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    (tmp_path / "s.tar").write_bytes(raw)
    rows = listing(tmp_path)
    assert list(rows) == ["a", "s.tar"] and "damaged" in failures(rows)["s.tar"]


def test_a_compressed_tar_is_refused_with_the_command_that_mends_it(tmp_path):
    good = write_tar(tmp_path / "b.tar", [("a.jpg", b"x")])
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "d.tar").write_bytes(b"<html>404</html>" * 100)
    (tmp_path / "e.tar").write_bytes(b"")
    told = failures(rows := listing(tmp_path))
    assert set(rows) == {"a", "c.tar.gz", "d.tar", "e.tar"}, "beside good shards each is one failed row"
    assert told["c.tar.gz"].endswith(f"unpack it: gunzip {tmp_path}/c.tar.gz")
    assert (
        told["d.tar"].startswith("no tar; give .tar files")
        and "html" not in told["d.tar"]
        and "cut off" in told["e.tar"]
    )
    with pytest.raises(UserError, match="no byte ranges\n  next: unpack it: gunzip"):
        listing(tmp_path / "c.tar.gz")


def test_a_zip_bomb_in_a_tar_is_a_row_that_does_not_decode(tmp_path):
    bomb = zoo.huge_header(tmp_path).read_bytes()
    write_tar(tmp_path / "s.tar", [("bomb.png", bomb), ("good.png", PNG)])
    rows, content = listing(tmp_path / "s.tar"), Content(ANYWHERE)
    assert pixels.decode(content.fetch(rows["good"])).shape == (32, 64, 3)
    with pytest.raises(ValueError, match=r"announces more than .* pixels"):
        pixels.decode(content.fetch(rows["bomb"]))


def test_keys_of_shards_that_all_count_from_zero(tmp_path):
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", [("000.jpg", name.encode())])
    rows = listing(tmp_path, keys="unit")
    assert list(rows) == ["a.tar/000", "b.tar/000"] and Content(ANYWHERE).fetch(rows["b.tar/000"]) == b"b"


def test_a_shard_that_changed_gives_an_error_and_no_other_bytes(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.jpg", b"old bytes")])
    row = listing(tmp_path)["a"]
    write_tar(path, [("b.jpg", b"new bytes!")])
    with pytest.raises(ContentError, match="changed since it was listed"):
        Content(ANYWHERE).fetch(row)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_forged_headers_end_in_rows(tmp_path, form):
    """Bytes changed at random, checksums made good again: no error, no endless loop, no range outside of the file."""
    names = [f"d/{n}{'n' * (90 if n % 2 else 0)}.{suffix}" for n in range(8) for suffix in ("jpg", "txt", "json")]
    raw = write_tar(tmp_path / "s.tar", [(name, b"0" * 300) for name in names], format=form).read_bytes()
    heads = [at for at in range(0, len(raw), 512) if raw[at + 257 : at + 262] == b"ustar"]
    rng, damaged = np.random.default_rng(form), 0
    for _ in range(150):
        data = bytearray(raw)
        for head in rng.choice(heads, rng.choice([1, 4])).tolist():
            data[head + int(rng.integers(512))] = int(rng.integers(256))
            data[head + 148 : head + 156] = b" " * 8
            data[head + 148 : head + 156] = b"%06o\0 " % sum(data[head : head + 512])
        (tmp_path / "s.tar").write_bytes(data)
        try:
            rows = listing(tmp_path / "s.tar")
        except UserError as refused:
            assert "no tar" in str(refused)
            continue
        damaged += bool([row for row in rows.values() if row["member"]])
        inside = [row for row in rows.values() if row["offset"] is not None]
        assert all(512 <= row["offset"] <= row["offset"] + row["size"] <= len(data) for row in inside)
    assert damaged > 20


def test_keys_that_the_json_of_a_sample_states(tmp_path):
    def sample(name, record, *images):
        return [
            *((f"{name}.{image}", PNG) for image in images or ("png",)),
            (f"{name}.json", json.dumps(record).encode()),
        ]

    path = write_tar(
        tmp_path / "s.tar",
        [
            *sample("a", {"key": "x/y.png"}),
            *sample("b", {"key": "two"}, "png", "mask.png"),
            *sample("c", {"name": "none"}),
            *sample("d", {"key": "x/y.png"}),
            *sample("e", {"key": 3}),
            *sample("f", {"key": "s.tar#c"}),
            ("g.png", PNG),
        ],
    )
    rows = listing(path, key="json")
    wrong = {"s.tar#c", "s.tar#d", "s.tar#e", "s.tar#f", "s.tar#g"}
    assert rows.keys() == {"x/y.png", "two.png", "two.mask.png"} | wrong
    assert {key for key, row in rows.items() if (row["member"] or "").startswith("!")} == wrong
    assert "stands twice" in rows["s.tar#f"]["member"] and "no `key`" in rows["s.tar#g"]["member"]
    assert list(listing(path)) == ["a", "b.png", "b.mask.png", "c", "d", "e", "f", "g"]
