"""Source `files`: what becomes a row, under which key, with which caption, and when it counts as changed."""

import json
import os
from contextlib import contextmanager

import pyarrow as pa
import pytest

import zoo
from nextloom.config import validate
from nextloom.curation.sources.files import Files
from nextloom.errors import UserError
from nextloom.untrusted import Door


def keys(folder, **fields) -> list[str]:
    return [item.key for item in Files(path=str(folder), **fields).listing()]


def one(folder, key: str = "a.jpg"):
    return next(item for item in Files(path=str(folder)).listing() if item.key == key)


def write(path, data: bytes | str = b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_the_zoo_is_listed_whole(tmp_path):
    names = zoo.write_all(tmp_path)
    assert keys(tmp_path) == sorted(names)


def test_only_pictures_are_rows_sorted_by_key(tmp_path):
    for name in ("b.JPG", "sub/a.png", "a.txt", "NOTICE", "a.json", ".hidden.jpg", ".thumbs/a.jpg", "c.heic", "d.psd"):
        write(tmp_path / name)
    assert keys(tmp_path) == ["b.JPG", "c.heic", "sub/a.png"]
    assert keys(tmp_path, recursive=False) == ["b.JPG", "c.heic"]
    assert keys(tmp_path, suffixes=[".PSD"]) == ["d.psd"]
    assert keys(tmp_path, glob="sub/*") == ["sub/a.png"]
    assert keys(tmp_path, glob=["*.png", "b.*"]) == ["b.JPG", "sub/a.png"]


def test_names_in_chinese_with_spaces_and_not_even_utf8(tmp_path):
    write(tmp_path / "风景 照片" / "一 二.jpg")
    write(tmp_path / "风景 照片" / "一 二.txt", "雪山 下的 湖\n")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"x")
    latin, chinese = Files(path=str(tmp_path)).listing()
    assert latin.key == "caf\\xe9.jpg" and latin.key.encode()
    assert chinese.key == "风景 照片/一 二.jpg" and chinese.caption == "雪山 下的 湖"
    assert Door([str(tmp_path)]).read(chinese.uri) == b"x"


def test_captions_from_txt_and_json(tmp_path):
    record = '{"text": "from text", "licence": "CC0"}'
    for stem, txt, jsn in (
        ("both", "\ufeff from txt ", '{"caption": "from json"}'),
        ("caption", None, '{"caption": "from caption", "text": "no"}'),
        ("text", " \n", record),
        ("list", None, "[1, 2]"),
    ):
        write(tmp_path / f"{stem}.jpg")
        if txt is not None:
            write(tmp_path / f"{stem}.txt", txt)
        write(tmp_path / f"{stem}.json", jsn)
    items = {item.key: item for item in Files(path=str(tmp_path)).listing()}
    assert {key: item.caption for key, item in items.items()} == {
        "both.jpg": "from txt",
        "caption.jpg": "from caption",
        "text.jpg": "from text",
        "list.jpg": None,
    }
    assert items["text.jpg"].sidecar == record, "a sidecar is kept as it is"


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [(".txt", b"caf\xe9", "a.txt: not UTF-8 at byte 3"), (".json", b"{oops", "a.json: not JSON")],
)
def test_an_unreadable_sidecar_loses_no_row(tmp_path, suffix, data, message):
    write(tmp_path / "a.jpg")
    write(tmp_path / f"a{suffix}", data)
    item = one(tmp_path)
    assert item.caption is None
    assert json.loads(item.sidecar)["error"].startswith(message)


def test_half_of_a_surrogate_pair_is_told_and_fits_in_arrow(tmp_path):
    for stem, suffix, text in (
        ("a", ".json", r'{"caption": "smile \ud83d"}'),
        ("b", ".json", r'{"caption": "\ud83d\ude00"}'),
    ):
        write(tmp_path / f"{stem}.jpg")
        write(tmp_path / f"{stem}{suffix}", text)
    half, whole = Files(path=str(tmp_path)).listing()
    assert half.caption == r"smile \ud83d" and "half of a surrogate pair" in json.loads(half.sidecar)["error"]
    assert whole.caption == "\U0001f600" and whole.sidecar == r'{"caption": "\ud83d\ude00"}'
    assert pa.array([half.caption, half.sidecar]).to_pylist() == [half.caption, half.sidecar]


