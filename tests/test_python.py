"""Python: the reader, recipes built and run, and docs/python.md as it stands."""

from __future__ import annotations

import doctest
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import nextloom
import toy_dataset
from engine import write_pictures
from exporting import published
from nextloom.curation.scores.image_stats import ImageStats
from nextloom.curation.sources.files import Files
from nextloom.pipelines import recipe as recipes
from nextloom.pipelines.plan import plan

DOCS = Path(__file__).parents[1] / "docs"
PHOTOS = {
    "chelsea.png": "the face of a ginger cat",
    "coffee.png": "a cup of espresso with a spoon on a wooden table",
    "rocket.jpg": "a rocket on its launch pad at dusk",
    "text.png": "handwritten formulas on ruled paper",  # 172 pixels high
}


def write_photos(folder: Path) -> None:
    """Photographs that scikit-image ships, with captions."""
    spec = importlib.util.find_spec("skimage")
    shipped = Path(spec.origin).parent / "data"
    folder.mkdir(parents=True)
    for name, caption in PHOTOS.items():
        shutil.copy(shipped / name, folder / name)
        (folder / name).with_suffix(".txt").write_text(caption)


def test_the_session_in_the_docs(tmp_path, monkeypatch, ray_local):
    write_photos(tmp_path / "data" / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    text = (DOCS / "python.md").read_text()
    session = doctest.DocTestParser().get_doctest(text, {}, "python.md", str(DOCS / "python.md"), 0)
    assert len(session.examples) > 15
    told: list[str] = []
    flags = doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags, verbose=False).run(session, out=told.append)
    assert not result.failed, "".join(told)


def test_importing_it_is_light_and_opening_needs_neither_ray_nor_torch(tmp_path):
    write_pictures(tmp_path / "pics", 2)
    release = published(tmp_path, {"op": "files", "path": "pics"})
    code = (
        "import sys, nextloom\n"
        "heavy = {'ray', 'torch', 'datasets', 'duckdb', 'pyarrow', 'pydantic', 'numpy', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        f"release = nextloom.open({release.dataset_uri!r}).release('all')\n"
        "print(len(release), [image.pixels.shape for image in release.images()])\n"
        "print(sorted({'ray', 'torch', 'datasets'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[]", "2 [(24, 24, 3), (24, 24, 3)]", "[]"], done.stderr


def test_a_recipe_of_objects_and_one_of_yaml_are_the_same(tmp_path):
    write_pictures(tmp_path / "data" / "pics", 2)
    (tmp_path / "r.yaml").write_text(
        "dataset: toy\nsource: {op: files, path: pics}\n"
        "steps:\n  stats: {op: image_stats, sharpness_side: 128}\n  keep: {op: select, where: stats.width > 8}\n"
    )
    root = str(tmp_path / "data")
    from_file = nextloom.Recipe.load(str(tmp_path / "r.yaml"), root=root)
    keep = {"op": "select", "where": "stats.width > 8"}
    from_dicts = nextloom.Recipe(
        "toy",
        {"op": "files", "path": "pics"},
        {"stats": {"op": "image_stats", "sharpness_side": 128}, "keep": keep},
        root=root,
    )
    objects = {"stats": ImageStats(sharpness_side=128), "keep": keep}
    from_objects = nextloom.Recipe("toy", Files(path=f"{root}/pics"), objects, root=root)
    assert from_dicts.spec == from_objects.spec
    assert (from_file.spec.source, from_file.spec.steps) == (from_dicts.spec.source, from_dicts.spec.steps)
    assert isinstance(from_file.spec, recipes.Recipe)
    planned = [[step.as_dict() for step in each.plan()] for each in (from_file, from_dicts, from_objects)]
    assert planned[0] == planned[1] == planned[2] and planned[0][1]["fingerprint"]
    assert planned[0] == [step.as_dict() for step in plan(from_file.spec, from_file._dataset)]


