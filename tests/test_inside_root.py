"""Nothing outside of the root: vacuum, commits and documents meet links on every part of the way."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

import toy_dataset
from nextloom.documents import Folder
from nextloom.errors import Damaged, UserError
from nextloom.inside import Outside
from nextloom.store.dataset import ROWS, Dataset
from nextloom.store.files import write_file
from nextloom.store.vacuum import find_garbage, vacuum

DEAD = "columns/tokens/old"
WANTED = {"text": "t", "tokens": "i0"}


def age(folder: Path) -> None:
    then = time.time() - 7200
    for path in folder.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder beside the root that looks like a part of a dataset."""
    folder = tmp_path / "outside"
    for name in ("precious.txt", f"part-{0:032x}-{0:032x}.parquet", "_delta_log/00000000000000000000.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    age(tmp_path)
    return folder


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    uri = tmp_path / "root/datasets/toy"
    toy_dataset.build(str(uri), ["a", "b"])
    shutil.copytree(uri / "columns/tokens/i0", uri / DEAD)  # of a fingerprint that nothing names
    age(tmp_path)
    return Dataset(str(uri))


def cleaned(dataset: Dataset) -> list[str]:
    with dataset.lease("test"):
        return vacuum(dataset, find_garbage(dataset, WANTED))


def held(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_dead_column_goes_with_its_log_and_the_paths_are_told(dataset):
    gone = cleaned(dataset)
    assert gone and all(path.startswith(f"{DEAD}/") for path in gone)
    assert any("_delta_log/" in path for path in gone)
    assert not Path(dataset.uri, DEAD).exists() and Path(dataset.uri, "columns/tokens/i0").exists()


@pytest.mark.parametrize("place", ["columns/strange", "columns/tokens/linked", f"{DEAD}/inner", "packs", "packs/x"])
def test_vacuum_follows_no_linked_folder(dataset, outside, place):
    """before: every file behind the link was deleted."""
    link = Path(dataset.uri, place)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    os.utime(link, (0, 0), follow_symlinks=False)
    before = held(outside)
    try:
        cleaned(dataset)
    except Outside as refused:
        assert str(link) in str(refused)
    assert held(outside) == before and link.is_symlink()


def test_a_linked_file_and_names_that_are_none_of_ours_stay(dataset, outside):
    table = Path(dataset.uri, DEAD)
    (table / f"part-{1:032x}-{1:032x}.parquet").symlink_to(outside / "precious.txt")
    for name in ("notes.txt", "part-1.parquet", "_delta_log/notes.json"):
        (table / name).write_text("mine")
    age(Path(dataset.uri))
    cleaned(dataset)
    left = {str(p.relative_to(table)) for p in table.rglob("*") if not p.is_dir()}
    assert left == {f"part-{1:032x}-{1:032x}.parquet", "notes.txt", "part-1.parquet", "_delta_log/notes.json"}
    assert held(outside)["precious.txt"] == "mine"


def test_a_folder_replaced_by_a_link_after_the_listing(dataset, outside):
    with dataset.lease("test"):
        garbage = find_garbage(dataset, WANTED)
        table = Path(dataset.uri, DEAD)
        names = [path.removeprefix(f"{DEAD}/") for each in garbage for path in each.files]
        shutil.rmtree(table)
        for name in names:
            (outside / name).parent.mkdir(parents=True, exist_ok=True)
            (outside / name).write_text("mine")
        table.symlink_to(outside)
        before = held(outside)
        with pytest.raises(Outside, match="is a link to"):
            vacuum(dataset, garbage)
    assert held(outside) == before


def test_a_file_replaced_by_another_after_the_listing_stays(dataset):
    with dataset.lease("test"):
        (garbage,) = find_garbage(dataset, WANTED)
        name = next(path for path in garbage.files if path.endswith(".parquet"))
        Path(dataset.uri, name).write_text("of a run that began just now")
        assert name not in vacuum(dataset, [garbage])
    assert Path(dataset.uri, name).read_text() == "of a run that began just now"


def test_while_a_document_cannot_be_read_nothing_is_deleted(dataset):
    for name in ("receipts/stats.json", "releases/tokens-0001.json"):
        target = Path(dataset.uri, name)
        target.parent.mkdir(exist_ok=True)
        before = target.read_bytes() if target.exists() else None
        target.write_text("")
        with pytest.raises(Damaged, match=r"is empty"):
            cleaned(dataset)
        assert Path(dataset.uri, DEAD).exists()
        target.unlink()
        if before:
            target.write_bytes(before)


@pytest.mark.parametrize("place", ["", "rows", "rows/_delta_log", "columns", "columns/new", "columns/new/f"])
def test_a_commit_goes_through_no_link(dataset, outside, place):
    where = Path(dataset.uri, place) if place else Path(dataset.uri)
    if where.exists():
        where.rename(where.parent / "aside")
    where.parent.mkdir(parents=True, exist_ok=True)
    where.symlink_to(outside)
    before = held(outside)
    with pytest.raises(Outside, match="links are not followed"), dataset.lease("test"):
        table = dataset.rows if "rows" in place else dataset.column("new", "f")
        table.commit(ROWS, [write_file(table.uri, ROWS.empty_table())])
    assert held(outside) == before


@pytest.mark.parametrize("kind", ["receipts", "releases", "lease", "broken"])
def test_documents_are_neither_written_nor_read_through_links(tmp_path, outside, kind):
    folder = Folder(str(tmp_path / "d"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / kind).symlink_to(outside)
    (outside / "x.json").write_text('"mine"')
    before = held(outside)
    for act in (folder.read, folder.delete, lambda name: folder.write(name, 1), lambda name: folder.create(name, 1)):
        with pytest.raises(Outside):
            act(f"{kind}/x.json")
    with pytest.raises(Outside):
        folder.names(kind)
    assert held(outside) == before
    (tmp_path / "d" / kind).unlink()
    folder.write(f"{kind}/real.json", 1)
    (tmp_path / "d" / kind / "x.json").symlink_to(outside / "x.json")
    for act in (folder.read, lambda name: folder.write(name, 1), lambda name: folder.create(name, 1)):
        with pytest.raises(Outside):
            act(f"{kind}/x.json")
    assert folder.names(kind) == [f"{kind}/real.json"] and held(outside) == before


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", ".", "a//b", "a\0b", "a" * 300, "~/x"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="is no name"):
        Folder(str(tmp_path / "d")).read(f"releases/{name}.json")


def test_a_document_is_whole_or_not_there(tmp_path):
    folder = Folder(str(tmp_path / "d"))
    assert folder.read("a/x.json") is None and folder.names("a") == []
    assert folder.create("a/x.json", {"n": 1}) and not folder.create("a/x.json", {"n": 2})
    folder.write("a/y.json", [1])
    assert (folder.read("a/x.json"), folder.read("a/y.json")) == ({"n": 1}, [1])
    assert sorted(os.listdir(tmp_path / "d/a")) == ["x.json", "y.json"], "no draft is left"
    (tmp_path / f"d/a/.x.json.{0:032x}").write_text("")
    assert folder.names("a") == ["a/x.json", "a/y.json"]
    folder.delete("a/x.json")
    folder.delete("a/x.json")
    assert folder.names("a") == ["a/y.json"]
    for text, told in (("", "is empty"), ("\0" * 9, "is empty"), ("{", "is not valid JSON"), ("[" * 99999, "JSON")):
        (tmp_path / "d/a/y.json").write_text(text)
        with pytest.raises(Damaged, match=told):
            folder.read("a/y.json")
