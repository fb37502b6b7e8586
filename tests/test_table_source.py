"""Source `table`: what of a Parquet, Arrow, CSV or JSONL file becomes key, bytes, caption and sidecar."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
import math
import time

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextloom.content import Content, ContentError
from nextloom.curation.sources import delimited, jsontext
from nextloom.curation.sources.table import Table
from nextloom.errors import UserError
from nextloom.untrusted import Door

ANYWHERE = Door(["/"])


def listing(path, **fields) -> list[dict]:
    source = Table(path=str(path), **fields)
    return [row for unit in source.units() for row in source.items(unit, {}).to_pylist()]


def failure(row: dict) -> str:
    with pytest.raises(ContentError) as error:
        Content(ANYWHERE).fetch(row)
    return f"{error.value}: {error.value.detail}" if error.value.detail else str(error.value)


def pictures(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(int(rng.integers(1, 400))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["parquet", "arrow stream", "arrow file", "feather"])
@pytest.mark.parametrize("struct", [False, True])
def test_bytes_stay_in_the_table_and_come_back(tmp_path, kind, struct):
    raw = pictures(1000)
    cells = pa.array([{"bytes": b, "path": f"{n}.jpg"} for n, b in enumerate(raw)]) if struct else pa.array(raw)
    data = pa.table({"n": range(1000), "picture": cells, "text": [f"t{n}" for n in range(1000)], "other": raw[::-1]})
    path = tmp_path / f"t.{kind.partition(' ')[0]}"
    if kind == "parquet":
        pq.write_table(data, path, row_group_size=64)
    elif kind == "feather":
        pa.feather.write_feather(data, path, chunksize=64)
    else:
        make = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
        with make(path, data.schema) as writer:
            writer.write_table(data, max_chunksize=64)
    rows, content = listing(path, image="picture", key="n"), Content(ANYWHERE)
    assert [content.fetch(row) for row in rows] == raw
    assert [row["key"] for row in rows] == [str(n) for n in range(1000)]
    assert [row["caption"] for row in rows] == [f"t{n}" for n in range(1000)]
    expected = {"picture": {"path": "7.jpg"}} if struct else None
    assert (rows[7]["sidecar"] and json.loads(rows[7]["sidecar"])) == expected
    assert content.fetch(rows[999]) == raw[999] and content.fetch(rows[3]) == raw[3]
    assert listing(path, image="picture")[5]["key"] == f"{path.name}#5"


def test_a_listing_reads_no_picture(tmp_path):
    raw = [np.random.default_rng(n).bytes(100_000) for n in range(20)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": range(20), "jpg": raw}), path, row_group_size=5, compression="none")
    data = bytearray(path.read_bytes())
    meta = pq.ParquetFile(path).metadata
    for group in range(meta.num_row_groups):  # what is not read may be garbage
        at = meta.row_group(group).column(1)
        begin = at.dictionary_page_offset or at.data_page_offset
        data[begin : begin + at.total_compressed_size] = b"\xff" * at.total_compressed_size
    path.write_bytes(data)
    rows = listing(path, key="id")
    assert [row["key"] for row in rows] == [str(n) for n in range(20)]
    with pytest.raises(Exception, match=r"(?i)page|thrift|parquet|read"):
        Content(ANYWHERE).fetch(rows[0])


VALUES = {
    "i": pa.array([1, None], pa.int64()),
    "u": pa.array([2**64 - 1, 0], pa.uint64()),
    "f": pa.array([math.nan, 0.1], pa.float64()),
    "g": pa.array([math.inf, -1e300], pa.float64()),
    "f32": pa.array([0.1, 16777216.0], pa.float32()),
    "b": pa.array([True, None]),
    "s": pa.array(['quote " back \\ tab \t bell \x07 nul \x00', "雪\u2028\n"]),
    "e": pa.array(["", None]),
    "d": pa.array([datetime.date(2024, 2, 29), None]),
    "ts": pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5, 600), None], pa.timestamp("us")),
    "tz": pa.array([datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), None], pa.timestamp("s", "UTC")),
    "dec": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(10, 2)),
    "dict": pa.array(["x", "y"]).dictionary_encode(),
    "l": pa.array([[1.5, math.nan], None]),
    "st": pa.array([{"a": 1, "t": datetime.datetime(2024, 1, 2)}, None]),
    "nul": pa.nulls(2),
}


def test_sidecar_keeps_values_as_they_are(tmp_path):
    pq.write_table(pa.table({"url": ["http://x/a", "http://x/b"], **VALUES}), tmp_path / "t.parquet")
    one, two = (json.loads(row["sidecar"], parse_constant=pytest.fail) for row in listing(tmp_path))
    assert list(one) == list(VALUES)
    assert one == {
        "i": 1, "u": 2**64 - 1, "f": None, "g": None, "f32": 0.1, "b": True,
        "s": 'quote " back \\ tab \t bell \x07 nul \x00', "e": "", "d": "2024-02-29",
        "ts": "2024-01-02T03:04:05.000600", "tz": "2024-01-02T00:00:00.000Z", "dec": 1.5, "dict": "x",
        "l": [1.5, None], "st": {"a": 1, "t": "2024-01-02T00:00:00"}, "nul": None,
    }  # fmt: skip
    assert two == dict.fromkeys(VALUES) | {
        "u": 0, "f": 0.1, "g": -1e300, "f32": 16777216.0, "s": "雪\u2028\n", "dict": "y"
    }  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.tuples(st.none() | st.text(), st.none() | st.floats(), st.text()), min_size=1, max_size=20))
def test_json_of_columns_is_what_the_json_module_reads(values):
    names = ["a", 'na"me', "雪"]
    table = pa.table(
        {name: pa.chunked_array([list(column)]) for name, column in zip(names, zip(*values, strict=True), strict=True)}
    )
    for text, value in zip(jsontext.objects(table).to_pylist(), values, strict=True):
        plain = [v if not isinstance(v, float) or math.isfinite(v) else None for v in value]
        assert json.loads(text) == dict(zip(names, plain, strict=True))


def test_csv_with_a_real_parser(tmp_path):
    records = [
        ["id", "url", "caption", "n", "zip"],
        ["a", "http://x/1.jpg", 'two\nlines, a comma and "quotes"', "1.50", "00712"],
        ["b", "pics/2 ü.jpg", "", "-3e5", ""],
        ["c", "/abs/3.jpg", "x", "1e", "7"],
    ]
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(records)
    a, b, c = listing(tmp_path / "t.csv", key="id")
    assert (a["key"], a["uri"], a["caption"]) == ("a", "http://x/1.jpg", 'two\nlines, a comma and "quotes"')
    assert a["sidecar"] == '{"n": 1.50, "zip": "00712"}', "a number keeps its spelling, a postcode its zeros"
    assert (b["uri"], b["caption"], b["sidecar"]) == (f"{tmp_path}/pics/2 ü.jpg", None, '{"n": -3e5, "zip": null}')
    assert (c["uri"], json.loads(c["sidecar"])) == ("/abs/3.jpg", {"n": "1e", "zip": 7})
    other = listing(tmp_path / "t.csv", key="id", base=str(tmp_path / "elsewhere"), columns=["zip"])
    assert other[1]["uri"] == f"{tmp_path}/elsewhere/pics/2 ü.jpg" and other[0]["sidecar"] == '{"zip": "00712"}'


@pytest.mark.parametrize("block", [64, 1 << 20])
def test_broken_csv_records_are_failed_rows_and_shift_no_number(tmp_path, monkeypatch, block):
    monkeypatch.setattr(delimited, "BLOCK", block)
    monkeypatch.setattr(delimited, "END", 8)
    lines = [f"http://x/{n}.jpg,text {n}" for n in range(40)]
    for bad, text in ((0, "lone"), (7, "a,b,c,d"), (39, "last")):
        lines[bad] = text
    (tmp_path / "t.csv").write_text("url,caption\n" + "\n".join(lines) + "\n")
    rows = {row["key"]: row for row in listing(tmp_path / "t.csv")}
    assert set(rows) == {f"t.csv#{n}" for n in range(40)}
    for n in range(40):
        if n not in (0, 7, 39):
            assert rows[f"t.csv#{n}"]["uri"] == f"http://x/{n}.jpg"
    assert failure(rows["t.csv#7"]) == "not as many fields as the header: 4 fields, expected 2: a,b,c,d"
    assert "1 fields" in failure(rows["t.csv#0"]) and failure(rows["t.csv#39"]).endswith("last")


@pytest.mark.parametrize(
    ("text", "keys", "told"),
    [
        ('url,caption\na.jpg,x\nb.jpg,"y\nc.jpg,z\n', 1, "y\nc.jpg,z"),
        ('url,caption\na.jpg,x\nb.jpg,"y', 1, "y"),
        ('url,caption\r\na.jpg,x\r\n"b.jpg,y\r\nc.jpg,z\r\n', 1, '"b.jpg,y\r\nc.jpg,z'),
        ('url\na.jpg\n"b.jpg\n', 1, "b.jpg"),
        ('url\na.jpg\n"b.jpg"', 2, None),
        ('url,caption\na.jpg,"x"\nb.jpg,"y\n"\n', 2, None),
        ("url,caption\n", 0, None),
        ("\n", 0, None),
        ("", 0, None),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_quote_that_is_not_closed_is_a_failed_row(tmp_path, text, keys, told, encoding):
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    rows = listing(tmp_path / "t.csv", encoding=encoding)
    assert [row["key"] for row in rows] == [f"t.csv#{n}" for n in range(keys + bool(told))]
    assert [row["key"] for row in rows if row["member"]] == [f"t.csv#{keys}"] * bool(told)
    if told:
        assert failure(rows[-1]) == f"a quote is not closed, so what follows is not read: {told}"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_record_of_another_length_that_is_no_utf8_is_told_as_such(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"url,caption\na.jpg,x,caf\xe9\nb.jpg,y\n")
    with pytest.raises(UserError, match=r"not UTF-8\n  next: .*source.encoding: cp1252"):
        listing(tmp_path / "t.csv")


def test_too_many_records_of_another_length_are_refused_with_the_reason(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"url,caption\n" + b"x\n" * 200_000))
    with pytest.raises(UserError, match="more than 100,000 rows in a file of"):
        listing(tmp_path / "t.csv.gz")


def test_a_quote_that_is_not_closed_in_the_header_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text('url,"caption\na.jpg,x\n')
    with pytest.raises(UserError, match="the first line: a quote is not closed"):
        listing(tmp_path / "t.csv")


def test_arrow_files_as_polars_writes_them(tmp_path):
    """Text in views, plain and in categories, and more of it than is turned into rows at once."""
    raw = pictures(6)
    data = pl.DataFrame(
        {
            "jpg": [raw[n % 6] for n in range(600)],
            "caption": [f"{n} " + "x" * 40_000 for n in range(600)],
            "kind": pl.Series(["a", "b", None] * 200, dtype=pl.Categorical),
            "tags": pl.Series([["a", "b"], [], None] * 200, dtype=pl.List(pl.Categorical)),
            "more": [{"note": "long enough for a view"}, None] * 300,
        }
    )
    data.write_ipc(tmp_path / "t.feather")
    rows = listing(tmp_path / "t.feather")
    assert len(rows) == 600 and [row["caption"].split()[0] for row in rows] == [str(n) for n in range(600)]
    assert json.loads(rows[0]["sidecar"]) == {
        "kind": "a", "tags": ["a", "b"], "more": {"note": "long enough for a view"}
    }  # fmt: skip
    assert json.loads(rows[5]["sidecar"]) == {"kind": None, "tags": None, "more": None}
    assert Content(ANYWHERE).fetch(rows[599]) == raw[599 % 6]
    names = pl.Series(["a", "b"], dtype=pl.Categorical)
    pl.DataFrame({"url": names, "id": names, "text": names}).write_ipc(tmp_path / "c.feather")
    assert [(row["key"], row["caption"]) for row in listing(tmp_path / "c.feather", key="id")] == [
        ("a", "a"),
        ("b", "b"),
    ]
    pl.DataFrame({"images": [["a.jpg", "b.jpg"], []], "text": ["x", "y"]}).write_ipc(tmp_path / "l.feather")
    assert [row["caption"] for row in listing(tmp_path / "l.feather")] == ["x", "x", "y"]


def test_jsonl_line_by_line(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"id": 1, "url": "HTTPS://x/1.jpg", "text": " one ", '
        b'"score": 4.50, "tags": ["a"], "nan": NaN, "inf": 1e999}',
        b"",
        b'{"id": "2", "url": "sub/2.jpg", "extra": "only here", "text": ["no", "text"]}',
        b'{"id": 3, "url": ',
        b"[1]",
        b'{"id": 4, "url": "caf\xe9"}',
        b'{"id": 5, "text": "no url"}',
        b'{"url": "x.jpg"}',
        rb'{"id": 8, "url": "y.jpg", "text": "\ud83d", "raw": "\ud83d"}',
    ]
    with gzip.open(tmp_path / "t.jsonl.gz", "wb") as file:
        file.write(b"\n".join(lines))
    rows = {row["key"]: row for row in listing(tmp_path, key="id")}
    assert list(rows) == ["1", "2", "5", "t.jsonl.gz#7", "8", "t.jsonl.gz#3", "t.jsonl.gz#4/0", "t.jsonl.gz#5"]
    assert (rows["1"]["uri"], rows["1"]["caption"]) == ("https://x/1.jpg", "one")
    assert json.loads(rows["1"]["sidecar"]) == {"score": 4.5, "tags": ["a"], "nan": None, "inf": None}
    assert rows["2"]["uri"] == f"{tmp_path}/sub/2.jpg" and rows["2"]["caption"] is None
    assert json.loads(rows["2"]["sidecar"]) == {"extra": "only here", "text": ["no", "text"]}
    assert json.loads(rows["8"]["sidecar"]) == {"raw": "\\ud83d"} and rows["8"]["caption"] == "\\ud83d"
    assert {key: failure(row) for key, row in rows.items() if row["member"]} == {
        "5": "no image in this row: column 'url' is empty",
        "t.jsonl.gz#7": "the key is null: column 'id'",
        "t.jsonl.gz#3": "not JSON: line 4: Expecting value: line 1 column 17 (char 16)",
        "t.jsonl.gz#4/0": "a record that is no object: line 5: int",
        "t.jsonl.gz#5": "a text is not UTF-8: line 6, byte 21",
    }


def test_null_bytes_are_failed_rows_or_a_path_beside_them(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"beside")
    cells = [{"bytes": b"a", "path": None}, {"bytes": None, "path": "b.jpg"}, {"bytes": None, "path": None}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name, table in (
        ("struct", pa.table({"image": pa.array(cells, kind)})),
        ("plain", pa.table({"image": pa.array([b"a", None], pa.binary())})),
        ("never", pa.table({"image": pa.array([None, None], pa.binary())})),
    ):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    a, b, c, d = listing(tmp_path / "struct.parquet")
    assert Content(ANYWHERE).fetch(a) == b"a" and Content(ANYWHERE).fetch(b) == b"beside"
    assert failure(c) == failure(d) == "bytes are null: column 'image'"
    a, b = listing(tmp_path / "plain.parquet")
    assert Content(ANYWHERE).fetch(a) == b"a" and failure(b) == "bytes are null: column 'image'"
    assert [failure(row) for row in listing(tmp_path / "never.parquet")] == ["bytes are null: column 'image'"] * 2


@pytest.mark.parametrize(
    ("columns", "fields", "message"),
    [
        ({"a": [1]}, {}, r"found columns a \(int64\); expected one of bytes"),
        ({"x": [b"1"], "y": [b"2"]}, {}, "x and y may be the picture\n  next: say which: source.image"),
        ({"url": ["1"], "path": ["2"]}, {}, "url and path may be the picture"),
        ({"url": ["1"]}, {"image": "img"}, r"found columns url \(string\); expected the image in 'img'"),
        ({"url": ["1"]}, {"key": "id"}, "expected the key in 'id'\n  next: correct source.key"),
        ({"url": ["1"], "k": [0.5]}, {"key": "k"}, "expected text or whole numbers in 'k'"),
        ({"url": ["1"], "c": [1]}, {"caption": "c"}, "expected text in 'c'"),
        ({"url": [1]}, {"image": "url"}, "expected bytes, paths or URLs in 'url'"),
        ({"url": ["1"]}, {"columns": ["zz"]}, "expected zz too"),
    ],
)
def test_unknown_shapes_are_refused_with_what_was_found(tmp_path, columns, fields, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=message):
        listing(tmp_path, **fields)


def test_a_broken_or_other_shard_costs_one_row(tmp_path):
    pq.write_table(pa.table({"jpg": [b"a"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    pq.write_table(pa.table({"n": [1]}), tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_bytes(b"url\ncaf\xe9\n")
    (tmp_path / "e.jsonl").write_bytes(b"")
    rows = {row["key"]: row for row in listing(tmp_path)}
    assert list(rows) == ["a.parquet#0", "b.parquet", "c.parquet", "d.csv"]
    assert failure(rows["b.parquet"]).startswith("cannot be listed") or "cannot be read" in failure(rows["b.parquet"])
    assert "found columns n (int64)" in failure(rows["c.parquet"]) and "UTF" in failure(rows["d.csv"])


def test_rows_of_links_keep_their_version_when_the_table_grows(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("url,caption\nhttp://x/1,one\nhttp://x/2,two\n")
    before = {row["key"]: row["version"] for row in listing(path)}
    path.write_text("url,caption\nhttp://x/1,one\nhttp://x/2,TWO\nhttp://x/3,three\n")
    after = {row["key"]: row["version"] for row in listing(path)}
    assert after["t.csv#0"] == before["t.csv#0"] and after["t.csv#1"] != before["t.csv#1"] and len(after) == 3
    other = {row["key"]: row["version"] for row in listing(path, image="url", caption="url")}
    assert other["t.csv#0"] != after["t.csv#0"], "another caption is another row"


def test_another_caption_column_makes_other_rows_of_cells(tmp_path):
    pq.write_table(pa.table({"jpg": [b"a"], "alt": ["x"], "long": ["y"]}), tmp_path / "t.parquet")
    (alt,), (long,) = (listing(tmp_path, caption=name) for name in ("alt", "long"))
    assert alt["key"] == long["key"] and alt["version"] != long["version"]
    assert Content(ANYWHERE).fetch(alt) == Content(ANYWHERE).fetch(long) == b"a"


def test_a_million_rows(tmp_path):
    count = 1_000_000
    numbers = pa.array(np.arange(count))
    urls = pa.compute.binary_join_element_wise("http://x/", numbers.cast(pa.string()), ".jpg", "")
    table = pa.table({"id": numbers, "url": urls, "text": urls, "score": np.arange(count) / 7})
    pq.write_table(table, tmp_path / "t.parquet")
    source = Table(path=str(tmp_path / "t.parquet"), key="id")
    (unit,) = source.units()
    start = time.process_time()
    items = source.items(unit, {})
    print(f"{count:,} rows listed in {time.process_time() - start:.1f} CPU-seconds")
    assert items.num_rows == count
    last = items.slice(count - 1).to_pylist()[0]
    assert (last["key"], last["uri"], json.loads(last["sidecar"])) == (
        "999999",
        "http://x/999999.jpg",
        {"score": 999999 / 7},
    )
