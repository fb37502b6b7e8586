"""``nextloom ops``: every op says what it is, field by field, and its example is one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nextloom.config import validate
from nextloom.pipelines.manual import KINDS, example_of, page_of, pages
from nextloom.pipelines.recipe import Recipe
from nextloom.pipelines.registry import OPS, SOURCES, known

CLASSES = {**known(SOURCES), **known(OPS)}


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_has_a_doc_and_the_example_validates(name):
    cls = CLASSES[name]
    page = page_of(cls)
    assert page.summary and page.kind in KINDS
    told = [*page.fields, *(field for inner in page.inner.values() for field in inner)]
    assert not [field.name for field in told if not field.doc]
    assert not [field.name for field in told if "[" in field.type], "types in words"
    assert {f.name for f in page.fields} == {info.alias or field for field, info in cls.model_fields.items()}
    text, fields = example_of(cls)
    assert text, f"write `x: {{op: {name}, ...}}` in the docstring of the class or its module"
    built = validate(cls, fields, where=name)
    if hasattr(built, "columns") and page.kind not in ("expand", "source"):
        assert page.columns == {field.name: str(field.type) for field in built.columns()}
    needed = {f.name for f in page.fields if f.default is None}
    assert needed <= fields.keys() and fields.keys() <= {f.name for f in page.fields}


def test_an_example_with_the_steps_it_reads_is_a_recipe(tmp_path):
    text, fields = example_of(CLASSES["near_duplicate"])
    assert text == "phash: {op: perceptual_hash}\nduplicate: {op: near_duplicate, reads: [phash], max_distance: 6}"
    steps = {"phash": {"op": "perceptual_hash"}, "duplicate": {"op": "near_duplicate", **fields}}
    built = Recipe.build({"dataset": "x", "source": {"op": "files", "path": "p"}, "steps": steps}, root=str(tmp_path))
    assert built.steps["duplicate"].max_distance == 6


def test_types_and_defaults_are_told_in_words():
    fields = {field.name: field for field in page_of(CLASSES["near_duplicate"]).fields}
    assert (fields["max_distance"].type, fields["max_distance"].default) == ("int, at least 0, at most 8", "6")
    assert (fields["keep"].type, fields["keep"].default) == ("'first' or 'best'", "first")
    assert (fields["reads"].type, fields["reads"].default) == ("list of str", "[]")
    tokens = {field.name: field for field in page_of(CLASSES["image_tokens"]).fields}
    assert (tokens["tokenizer"].type, tokens["tokenizer"].default) == ("path", None)
    assert list(fields)[-3:] == ["rows", "reads", "execution"]


def test_the_verb_lists_shows_and_suggests(nextloom):
    code, out, _ = nextloom("ops")
    assert code == 0 and {line.split()[1] for line in out.splitlines()[1:-2]} == set(CLASSES)
    code, out, _ = nextloom("ops", "near_duplicate")
    assert code == 0 and out.startswith(
        "near_duplicate: reduce, nextloom.curation.duplicates.near_duplicate:NearDuplicate\n"
    )
    for part in (
        "\n  duplicate: {op: near_duplicate,",
        "\n  max_distance  int, at least 0, at most 8; default 6\n",
        "\n  group  int64\n",
    ):
        assert part in out
    assert nextloom("ops", "toy_ops:Mean")[1].startswith("mean: annotate, toy_ops:Mean\n")
    code, out, err = nextloom("ops", "near_duplicates")
    assert (code, out) == (1, "") and "did you mean 'near_duplicate'?" in err
    _, out, _ = nextloom("ops", "--json")
    listed = json.loads(out)
    assert [each["name"] for each in listed] == [page.name for page in pages()]
    assert all(each["example"] for each in listed)


def test_listing_ops_imports_neither_ray_nor_torch():
    code = (
        "import sys; from nextloom.pipelines.manual import pages; print(len(pages()))\n"
        "print(sorted({'ray', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [str(len(CLASSES)), "[]"], done.stderr
