"""Every file of data/cases_images with the outcome that is right for it: rows, error rows, refusals, notices.

The files are small tables, tars and images that users of curation tools stumble over. Each line of `TABLE` is one
file and what has to come of it; none of them may be left out.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nextloom import pixels
from nextloom.content import Content
from nextloom.curation.sources.files import Files
from nextloom.curation.sources.table import Table
from nextloom.curation.sources.webdataset import WebDataset
from nextloom.errors import UserError
from nextloom.store.notices import lines, notices_of

CASES = Path(__file__).parent / "data" / "cases_images"
KINDS = {"files": Files, "table": Table, "webdataset": WebDataset}
OTHERS = {"README.md", "photo.jpg", "noext", "f_dots.tar", "g_gz.tar"}
"""What tests below name on their own: the list of cases, the image that tables name, and three cases."""


def listed(kind: str, name: str, **fields) -> tuple[dict[str, tuple], list[str]]:
    """Key -> (what comes of it, caption) of each row, and notices; an image is its shape, an error its text."""
    source = KINDS[kind](path=str(CASES / name), **fields)
    out, notices = {}, []
    content = Content(source.door())
    for unit in source.units():
        items = source.items(unit, {})
        notices.append(notices_of(items))
        for row in items.to_pylist():
            assert len(str(row)) < 1000, "no image lies in the row table"
            try:
                shape = pixels.decode(content.fetch(row)).shape
            except Exception as error:
                shape = f"{type(error).__name__}: {error}; {getattr(error, 'detail', None)}"
            out[row["key"]] = (shape, row["caption"])
    return out, lines(notices)


SMALL = (80, 96, 3)
"""Shape of the photograph most of them are of."""
B64 = {"a": (SMALL, "one"), "b": (SMALL, "two"), "c": (SMALL, "three")}
NOT_UTF8 = "ContentError: a text is not UTF-8; column 'text'"
TABLE = [
    ("17_b64.parquet", {"key": "key"}, B64),
    ("52_datauri.jsonl", {"key": "key"}, {"k0": (SMALL, "caption 0"), "k1": (SMALL, "caption 1")}),
    (
        "06_listimg.parquet",
        {},
        {
            "06_listimg.parquet#0/0": (SMALL, "two pictures"),
            "06_listimg.parquet#0/1": (SMALL, "two pictures"),
            "06_listimg.parquet#1/0": (SMALL, "one"),
            "06_listimg.parquet#2": ("ContentError: no image in the list; column 'images'", "none"),
            "06_listimg.parquet#3": ("ContentError: the list of images is null; column 'images'", "null"),
        },
    ),
    (
        "06_listimg.parquet",
        {"index": 0},
        {
            "06_listimg.parquet#0": (SMALL, "two pictures"),
            "06_listimg.parquet#1": (SMALL, "one"),
            "06_listimg.parquet#2": ("ContentError: no image in the list; column 'images', index 0", "none"),
            "06_listimg.parquet#3": ("ContentError: the list of images is null; column 'images'", "null"),
        },
    ),
    ("43_array.json", {}, {"43_array.json#0": (SMALL, "a")}),
    ("44_arr.jsonl", {}, {"44_arr.jsonl#0/0": (SMALL, "a"), "44_arr.jsonl#0/1": (SMALL, None)}),
    ("23_latin.csv", {"encoding": "latin-1"}, {"23_latin.csv#0": (SMALL, "café")}),
    ("24_utf16.csv", {"encoding": "utf-16", "delimiter": "\t"}, {"24_utf16.csv#0": (SMALL, "x")}),
    (
        "10_nonutf8.parquet",
        {},
        {
            "10_nonutf8.parquet#0": (SMALL, "good"),
            "10_nonutf8.parquet#1": (NOT_UTF8, None),
            "10_nonutf8.parquet#2": (SMALL, "fine"),
        },
    ),
    (
        "14_keydup.parquet",
        {"key": "key"},
        {
            "x": (SMALL, None),
            "y": (SMALL, None),
            "x@2": (
                "ContentError: a key stands twice in its shard; this is the second; 'x' is image#0 and image#2",
                None,
            ),
        },
    ),
    (
        "47_dupkey.jsonl",
        {},
        {"47_dupkey.jsonl#0": ("ContentError: a name twice in one object; line 1: 'caption'", None)},
    ),
]


@pytest.mark.parametrize(("name", "fields", "expected"), TABLE, ids=[f"{n} {f}" for n, f, _ in TABLE])
def test_tables(name, fields, expected):
    assert listed("table", name, **fields)[0] == expected


REFUSED = [
    ("23_latin.csv", {}, r"not UTF-8\n  next: .*source.encoding: cp1252"),
    ("24_utf16.csv", {}, r"utf-16\n  next: set source.encoding: utf-16"),
    ("24_utf16.csv", {"encoding": "utf-16"}, r'next: set source.delimiter: "\\t"'),
    ("05_dupcols.parquet", {}, r"two columns have one name: 'text'\n  next: rename"),
    ("26_dupcol.csv", {}, r"two columns have one name: 'caption'\n  next: rename"),
]


@pytest.mark.parametrize(("name", "fields", "message"), REFUSED)
def test_refused_with_the_name_and_an_advice(name, fields, message):
    with pytest.raises(UserError, match=message):
        listed("table", name, **fields)


IMAGES = {
    "a.jfif": SMALL,
    "c.jpe": SMALL,
    "x.mpo": SMALL,
    "x.apng": (80, 120, 3),
    "e.jp2": (80, 120, 3),
    "p.ppm": (80, 120, 3),
}
"""Images under other suffixes, with their shapes (of an animation and an MPO the first frame)."""


def test_images_of_all_suffixes_are_rows_and_the_rest_is_told():
    rows, notices = listed("files", "")
    for name, shape in IMAGES.items():
        assert rows[name] == (shape, None)
    assert "noext" not in rows
    told = next(line for line in notices if "files are no rows" in line)
    assert "1 without suffix" in told and "5 .parquet" in told and "suffixes: any" in told
    sniffed, notices = listed("files", "", suffixes="any")
    assert sniffed == rows | {"noext": (SMALL, None)}
    assert "without suffix" not in " ".join(notices)


def test_tar_of_dotted_names():
    rows, notices = listed("webdataset", "f_dots.tar", key="last_dot")
    assert {key: caption for key, (_, caption) in rows.items()} == {
        "235 Track 2.0 (Clean)": "a track",
        "IMG.2019.01": "a picture",
        "plain": "plain",
    }
    assert all(shape == SMALL for shape, _ in rows.values()) and not notices
    rows, notices = listed("webdataset", "f_dots.tar")
    assert rows["235 Track 2"][1] is None and rows["plain"][1] == "plain"
    assert notices == [
        "2 captions were looked for and not read: 2 in names with a dot in front of the suffix (key: last_dot of "
        "{op: webdataset})"
    ]
    source = WebDataset(path=str(CASES / "f_dots.tar"))
    (unit,) = source.units()
    sidecars = {row["key"]: row["sidecar"] for row in source.items(unit, {}).to_pylist()}
    assert sidecars["235 Track 2"] == '{"passed_over": ["235 Track 2.0 (Clean).txt"]}'


def test_gzip_inside_a_tar_is_refused_with_a_command_that_works(tmp_path):
    path = tmp_path / "it's g.tar"
    shutil.copy(CASES / "g_gz.tar", path)
    source = WebDataset(path=str(path))
    with pytest.raises(UserError, match="a compressed tar has no byte ranges") as refused:
        source.items(next(iter(source.units())), {})
    command = refused.value.next.partition("unpack it: ")[2]
    subprocess.run(command, shell=True, check=True, timeout=60)
    rows = source.items(next(iter(source.units())), {}).to_pylist()
    assert rows and all(pixels.decode(Content(source.door()).fetch(row)).ndim == 3 for row in rows)


SAMPLES = {"i32_small.tif": "32-bit", "i32_big.tif": "32-bit", "int16.tif": "16-bit"}
"""Integer TIFFs, and what an error row says of their samples."""


@pytest.mark.parametrize("name", SAMPLES)
def test_an_integer_tiff_of_another_kind_is_an_error_that_names_its_samples(name):
    with pytest.raises(pixels.PictureError) as refused:
        pixels.decode((CASES / name).read_bytes())
    assert SAMPLES[name] in f"{refused.value} {getattr(refused.value, 'detail', '')}"


def test_16_bit_grey_is_white_where_it_is_transparent():
    rgb = pixels.decode((CASES / "g16_trns.png").read_bytes())
    assert (rgb[0, 0] == 255).all() and len(np.unique(rgb)) > 1


def test_every_case_is_tested():
    tested = {name for name, _, _ in TABLE} | {name for name, _, _ in REFUSED} | IMAGES.keys() | SAMPLES.keys()
    assert {path.name for path in CASES.iterdir()} == tested | OTHERS | {"g16_trns.png"}