def test_a_changed_picture_or_sidecar_is_a_changed_version(tmp_path):
    picture = write(tmp_path / "a.jpg")
    versions = [one(tmp_path).version]
    write(tmp_path / "a.txt", "a cat")
    versions.append(one(tmp_path).version)
    write(tmp_path / "a.txt", "a black cat")
    versions.append(one(tmp_path).version)
    os.utime(picture, ns=(1, 1))
    versions.append(one(tmp_path).version)
    assert len(set(versions)) == 4
    write(tmp_path / "b.jpg")
    assert one(tmp_path).version == versions[-1], "other files do not matter"


def test_known_versions_are_not_read_again(tmp_path):
    write(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "a cat")
    first = one(tmp_path)
    source = Files(path=str(tmp_path))
    assert source.listing({"a.jpg": first.version})[0].caption is None
    assert source.listing({"a.jpg": "older"}) == [first]


def test_a_pipe_is_no_row(tmp_path):
    write(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert keys(tmp_path) == ["a.jpg"]


def test_a_broken_link_is_listed_and_a_looping_folder_ends(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    write(tmp_path / "sub" / "a.jpg")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    gone, _ = Files(path=str(tmp_path)).listing()
    assert (gone.key, gone.size) == ("gone.jpg", 0)
    write(tmp_path / "nowhere.jpg")
    assert one(tmp_path, "gone.jpg").version != gone.version, "a mended link is a new object"


def test_a_link_in_a_circle_is_a_row(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
    assert one(tmp_path).size == 0


def scanning(monkeypatch, change):
    """Let `change(folder, entries)` meddle with what each `scandir` of a listing gives."""
    scandir = os.scandir

    @contextmanager
    def changed(folder):
        with scandir(folder) as entries:
            yield change(folder, list(entries))

    monkeypatch.setattr("nextloom.curation.sources.files.os.scandir", changed)


def test_what_vanishes_while_it_is_listed_is_no_row(tmp_path, monkeypatch):
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        write(tmp_path / name)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")

    def vanish(folder, entries):
        for name in ("b.jpg", "link.jpg", "sub/c.jpg"):
            (tmp_path / name).unlink()
        (tmp_path / "sub").rmdir()
        return entries

    scanning(monkeypatch, vanish)
    assert keys(tmp_path) == ["a.jpg"]


def test_an_unreadable_folder_ends_the_listing(tmp_path, monkeypatch):
    for name in ("a.jpg", "sub/c.jpg"):
        write(tmp_path / name)

    def refuse(folder, entries):
        if folder.endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return entries

    scanning(monkeypatch, refuse)
    with pytest.raises(UserError, match=r"^source\.path: cannot list .*sub: Permission denied"):
        keys(tmp_path)


@pytest.mark.parametrize("uri", ["http://example.org/photos", "s4://bucket"])
def test_a_uri_that_cannot_be_listed_is_refused(uri):
    with pytest.raises(UserError, match=r"^source\.path: cannot list "):
        keys(uri)


def test_a_missing_folder_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"(?s)no such folder.*next: .*nextloom samples"):
        keys(tmp_path / "none")
    with pytest.raises(UserError, match="no such folder"):
        keys(f"file://{tmp_path}/none")


def test_one_key_in_two_folders_is_refused(tmp_path):
    write(tmp_path / "one" / "a.jpg")
    write(tmp_path / "two" / "b.jpg")
    source = validate(Files, {"path": ["one", "two"]}, where="source", root=str(tmp_path))
    assert [item.key for item in source.listing()] == ["a.jpg", "b.jpg"]
    write(tmp_path / "two" / "a.jpg")
    with pytest.raises(UserError, match=r"two files have the key 'a\.jpg'"):
        source.listing()


def test_a_uri_lists_like_a_folder(tmp_path):
    write(tmp_path / "sub" / "一 二.jpg", b"abc")
    write(tmp_path / "sub" / "一 二.txt", "a cat")
    write(tmp_path / ".thumbs" / "a.jpg")
    (item,) = Files(path=f"file://{tmp_path}").listing()
    local = one(tmp_path, "sub/一 二.jpg")
    assert (item.key, item.size, item.caption, item.version) == (local.key, 3, "a cat", local.version)
    assert Door([f"file://{tmp_path}"]).read(item.uri) == b"abc"
