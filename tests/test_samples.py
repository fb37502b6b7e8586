"""Samples: real pictures with captions and licences, written once."""

import json
from pathlib import Path

import pytest

from nextloom import pixels, samples
from nextloom.curation.sources.files import Files
from nextloom.errors import UserError
from nextloom.samples import write_samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder, size=16)
    return folder


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_pictures_have_captions_in_plain_words(folder):
    items = {item.key: item for item in Files(path=str(folder)).listing()}
    emoji = [item for key, item in items.items() if key.startswith("emoji/")]
    assert 1850 <= len(emoji) <= 2000 and len(items) - len(emoji) >= 15
    assert all(item.caption for item in items.values())
    assert items["emoji/2764.png"].caption == "red heart"
    assert items["emoji/1F1EB-1F1F7.png"].caption == "flag of France"
    assert items["photos/chelsea.png"].caption == "the face of a ginger cat"
    assert not any("skin tone" in item.caption or "_" in item.caption for item in emoji)


def test_emoji_are_drawn_on_white(folder):
    heart = pixels.decode((folder / "emoji" / "2764.png").read_bytes())
    assert heart.shape == (16, 16, 3)
    assert (heart[0] == 255).all()
    red, green, blue = heart[8, 8].astype(int)
    assert red > 200 and green < 120 and blue < 120


def test_photographs_are_the_bytes_of_their_package(folder):
    import skimage

    original = Path(skimage.__file__).parent / "data" / "coffee.png"
    assert (folder / "photos" / "coffee.png").read_bytes() == original.read_bytes()


def test_licences_lie_beside_the_pictures(folder):
    assert "CC-BY-SA-4.0" in (folder / "emoji" / "NOTICE").read_text()
    notice = (folder / "photos" / "NOTICE").read_text()
    photos = [path for path in (folder / "photos").iterdir() if path.suffix in (".png", ".jpg")]
    assert all(f"\n{path.name}: " in notice for path in photos)
    assert "CC BY 2.0" in notice


def test_a_second_call_writes_nothing(folder):
    before = stamps(folder)
    summary = write_samples(folder, size=16)
    assert summary.written == 0 and summary.pictures > 1850
    assert stamps(folder) == before


def test_a_deleted_file_is_restored_alone(folder):
    before = stamps(folder)
    path = folder / "emoji" / "2764.png"
    data = path.read_bytes()
    path.unlink()
    assert write_samples(folder, size=16).written == 1
    assert path.read_bytes() == data
    changed = {name for name, stamp in stamps(folder).items() if before[name] != stamp}
    assert changed == {str(path)}


def test_other_versions_rewrite_only_what_differs(folder):
    manifest = folder / samples.MANIFEST
    data = json.loads(manifest.read_text())
    data["header"]["packages"]["emoji"] = "0"
    data["files"]["emoji/old.png"] = 1
    manifest.write_text(json.dumps(data))
    (folder / "emoji" / "old.png").write_bytes(b"x")
    before = stamps(folder)
    assert write_samples(folder, size=16).written == 0, "the same bytes are left alone, so their rows stay fresh"
    after = stamps(folder)
    assert str(folder / "emoji" / "old.png") not in after
    assert all(before[name] == stamp for name, stamp in after.items() if name != str(manifest))


def test_a_missing_extra_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "PACKAGES", ("nextloom-no-such-package",))
    with pytest.raises(UserError, match=r"next: pip install 'nextloom\[samples\]'"):
        write_samples(tmp_path)


def test_a_file_in_the_way_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file, not a folder"):
        write_samples(tmp_path / "file")


@pytest.mark.parametrize("name", ["emoji/2764.png", "photos/chelsea.png"])
def test_a_file_of_somebodys_own_is_not_replaced(tmp_path, name):
    """Before: written over without a word."""
    (tmp_path / name).parent.mkdir(parents=True)
    own = tmp_path / name
    planned = [path for path in samples._plan(96) if path.startswith(name.partition("/")[0])]
    own = tmp_path / planned[0]
    own.write_text("my own")
    with pytest.raises(UserError, match="not written by `nextloom samples`"):
        samples.write_samples(tmp_path)
    assert own.read_text() == "my own"


def test_a_report_replaces_no_other_file(tmp_path):
    """Before: written over without a word; a page of ours is replaced as ever."""
    from nextloom.pipelines.report.page import MARK, _check_ours

    page = tmp_path / "reports" / "toy.html"
    page.parent.mkdir()
    page.write_text("<html>my thesis</html>")
    with pytest.raises(UserError, match="is no report of `nextloom report`"):
        _check_ours(page)
    page.write_text(f"<html>{MARK}")
    _check_ours(page)
