"""What a recipe's owner may do, and what becomes of rows that are refused."""

from __future__ import annotations

import os
import pickle
import time
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import build, contents, run
from nextloom.arrow_files import ArrowFile, open_parquet
from nextloom.config import validate
from nextloom.content import Content
from nextloom.curation.sources.files import Files
from nextloom.curation.sources.table import Table
from nextloom.curation.web.answer import WebError, unpacker
from nextloom.errors import UserError
from nextloom.op import error_value
from nextloom.untrusted import Door, NotAllowed, bare


def rows(source) -> list[dict]:
    return [row for unit in source.units() for row in source.items(unit, {}).to_pylist()]


def put(path, data: bytes = b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_roots_let_a_table_name_pictures_elsewhere(tmp_path):
    picture = put(tmp_path / "archive" / "a.jpg", b"elsewhere")
    put(tmp_path / "lists" / "t.csv", f"path\n{picture}\n".encode())
    plain = Table(path=str(tmp_path / "lists" / "t.csv"))
    (row,) = rows(plain)
    with pytest.raises(NotAllowed, match=r"name its folder in source\.roots to read it"):
        Content(plain.door()).fetch(row)
    open_to = validate(Table, {"path": "lists/t.csv", "roots": ["archive"]}, where="source", root=str(tmp_path))
    assert Content(open_to.door()).fetch(*rows(open_to)) == b"elsewhere", "relative to the root, as `path` is"


def test_the_owners_own_path_may_be_a_link_and_lie_anywhere(tmp_path):
    put(tmp_path / "disk" / ".cache" / "photos" / "a.jpg", b"mine")
    (tmp_path / "photos").symlink_to("disk/.cache/photos")
    (item,) = Files(path=str(tmp_path / "photos")).listing()
    assert Files(path=str(tmp_path / "photos")).door().read(item.uri) == b"mine"
    pq.write_table(pa.table({"jpg": [b"cell"]}), tmp_path / "disk" / "t.parquet")
    (tmp_path / "t.parquet").symlink_to("disk/t.parquet")
    table = Table(path=str(tmp_path / "t.parquet"))
    assert Content(table.door()).fetch(*rows(table)) == b"cell"


def test_links_inside_of_the_folder_are_followed(tmp_path):
    put(tmp_path / ".git" / "annex" / "objects" / "1", b"annexed")  # as git-annex stores files
    (tmp_path / "a.jpg").symlink_to(".git/annex/objects/1")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.jpg").symlink_to("../a.jpg")
    (tmp_path / "again").symlink_to("more")
    source = Files(path=str(tmp_path))
    found = {item.key: source.door().read(item.uri) for item in source.listing()}
    assert found == dict.fromkeys(("a.jpg", "more/b.jpg", "again/b.jpg"), b"annexed")


def test_a_linked_folder_outside_is_one_failed_row_and_roots_open_it(tmp_path):
    put(tmp_path / "elsewhere" / "a.jpg", b"there")
    put(tmp_path / "photos" / "mine.jpg")
    (tmp_path / "photos" / "album").symlink_to("../elsewhere")
    closed, key = Files(path=str(tmp_path / "photos")).listing(), "album"
    assert [item.key for item in closed] == [key, "mine.jpg"]
    assert closed[0].member and "source.roots" in closed[0].member
    source = Files(path=str(tmp_path / "photos"), roots=(str(tmp_path / "elsewhere"),))
    assert [item.key for item in source.listing()] == ["album/a.jpg", "mine.jpg"]


@pytest.mark.usefixtures("ray_local")
def test_a_refused_row_costs_one_row_and_roots_mend_it(tmp_path):
    put(tmp_path / "in" / "good.jpg", b"good")
    secret = put(tmp_path / "secret" / "key.pem", b"-----BEGIN")
    (tmp_path / "in" / "t.csv").write_text(f"path\ngood.jpg\n{secret}\n/dev/zero\n../in/good.jpg\n")
    steps, source = {"sum": {"op": "toy_checksum:Checksum"}}, {"op": "table", "path": "in/t.csv"}
    recipe, dataset = build(tmp_path, steps, source=source)
    assert run(recipe, dataset)["sum"] == {"rows": 4, "values": 2, "errors": 2, "done": 4}
    errors = [row["error"] for row in contents(recipe, dataset)["sum"] if row["error"]]
    assert {(e["stage"], e["type"]) for e in errors} == {("fetch", "NotAllowed")}
    assert len({e["message"] for e in errors}) == 1, "they group, and say what to do"
    assert sorted(e["detail"] for e in errors) == sorted([str(secret), "/dev/zero"])
    assert not any("BEGIN" in str(e) for e in errors)
    recipe, dataset = build(tmp_path, steps, source={**source, "roots": [str(secret.parent)]})
    assert run(recipe, dataset, retry_errors=True)["sum"]["errors"] == 1


def test_a_release_remembers_what_its_rows_may_open(tmp_path):
    door = Door([str(tmp_path), "s3://bucket/a?region=x"], 5)
    for copy in (pickle.loads(pickle.dumps(door)), Door.from_dict(door.as_dict())):
        assert (copy.roots, copy.max_bytes) == (door.roots, 5)


@pytest.mark.parametrize("place", ["s3://key:word@bucket/photos", "s3://word@bucket/photos?region=x"])
@pytest.mark.parametrize("field", ["path", "roots"])
def test_a_recipe_with_a_password_in_an_address_is_refused_without_telling_it(field, place):
    fields = {"path": "photos", field: place if field == "path" else [place]}
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as error:
        validate(Table, fields, where="source", root="/data")
    assert "word" not in str(error.value).replace("password", "")


def test_names_are_told_bare():
    uris = {"s3://k:w@b/a?x=1": "s3://b/a", "http://u@h/@a?t=w#f": "http://h/@a", "/a@b?c": "/a@b?c", "a b": "a b"}
    assert {uri: bare(uri) for uri in uris} == uris


def test_nothing_of_a_file_is_told(tmp_path):
    put(tmp_path / "in" / "t.csv", b"path\n../key\n")
    put(tmp_path / "key", b"-----BEGIN PRIVATE KEY-----")
    source = Table(path=str(tmp_path / "in" / "t.csv"))
    with pytest.raises(NotAllowed) as error:
        Content(source.door()).fetch(*rows(source))
    assert "BEGIN" not in str(error_value("fetch", error.value))


def test_a_read_costs_microseconds(tmp_path):
    for folder in range(10):
        for number in range(100):
            put(tmp_path / "in" / str(folder) / f"{number}.jpg", b"x" * 1000)
    paths = [str(path) for path in sorted((tmp_path / "in").rglob("*.jpg"))]
    door = Door([str(tmp_path / "in")])
    took = []
    for _ in range(3):
        start = time.process_time()
        for path in paths:
            door.read(path)
        took.append((time.process_time() - start) / len(paths))
    assert min(took) < 200e-6, f"{min(took) * 1e6:.0f} microseconds a row"


def test_the_folder_of_open_files_may_be_missing(tmp_path, monkeypatch):
    """Where the kernel does not tell what was opened, the name is judged once more and must be that file."""
    monkeypatch.setattr("nextloom.untrusted.OPEN_FILES", str(tmp_path / "none"))
    put(tmp_path / "in" / "a.jpg", b"mine")
    door = Door([str(tmp_path / "in")])
    assert door.read(str(tmp_path / "in" / "a.jpg")) == b"mine"
    with door.open(str(tmp_path / "in" / "a.jpg")).file as file:
        assert file.read() == b"mine"
    put(tmp_path / "out" / "a.jpg", b"theirs")
    os.rename(tmp_path / "in", tmp_path / "old")
    (tmp_path / "in").symlink_to("old")
    assert Door([str(tmp_path / "in")]).read(str(tmp_path / "in" / "a.jpg")) == b"mine"


# ---- Arrow


class Uuid(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.binary(4), "toy.uuid")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


pa.register_extension_type(Uuid())


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_extension_types_are_read_as_what_they_are_stored_as(tmp_path, kind):
    ids = pa.ExtensionArray.from_storage(Uuid(), pa.array([b"1234", None, b"5678"], pa.binary(4)))
    named = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", "b"]))
    data = pa.table({"id": ids, "in": pa.StructArray.from_arrays([ids], ["id"]), "named": named, "n": [1, 2, 3]})
    path = tmp_path / "t"
    if kind == "parquet":
        pq.write_table(data, path)
        assert isinstance(pq.ParquetFile(path).schema_arrow.field("id").type, Uuid), "the control"
        read = open_parquet(pa.OSFile(str(path))).read()
    else:
        make = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with make(path, data.schema) as writer:
            writer.write_table(data, max_chunksize=2)
        file = ArrowFile(pa.memory_map(str(path)))
        assert file.sizes == [2, 1]
        read = pa.Table.from_batches([file.batch(n) for n in range(2)])
        assert read.equals(pa.Table.from_batches(ArrowFile(pa.memory_map(str(path)))))
    assert read["id"].to_pylist() == [b"1234", None, b"5678"] and read["named"].to_pylist() == ["a", "b", "a"]
    assert read["in"].to_pylist() == [{"id": b"1234"}, {"id": None}, {"id": b"5678"}]


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
@pytest.mark.parametrize("kind", ["arrow", "stream"])
def test_compressed_files_and_dictionaries_are_read(tmp_path, kind, codec):
    words = pa.array(["one", "two", "one", None] * 500).dictionary_encode()
    data = pa.table({"jpg": [bytes([n % 256]) * 50 for n in range(2000)], "word": words})
    make = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
    with make(tmp_path / "t", data.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(data, max_chunksize=300)
    assert pa.Table.from_batches(ArrowFile(pa.memory_map(str(tmp_path / "t")))).equals(data)


@pytest.mark.parametrize("damage", ["head", "tail", "empty", "text"])
def test_a_damaged_arrow_file_is_one_error(tmp_path, damage):
    with pa.ipc.new_file(tmp_path / "t", pa.schema([("a", pa.binary())])) as writer:
        writer.write_table(pa.table({"a": [b"x" * 100]}))
    raw = (tmp_path / "t").read_bytes()
    damaged = {
        "head": b"\xff" * 40 + raw[40:],
        "tail": raw[:-20] + b"\xff" * 20,
        "empty": b"",
        "text": b"<html>404</html>",
    }[damage]
    (tmp_path / "t").write_bytes(damaged)
    with pytest.raises((pa.ArrowInvalid, OSError)):
        list(ArrowFile(pa.OSFile(str(tmp_path / "t"))))


# ---- compressed answers


def test_a_compressed_answer_in_pieces_and_what_follows_it():
    raw = os.urandom(5000)
    packed = zlib.compress(raw)
    unpack = unpacker("deflate")
    assert b"".join(unpack(packed[at : at + 7], 10**6) for at in range(0, len(packed), 7)) + unpack(None, 0) == raw
    with pytest.raises(WebError, match="bytes follow the end"):
        unpack(b"more", 10**6)
