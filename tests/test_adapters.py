"""Named datasets: their published columns are read, others are refused with what was found."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nextloom.content import Content
from nextloom.errors import UserError
from nextloom.pipelines.registry import find_source
from nextloom.untrusted import Door

ANYWHERE = Door(["/"])

LAION = {
    "URL": ["http://x/1.jpg", "HTTP://x/2.jpg"],
    "TEXT": ["one", None],
    "WIDTH": pa.array([640, 800], pa.int32()),
    "HEIGHT": pa.array([480, 600], pa.int32()),
    "similarity": [0.31, float("nan")],
    "hash": [-5, 7],
    "pwatermark": [0.02, 0.9],
    "punsafe": [0.001, 0.5],
    "aesthetic": [6.5, 7.1],
}
COYO = {
    "id": [4896263451343, 1425929344479],
    "url": ["http://x/1.jpg", "http://x/2.jpg"],
    "text": ["one", "two"],
    "width": [1, 2],
    "height": [3, 4],
    "image_phash": ["d8d8f8f8", "fbe8"],
    "text_length": [3, 3],
    "word_count": [1, 1],
    "num_tokens_bert": [1, 1],
    "num_tokens_gpt": [1, 1],
    "num_faces": [0, 2],
    "clip_similarity_vitb32": [0.3, 0.2],
    "clip_similarity_vitl14": [0.25, 0.15],
    "nsfw_score_opennsfw2": [0.01, 0.02],
    "nsfw_score_gantman": [0.01, 0.02],
    "watermark_score": [0.1, 0.9],
    "aesthetic_score_laion_v2": [5.1, 4.2],
}
MEGALITH = {"url": ["http://x/m.jpg"], "url_highres": ["http://x/h.jpg"], "url_source": ["http://x/page"]}
COMMON = {
    "photoid": [7, 9],
    "jpg": [b"jpeg 7", b"jpeg 9"],
    "caption": ["A+boat%2C+at+50%25", None],
    "blip2_caption": ["a boat+", "a cat"],
    "licenseurl": ["https://creativecommons.org/licenses/by/2.0/"] * 2,
    "url": ["http://x/7.jpg", "http://x/9.jpg"],
}
PD12M = {
    "id": ["a1", "b2"],
    "url": ["http://x/1.jpg", "http://x/2.jpg"],
    "caption": ["one", "two"],
    "width": [1, 2],
    "height": [3, 4],
    "mime_type": ["image/jpeg"] * 2,
    "hash": ["md5a", "md5b"],
    "license": ["CC0"] * 2,
    "source": ["museum"] * 2,
}


def listing(tmp_path, op, columns, **fields):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = find_source(op, "source.op")(path=str(tmp_path), **fields)
    return [row for unit in source.units() for row in source.items(unit, {}).to_pylist()]


@pytest.mark.parametrize(
    ("op", "columns", "keys", "uris", "captions", "used"),
    [
        (
            "laion",
            LAION,
            ["t.parquet#0", "t.parquet#1"],
            ["http://x/1.jpg", "http://x/2.jpg"],
            ["one", None],
            "URL TEXT",
        ),
        ("coyo", COYO, ["4896263451343", "1425929344479"], COYO["url"], ["one", "two"], "id url text"),
        ("megalith", MEGALITH, ["t.parquet#0"], ["http://x/m.jpg"], [None], "url"),
        ("pd12m", PD12M, ["a1", "b2"], PD12M["url"], ["one", "two"], "id url caption"),
    ],
)
def test_links(tmp_path, op, columns, keys, uris, captions, used):
    rows = listing(tmp_path, op, columns)
    assert [row["key"] for row in rows] == keys
    assert [row["uri"] for row in rows] == uris
    assert [row["caption"] for row in rows] == captions
    kept = [name for name in columns if name not in used.split()]
    first = json.loads(rows[0]["sidecar"])
    assert first == {name: pa.array(columns[name]).to_pylist()[0] for name in kept}, "under their own names"


def test_a_score_that_is_no_number_is_null(tmp_path):
    assert json.loads(listing(tmp_path, "laion", LAION)[1]["sidecar"])["similarity"] is None


def test_other_columns_of_a_named_dataset(tmp_path):
    (row,) = listing(tmp_path, "megalith", MEGALITH, image="url_highres")
    assert row["uri"] == "http://x/h.jpg" and json.loads(row["sidecar"])["url"] == "http://x/m.jpg"
    coco = {"URL": ["http://x/1.jpg"], "top_caption": ["best"], "all_captions": [["best", "worse"]]}
    (row,) = listing(tmp_path, "laion", coco)
    assert row["caption"] == "best" and json.loads(row["sidecar"]) == {"all_captions": ["best", "worse"]}


@pytest.mark.parametrize("struct", [False, True])
def test_common_catalog(tmp_path, struct):
    cells = [{"bytes": b, "path": None} for b in COMMON["jpg"]] if struct else COMMON["jpg"]
    rows, content = listing(tmp_path, "common_catalog", {**COMMON, "jpg": cells}), Content(ANYWHERE)
    assert [row["key"] for row in rows] == ["7", "9"]
    assert [content.fetch(row) for row in rows] == COMMON["jpg"]
    assert [row["caption"] for row in rows] == ["A boat, at 50%", None]
    sidecar = json.loads(rows[0]["sidecar"])
    assert sidecar["caption"] == "A+boat%2C+at+50%25" and sidecar["blip2_caption"] == "a boat+", "raw, as it came"
    synthetic = listing(tmp_path, "common_catalog", COMMON, caption="blip2_caption")
    assert [row["caption"] for row in synthetic] == ["a boat+", "a cat"]


@pytest.mark.parametrize(
    ("op", "columns", "message"),
    [
        ("laion", {**COYO}, r"not laion: found columns id \(int64\), url .*expected URL \(text\); wrong: URL"),
        ("laion", {"URL": ["a"]}, "found columns URL; expected URL and TEXT"),
        ("coyo", {**LAION}, "not coyo: .*wrong: id, url, text"),
        ("coyo", {**COYO, "id": [0.5, 1.5]}, "wrong: id"),
        ("common_catalog", {**COMMON, "jpg": ["path", "path"]}, "wrong: jpg"),
        ("megalith", {"url": ["a"]}, "wrong: url_highres, url_source"),
        ("pd12m", {**MEGALITH}, "wrong: id, caption\n  next: for a table of another layout: {op: table"),
    ],
)
def test_another_schema_is_refused(tmp_path, op, columns, message):
    with pytest.raises(UserError, match=message):
        listing(tmp_path, op, columns)