def test_a_reader_stays_with_its_version(tmp_path):
    write_pictures(tmp_path / "pics", 3)
    published(tmp_path, {"op": "files", "path": "pics"})
    dataset = nextloom.open(tmp_path / "datasets" / "toy")
    release = dataset.release("all")
    write_pictures(tmp_path / "pics", 2, start=3)
    published(tmp_path, {"op": "files", "path": "pics"})
    assert dataset.releases == ["all-0001", "all-0002"]
    assert (len(release), release.table(["source.size"]).num_rows, len(list(release.rows()))) == (3, 3, 3)
    assert len(dataset.release("all")) == 5 and len(dataset.release("all-0001")) == 3
    for where in ("datasets/toy", "toy", str(tmp_path / "datasets/toy/")):
        assert nextloom.open(where, root=str(tmp_path)).releases == dataset.releases


def test_images_that_are_gone_are_told(tmp_path):
    write_pictures(tmp_path / "pics", 3)
    published(tmp_path, {"op": "files", "path": "pics"})
    release = nextloom.open(tmp_path / "datasets" / "toy").release("all")
    assert [image.bytes for image in release.images()] == [
        p.read_bytes() for p in sorted((tmp_path / "pics").iterdir())
    ]
    (tmp_path / "pics/p001.png").unlink()
    with pytest.raises(nextloom.UserError, match=r"p001\.png of release all-0001 has no bytes any more"):
        list(release.images())
    first, gone, last = release.images(errors="yield")
    assert (first.key, gone[0], last.key) == ("p000.png", "p001.png", "p002.png")
    assert isinstance(gone[1], FileNotFoundError)


def test_tokens_as_numpy_and_torch(tmp_path):
    made = toy_dataset.build(str(tmp_path / "toy"), ["one", "two", "three"], failed=[1])
    release = nextloom.open(tmp_path / "toy").release("tokens")
    raw = made.column("tokens", ["target"])["target"].to_pylist()
    step = "tokens"
    rows, tensors = list(release.tokens(step)), list(release.tokens(step, kind="torch"))
    assert [row["key"] for row in rows] == made.rows()["key"].to_pylist()
    assert rows[0]["target"].dtype == np.uint16 and rows[0]["target"].tobytes() == raw[0]
    assert rows[1]["target"] is None
    rows[0]["target"][0] = 7  # an array of one's own
    assert tensors[2]["target"].dtype == torch.int32
    assert np.array_equal(tensors[2]["target"].numpy(), rows[2]["target"])
    assert bytes(next(release.tokens("text"))["ids"].astype(np.uint8)) == b"one"
    with pytest.raises(nextloom.UserError, match="no column 'token'; did you mean 'tokens'"):
        next(release.tokens("token"))
    with pytest.raises(nextloom.UserError, match="holds no tokens"):
        next(release.tokens("source"))


def test_columns_of_a_table(tmp_path):
    toy_dataset.build(str(tmp_path / "toy"), ["one", "two", "three"])
    release = nextloom.open(tmp_path / "toy").release("tokens")
    assert {"id", "key", "tokens.schedule", "text.n_tokens"} <= set(release.table().column_names)
    assert not any(pa.types.is_binary(field.type) for field in release.table().schema)
    assert [batch.num_rows for batch in release.batches(["source.caption"], size=2)] == [2, 1]
    whole = release.table(["source"])
    assert whole.column_names[:3] == ["id", "key", "source.key"] and whole["key"] == whole["source.key"]
    for name, what in (("tokens.targets", "no field 'targets'; did you mean 'target'"), ("x.y", "no column 'x'")):
        with pytest.raises(nextloom.UserError, match=what):
            release.table([name])


def test_what_is_no_dataset_is_refused(tmp_path):
    for place, what in ((tmp_path, "is no dataset: it has no rows"), ("nothing", "neither here nor in")):
        with pytest.raises(nextloom.UserError, match=what):
            nextloom.open(place, root=str(tmp_path))
    with pytest.raises(AttributeError, match="no attribute 'recipe'"):
        nextloom.recipe  # noqa: B018
    assert "Recipe" in dir(nextloom)
