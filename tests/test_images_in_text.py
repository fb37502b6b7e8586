"""Images written as text, lists of images, arrays of records, other encodings: each is read, or refused with advice."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import zoo
from nextloom.content import Content, ContentError
from nextloom.curation.sources import records
from nextloom.curation.sources.table import Table
from nextloom.encoded import decode, is_encoded
from nextloom.errors import UserError
from nextloom.untrusted import Door, TooLarge

ANYWHERE = Door(["/"])
RGB = zoo.halves(40, 30)
FILES = [zoo.encoded(RGB, kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000")]


def listing(path, **fields) -> list[dict]:
    source = Table(path=str(path), **fields)
    return [row for unit in source.units() for row in source.items(unit, {}).to_pylist()]


def got(row: dict) -> bytes | str:
    try:
        return Content(ANYWHERE).fetch(row)
    except ContentError as error:
        return f"{error}: {error.detail}"


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


SPELLINGS = {
    "base64": b64,
    "url-safe": lambda raw: base64.urlsafe_b64encode(raw).decode(),
    "no padding": lambda raw: b64(raw).rstrip("="),
    "data URI": lambda raw: f"data:image/jpeg;base64,{b64(raw)}",
    "data URI in capitals": lambda raw: f"DATA:image/png;BASE64,{b64(raw)}",
    "data URI without type": lambda raw: f"data:;base64,{b64(raw)}",
    "data URI with parameters": lambda raw: f"data:image/x;charset=utf-8;base64,{b64(raw)}",
    "percent signs": lambda raw: "data:image/png;base64," + b64(raw).replace("+", "%2B").replace("=", "%3D"),
    "percent encoded bytes": lambda raw: "data:image/png," + "".join(f"%{byte:02x}" for byte in raw),
    "lines": lambda raw: base64.encodebytes(raw).decode(),
    "blanks around": lambda raw: f"  {b64(raw)}\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_every_format_is_an_image(spelling):
    for raw in FILES:
        assert is_encoded(SPELLINGS[spelling](raw)) and decode(SPELLINGS[spelling](raw)) == raw


def test_paths_and_urls_are_none():
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/_-"
    paths = ["".join(rng.choices(letters, k=rng.randint(1, 120))) for _ in range(5000)]
    named = ["/9j/4AAQ/photo.jpg", "/9j/" + "a" * 60 + ".jpg", "http://x/iVBORw0KGgo", "R0lGOD", "Qk/bmp", "data", ""]
    assert not [path for path in paths + named if is_encoded(path)]


def write(path, texts: list[str | None], kind: str) -> None:
    rows = [{"id": n, "image": text, "caption": f"c{n}"} for n, text in enumerate(texts)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif kind == "arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "image", "caption"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "tsv", "jsonl", "json"])
def test_text_beside_paths_and_links_in_every_kind_of_table(tmp_path, kind):
    (tmp_path / "p.jpg").write_bytes(FILES[0])
    texts = [SPELLINGS["data URI"](FILES[1]), "p.jpg", b64(FILES[2]), "http://x/1.jpg", None, b64(FILES[2])]
    texts += [b64(FILES[3]) + "#", "A" * 9000, SPELLINGS["lines"](FILES[4]), ""]
    write(tmp_path / f"t.{kind}", texts, kind)
    rows = listing(tmp_path / f"t.{kind}", key="id")
    assert [row["key"] for row in rows] == [str(n) for n in range(10)] and len(str(rows)) < 5000
    assert [row["caption"] for row in rows] == [f"c{n}" for n in range(10)]
    assert [got(rows[n]) for n in (0, 1, 2, 5)] == [FILES[1], FILES[0], FILES[2], FILES[2]]
    assert rows[3]["uri"] == "http://x/1.jpg"
    assert got(rows[4]) == got(rows[9]) == "no image in this row: column 'image' is empty"
    assert got(rows[6]) == "a text that is no image in base64 and no data: URI: no base64"
    assert got(rows[7]) == "a text too long for a path or URL: column 'image'"
    if kind in ("parquet", "arrow", "csv", "tsv"):
        assert got(rows[8]) == FILES[4]
    else:
        assert got(rows[8]) == "an image in base64 that is spelled with escapes: column 'image'"
    if kind in ("parquet", "csv"):
        write(tmp_path / f"t.{kind}", texts[::-1], kind)
        assert "changed since it was listed" in got(rows[0])


def test_json_that_escapes_slashes(tmp_path):
    text = json.dumps([{"image": b64(FILES[0])}, {"image": b64(FILES[1])}]).replace("/", "\\/")
    for name in ("t.json", "t.jsonl"):
        (tmp_path / name).write_text(text)
        assert [got(row) for row in listing(tmp_path / name)] == FILES[:2]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "cp1252", "utf-32", "gb18030", "utf-8-sig"])
def test_encodings_of_csv_with_text_and_images(tmp_path, encoding):
    written = io.StringIO()
    writer = csv.writer(written, delimiter=";")
    writer.writerows([["image", "caption"], [b64(FILES[0]), "café"], ["p.jpg", "Ünder"], [b64(FILES[1]), "x"]])
    (tmp_path / "t.csv").write_bytes(written.getvalue().encode(encoding))
    (tmp_path / "p.jpg").write_bytes(FILES[2])
    rows = listing(tmp_path, encoding=encoding, delimiter=";")
    assert [(got(row), row["caption"]) for row in rows] == [(FILES[0], "café"), (FILES[2], "Ünder"), (FILES[1], "x")]
    if encoding != "utf-8-sig":
        with pytest.raises(UserError, match=r"(not UTF-8|found columns)(.|\n)*source\.encoding|found columns"):
            listing(tmp_path, delimiter=";")


def test_a_wrong_encoding_far_behind_is_told_too(tmp_path):
    lines = ["http://x/1.jpg,a"] * 400_000
    (tmp_path / "t.csv").write_bytes("\n".join(["url,caption", *lines]).encode() + b"\nhttp://x/2.jpg,caf\xe9\n")
    with pytest.raises(UserError, match=r"t\.csv: not UTF-8\n  next: say what it is: source\.encoding"):
        listing(tmp_path)
    with pytest.raises(UserError, match="it is not in the encoding 'ascii'"):
        listing(tmp_path, encoding="ascii")
    assert len(listing(tmp_path, encoding="latin-1")) == 400_001


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "klingon"}, "no text encoding is called 'klingon'"),
        ({"encoding": "base64"}, "no text encoding is called 'base64'"),
        ({"delimiter": ""}, "a delimiter is one ASCII character"),
        ({"delimiter": "||"}, "a delimiter is one ASCII character"),
        ({"delimiter": '"'}, "a delimiter is one ASCII character"),
        ({"index": -1}, "greater than or equal to 0"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Table(path="t.csv", **fields)


def test_images_as_text_in_a_compressed_file_have_no_place(tmp_path):
    for name, text in (
        ("t.jsonl.gz", json.dumps({"image": b64(FILES[0])})),
        ("t.csv.gz", f"image\n{b64(FILES[0])}\n"),
    ):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        with pytest.raises(UserError, match=r"no byte ranges\n  next: unpack it: gunzip .*\.gz"):
            listing(tmp_path / name)


def test_other_columns_with_images_stay_out_of_the_record(tmp_path):
    big = SPELLINGS["data URI"](np.random.default_rng(0).bytes(2000))
    record = {"url": "http://x/1.jpg", "thumb": big, "n": 1, "deep": {"thumb": [big, "kept"]}}
    (tmp_path / "t.jsonl").write_text(json.dumps(record))
    (row,) = listing(tmp_path / "t.jsonl")
    assert json.loads(row["sidecar"]) == {"thumb": None, "n": 1, "deep": {"thumb": [None, "kept"]}}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "t.parquet")
    (row,) = listing(tmp_path / "t.parquet")
    assert json.loads(row["sidecar"]) == {"thumb": None, "n": 1, "deep": {"thumb": [None, "kept"]}}


def test_text_of_more_bytes_than_a_row_may_have(tmp_path):
    write(tmp_path / "t.jsonl", [b64(FILES[0]), SPELLINGS["data URI"](FILES[0])], "jsonl")
    write(tmp_path / "t.parquet", [b64(FILES[0])], "parquet")
    rows = listing(tmp_path / "t.jsonl") + listing(tmp_path / "t.parquet")
    assert {Content(Door(["/"], len(FILES[0]))).fetch(row) for row in rows} == {FILES[0]}
    for row in rows:
        with pytest.raises(TooLarge):
            Content(Door(["/"], len(FILES[0]) - 1)).fetch(row)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_an_empty_text_among_links(tmp_path, kind):
    write(tmp_path / f"t.{kind}", ["http://x/1.jpg", "", "http://x/2.jpg"], kind)
    rows = listing(tmp_path / f"t.{kind}")
    assert got(rows[1]) == "no image in this row: column 'image' is empty"
    assert [rows[n]["uri"] for n in (0, 2)] == ["http://x/1.jpg", "http://x/2.jpg"]


# ---- lists

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LISTS = [[FILES[0], FILES[1]], [], None, [FILES[2]], [None, FILES[3]], [FILES[4]] * 3]


def lists_of(kind: str) -> pa.Array:
    if kind == "bytes":
        return pa.array(LISTS, pa.list_(pa.binary()))
    if kind == "large":
        return pa.array(LISTS, pa.large_list(pa.large_binary()))
    structs = [one if one is None else [{"bytes": raw, "path": f"{n}"} for n, raw in enumerate(one)] for one in LISTS]
    if kind == "struct":
        return pa.array(structs, pa.list_(STRUCT))
    return pa.array([one if one is None else [raw and b64(raw) for raw in one] for one in LISTS], pa.list_(pa.string()))


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", ["bytes", "large", "struct", "text"])
def test_a_row_per_image_of_a_list(tmp_path, kind, form):
    (tmp_path / "0").write_bytes(b"beside")
    table = pa.table({"id": list("abcdef"), "images": lists_of(kind), "text": list("ABCDEF")})
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        pq.write_table(table, path, row_group_size=4)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    rows = {row["key"]: row for row in listing(path, key="id", image="images")}
    assert list(rows) == ["a/0", "a/1", "b", "c", "d/0", "e/0", "e/1", "f/0", "f/1", "f/2"]
    assert [got(rows[key]) for key in ("a/0", "a/1", "d/0", "e/1", "f/2")] == [*FILES[:4], FILES[4]]
    assert {rows[f"f/{n}"]["caption"] for n in range(3)} == {"F"} and not rows["a/0"]["sidecar"]
    assert got(rows["b"]) == "no image in the list: column 'images'"
    assert got(rows["c"]) == "the list of images is null: column 'images'"
    if kind == "struct":
        assert got(rows["e/0"]) == b"beside"
    else:
        assert "null" in got(rows["e/0"]) or "is empty" in got(rows["e/0"])
    second = {row["key"]: got(row) for row in listing(path, key="id", image="images", index=1)}
    assert list(second) == list("abcdef") and second["a"] == FILES[1] and second["e"] == FILES[3]
    assert second["d"] == "no image in the list: column 'images', index 1"
    (one, *_) = listing(path, image="images")
    assert one["key"] == f"t.{form}#0/0"


def test_a_listing_of_lists_with_paths_reads_no_image(tmp_path):
    raw = [[np.random.default_rng(n).bytes(50_000)] * 2 for n in range(6)]
    cells = [[{"bytes": one, "path": "x.jpg"} for one in many] for many in raw]
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"images": pa.array(cells, pa.list_(STRUCT))}), path, compression="none", use_dictionary=False
    )
    data, at = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata.row_group(0).column(0)
    begin = at.data_page_offset
    data[begin : begin + at.total_compressed_size] = b"\xff" * at.total_compressed_size
    path.write_bytes(data)
    assert len(listing(path)) == 12


def test_an_index_wants_lists(tmp_path):
    pq.write_table(pa.table({"jpg": [b"a"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"expected lists in 'jpg'\n  next: take source\.index out"):
        listing(tmp_path, index=0)


# ---- records

LLAVA = [
    {"id": "0", "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A text."}]},
    {"id": "1", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}]},
    {"id": "2", "image": ["coco/1.jpg", "coco/2.jpg"], "conversations": []},
    {"id": "3", "image": None},
]


@pytest.mark.parametrize("layout", ["compact", "indented", "lines", "array on a line", "bom"])
def test_llava(tmp_path, layout, monkeypatch):
    (tmp_path / "coco").mkdir()
    for n in (1, 2):
        (tmp_path / "coco" / f"{n}.jpg").write_bytes(FILES[n])
    text = {
        "compact": json.dumps(LLAVA),
        "indented": "\n  " + json.dumps(LLAVA, indent=2) + "\n",
        "lines": "".join(json.dumps(one) + "\n" for one in LLAVA),
        "array on a line": json.dumps(LLAVA[:2]) + "\n" + json.dumps(LLAVA[2:]) + "\n",
        "bom": "\ufeff" + json.dumps(LLAVA),
    }[layout]
    for name in ("t.json", "t.jsonl"):
        if layout == "array on a line" and name == "t.json":
            continue  # two values in one .json are none
        (tmp_path / name).write_text(text, encoding="utf-8")
        rows = {row["key"]: row for row in listing(tmp_path / name, key="id")}
        assert list(rows) == ["0", "1", "2/0", "2/1", "3"]
        assert [got(rows[key]) for key in ("1", "2/0", "2/1")] == [FILES[1], FILES[1], FILES[2]]
        assert got(rows["0"]) == got(rows["3"]) == "no image in this row: column 'image' is empty"
        assert json.loads(rows["1"]["sidecar"]) == {"conversations": LLAVA[1]["conversations"]}
    assert len(listing(tmp_path / name, image="image")) == 5


def test_a_long_array_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "STEP", 5000)
    rows = [{"image": f"{n}.jpg", "caption": f"<{'x' * (n % 700)}>\n{n}"} for n in range(3000)]
    for indent in (None, 3):
        (tmp_path / "t.json").write_text(json.dumps(rows, indent=indent))
        found = listing(tmp_path / "t.json")
        assert [row["caption"] for row in found] == [row["caption"] for row in rows]
        assert found[2999]["key"] == "t.json#2999"


@pytest.mark.parametrize(
    ("text", "keys", "told"),
    [
        (
            '[{"image": "a.jpg"}, 7, {"image": "b.jpg"}]',
            ["#0", "#2", "#1"],
            "a record that is no object: record 1: int",
        ),
        ('[{"image": "a.jpg"}, {"x": 1, "x": 2}]', ["#0", "#1"], "a name twice in one object: record 1: 'x'"),
        (
            '[{"image": "a.jpg"}, {"image": "b',
            ["#0", "#1-"],
            "the array is damaged, what follows is not read: record 1",
        ),
        ('[{"image": "a.jpg"}', ["#0", "#1-"], "the array is damaged, what follows is not read: record 1"),
        ('[{"image": "a.jpg"}, ' + "[" * 99 + "]" * 99 + "]", ["#0", "#1"], "deeper than 64 levels: record 1"),
        ('[{"image": "a.jpg"}, {"image": "b.jpg"}] [1]', ["#0", "#1", "#2-"], "text behind the end of the array"),
        ('[{"image": "a.jpg"} {"image": "b.jpg"}]', ["#0", "#1-"], "the array is damaged"),
    ],
)
def test_damage_in_an_array_costs_what_it_must(tmp_path, text, keys, told):
    (tmp_path / "t.json").write_text(text)
    rows = listing(tmp_path)
    assert [row["key"] for row in rows] == [f"t.json{key}" for key in keys]
    assert got(rows[-1]).startswith(told)


def test_json_beside_tables_is_about_them(tmp_path):
    pq.write_table(pa.table({"jpg": [b"a"]}), tmp_path / "a.parquet")
    (tmp_path / "info.json").write_text('{"about": "it"}')
    source = Table(path=str(tmp_path))
    assert list(source.units()) == ["a.parquet"] and source.passed_over() == {"files are no shards": {".json": 1}}
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "info.json").write_text('[{"image": "x.jpg"}]')
    assert [row["key"] for row in listing(tmp_path)] == ["info.json#0"]


@pytest.mark.parametrize("fields", [{"encoding": "cp1252"}, {"delimiter": ";"}])
def test_dialects_are_about_csv(tmp_path, fields):
    (tmp_path / "t.jsonl").write_text('{"image": "x.jpg"}\n')
    with pytest.raises(UserError, match="encoding and delimiter are about CSV files"):
        listing(tmp_path, **fields)


def test_a_packed_table_under_another_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"url\nhttp://x/1.jpg\n"))
    with pytest.raises(
        UserError, match=r"\.gz inside, which its name does not say\n  next: unpack it: mv .* && gunzip"
    ):
        listing(tmp_path / "a.csv")
    (tmp_path / "b.csv.gz").write_bytes(b"url\nhttp://x/1.jpg\n")
    with pytest.raises(UserError, match=r"its name says \.gz, and it is not that inside\n  next: rename it"):
        listing(tmp_path / "b.csv.gz")


# ---- what one bad row costs


@pytest.mark.parametrize("where", ["text", "key", "nested", "url", "dictionary"])
def test_text_that_is_no_utf8_costs_its_row(tmp_path, where):
    bad = pa.Array.from_buffers(
        pa.string(),
        60,
        pa.array([b"t" * 3 if n not in (3, 41) else b"ca\xe9" for n in range(60)], pa.binary()).buffers(),
    )
    good = pa.array([f"g{n}" for n in range(60)])
    columns = {"url": pa.array([f"http://x/{n}.jpg" for n in range(60)]), "id": good, "text": good}
    if where == "nested":
        columns["more"] = pa.StructArray.from_arrays([bad, good], names=["a", "b"])
    elif where == "dictionary":
        columns["text"] = bad.dictionary_encode()
    else:
        columns[{"key": "id"}.get(where, where)] = bad
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=25)
    rows = listing(tmp_path, key=None if where == "key" else "id", image="url")
    broken = {n for n, row in enumerate(rows) if row["member"]}
    assert broken == {3, 41} and len(rows) == 60
    assert got(rows[3]).startswith("a text is not UTF-8: column")
    assert rows[4]["uri"] == ("ttt" if where == "url" else "http://x/4.jpg") or where == "url"


def test_a_key_twice_in_one_table(tmp_path):
    keys = ["x", "y", "x", "x@2", "x", "y"]
    pq.write_table(pa.table({"id": keys, "url": [f"http://x/{n}.jpg" for n in range(6)]}), tmp_path / "t.parquet")
    rows = {row["key"]: row for row in listing(tmp_path, key="id")}
    assert list(rows) == ["x", "y", "x@3", "x@2", "x@4", "y@2"]
    assert [rows[key]["uri"] for key in ("x", "y", "x@2")] == [f"http://x/{n}.jpg" for n in (0, 1, 3)]
    assert got(rows["x@3"]) == (
        "a key stands twice in its shard; this is the second: 'x' is http://x/0.jpg and http://x/2.jpg"
    )
