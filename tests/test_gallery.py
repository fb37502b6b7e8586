"""Pictures of a release: shapes before pixels, few kept in memory, the same training however many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from nextloom.errors import UserError
from nextloom.store import release as releases
from nextloom.store.dataset import Dataset
from nextloom.store.files import write_file
from nextloom.store.release import Release, open_release
from nextloom.store.rowset import describe
from nextloom.train.tokenizer import gallery
from nextloom.train.tokenizer.gallery import Gallery
from test_training import CAPTIONS, world

SIZES = pa.schema([("id", pa.int64()), ("height", pa.int32()), ("width", pa.int32())])


@pytest.fixture
def root(tmp_path) -> Path:
    return world(tmp_path, painted=True)


def with_sizes(root: Path, heights: list[int | None]) -> Release:
    """The release with a column of `image_stats` that says these heights, and a width of 33."""
    dataset, old = Dataset(str(root / "toys")), open_release(str(root / "toys"), "tokens")
    rows = [{"id": i, "height": h, "width": None if h is None else 33} for i, h in enumerate(heights)]
    with dataset.lease("test"):
        column = dataset.column("stats", "s")
        column.commit(SIZES, [write_file(column.uri, pa.Table.from_pylist(rows, SIZES))])
        about = {"op": "image_stats", "version": "1", "config": {}, "fingerprint": "s", "failed": "()"}
        told = {**about, **describe(column.uri, dataset.uri, column.files())}
        content = {**old.document, "columns": {**old.document["columns"], "stats": told}}
        return releases.publish(dataset, "sized", {k: v for k, v in content.items() if k not in ("name", "created")})[0]


@pytest.mark.parametrize("kept", [0, 5 * 32 * 32 * 3, 2**30])
def test_pictures_are_those_of_the_files_however_many_are_kept(root, monkeypatch, kept):
    monkeypatch.setattr(gallery, "KEPT_BYTES", kept)
    found = Gallery(open_release(str(root / "toys"), "tokens"))
    assert len(found) == len(CAPTIONS) and found.shapes == [(32, 32)] * len(CAPTIONS)
    assert len(found._kept) == min(len(CAPTIONS), kept // (32 * 32 * 3))
    for number in (7, 0, 3, -1):
        with Image.open(root / "toys-pictures" / f"{number % 8}.png") as file:
            assert np.array_equal(found[number], np.asarray(file.convert("RGB")))
    assert [p.tolist() for p in found[2:4]] == [found[2].tolist(), found[3].tolist()]
    with pytest.raises(IndexError):
        found[8]


def test_measured_shapes_spare_the_first_pass(root):
    (root / "toys-pictures" / "5.png").unlink()
    found = Gallery(with_sizes(root, [40 + i for i in range(8)]))
    assert found.shapes == [(40 + i, 33) for i in range(8)] and not found._kept
    assert found[4].shape == (32, 32, 3)
    with pytest.raises(UserError, match="key5 of release sized-0001"):
        found[5]


def test_shapes_that_are_not_all_measured_are_looked_at(root):
    found = Gallery(with_sizes(root, [None, *range(41, 48)]))
    assert found.shapes == [(32, 32)] * 8
