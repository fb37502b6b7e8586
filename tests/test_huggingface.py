"""Source `huggingface`: what the `datasets` library saved, or finds in a clone, by its own rules."""

from __future__ import annotations

import json
import subprocess
import sys

import datasets
import pyarrow.parquet as pq
import pytest

import zoo
from nextloom.content import Content
from nextloom.curation.sources.huggingface import HuggingFace
from nextloom.errors import UserError
from nextloom.untrusted import Door
from test_webdataset import write_tar

ANYWHERE = Door(["/"])

FEATURES = datasets.Features(
    {"image": datasets.Image(), "id": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])}
)


def examples(count: int, start: int = 0) -> list[dict]:
    png = zoo.encoded(zoo.halves(), "PNG")
    return [
        {"image": {"bytes": png + bytes([n]), "path": f"{n}.png"}, "id": f"k{n}", "label": n % 2}
        for n in range(start, start + count)
    ]


def dataset(count: int, start: int = 0) -> datasets.Dataset:
    return datasets.Dataset.from_list(examples(count, start), features=FEATURES)


def listing(path, **fields) -> list[dict]:
    source = HuggingFace(path=str(path), **fields)
    return [row for unit in source.units() for row in source.items(unit, {}).to_pylist()]


def assert_same(rows: list[dict], expected: list[dict]) -> None:
    content = Content(ANYWHERE)
    assert [row["key"] for row in rows] == [one["id"] for one in expected]
    assert [content.fetch(row) for row in rows] == [one["image"]["bytes"] for one in expected]
    for row, one in zip(rows, expected, strict=True):
        assert json.loads(row["sidecar"]) == {"label": one["label"], "image": {"path": one["image"]["path"]}}


def test_save_to_disk_in_several_files(tmp_path):
    dataset(30).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    assert_same(listing(tmp_path / "saved", key="id"), examples(30))
    dataset(30).select([5, 3, 9]).save_to_disk(str(tmp_path / "some"))
    assert [row["key"] for row in listing(tmp_path / "some", key="id")] == ["k5", "k3", "k9"]


def test_splits_of_a_saved_dictionary(tmp_path):
    path = tmp_path / "saved"
    datasets.DatasetDict(train=dataset(6), test=dataset(3, 6)).save_to_disk(str(path))
    assert_same(listing(path, key="id", split="test"), examples(3, 6))
    assert_same(listing(path, key="id", split="all"), examples(9))
    with pytest.raises(UserError, match=r"source.split: several splits: train, test\n  next: choose one"):
        listing(path)
    with pytest.raises(UserError, match="no split 'val'; found train, test"):
        listing(path, split="val")


def test_a_clone_as_the_library_reads_it_and_streams_it(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(2):
        dataset(5, number * 5).to_parquet(str(data / f"train-0000{number}-of-00002.parquet"))
    dataset(2, 10).to_parquet(str(data / "test-00000-of-00001.parquet"))
    (tmp_path / "README.md").write_text("# a dataset\n")
    rows = listing(tmp_path, key="id", split="train")
    assert_same(rows, examples(10))
    stream = datasets.load_dataset(str(tmp_path), split="train", streaming=True, cache_dir=str(tmp_path / "cache"))
    streamed = list(stream.cast_column("image", datasets.Image(decode=False)))
    assert [one["id"] for one in streamed] == [row["key"] for row in rows]
    assert [one["image"]["bytes"] for one in streamed] == [Content(ANYWHERE).fetch(row) for row in rows]


def test_configurations_of_a_readme(tmp_path):
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
        dataset(2 if name == "small" else 4).to_parquet(str(tmp_path / name / "x.parquet"))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small/*.parquet\n"
        "- config_name: large\n  data_files: large/*.parquet\n---\n"
    )
    assert_same(listing(tmp_path, key="id", config="large"), examples(4))
    with pytest.raises(UserError, match=r"(?s)finds no dataset in .*Config name is missing.*small"):
        listing(tmp_path)


def test_tars_csv_and_pictures_of_a_clone(tmp_path):
    write_tar(tmp_path / "w" / "train-0.tar", [("a.jpg", b"in a tar"), ("a.json", b'{"x": 1}')])
    (row,) = listing(tmp_path / "w")
    assert (row["key"], Content(ANYWHERE).fetch(row), row["sidecar"]) == ("a", b"in a tar", '{"x": 1}')
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "links.csv").write_text("url,caption\nhttp://x/1.jpg,one\n")
    (row,) = listing(tmp_path / "c")
    assert (row["uri"], row["caption"]) == ("http://x/1.jpg", "one")
    (tmp_path / "p").mkdir()
    zoo.good_jpeg(tmp_path / "p")
    with pytest.raises(UserError, match=r"found pictures such as good.jpg\n  next: use \{op: files"):
        listing(tmp_path / "p")


def test_names_of_the_hub_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="nothing is fetched from the hub; do that first: hf download"):
        listing(tmp_path / "laion/laion2B-en")
    with pytest.raises(UserError, match="finds no dataset in"):
        listing(tmp_path)


def test_planning_imports_no_torch(tmp_path):
    pq.write_table(dataset(1).data.table, tmp_path / "train.parquet")
    code = (
        "import sys; from nextloom.curation.sources.huggingface import HuggingFace as H;"
        f"s = H(path={str(tmp_path)!r}); [s.items(u, {{}}) for u in s.units()];"
        "print([m for m in ('torch', 'ray', 'tensorflow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
