"""What a recipe may use, how YAML is read, and texts of strangers in front of a person."""

from __future__ import annotations

import json

import pytest

from nextloom.config import load_yaml
from nextloom.errors import UserError
from nextloom.pipelines.recipe import Recipe
from nextloom.printable import printable, redacted

CAPTION = """
dataset: toy
source: {op: files, path: pics}
steps:
  words: {op: caption, model: m, execution: {endpoint: "https://api.openai.com/v1", api_key_env: %s}}
"""
OWN = """
from typing import ClassVar
import pyarrow as pa
from nextloom.op import Annotate

class Length(Annotate):
    name: ClassVar[str] = "length"
    code_version: ClassVar[int] = 1
    def columns(self):
        return pa.schema([("value", pa.int64())])
    def measure(self, row):
        return {"value": len(row.key)}
"""


@pytest.fixture
def captions(tmp_path):
    def write(variable: str) -> None:
        (tmp_path / "data" / "pics").mkdir(parents=True, exist_ok=True)
        (tmp_path / "r.yaml").write_text(CAPTION % variable)

    return write


def test_plan_names_own_code_and_variables(nextloom, captions, tmp_path):
    captions("OPENAI_API_KEY")
    (tmp_path / "length_of_key.py").write_text(OWN)
    with open(tmp_path / "r.yaml", "a") as recipe:
        recipe.write('  length: {op: "length_of_key:Length"}\n')
    code, out, err = nextloom("plan", "r.yaml", cwd=tmp_path)
    assert code == 0, err
    assert f"code         length: length_of_key:Length ({tmp_path}/length_of_key.py)" in out
    assert "environment  words: OPENAI_API_KEY" in out
    plans = {p["step"]: p for p in json.loads(nextloom("plan", "r.yaml", "--json", cwd=tmp_path)[1])}
    assert (
        plans["words"]["environment"] == ["OPENAI_API_KEY"] and plans["length"]["code"] and not plans["words"]["code"]
    )


def test_a_key_goes_to_its_own_service_or_where_the_command_line_says(nextloom, captions, tmp_path):
    captions("NEXTLOOM_CAPTIONS")
    assert nextloom("plan", "r.yaml", cwd=tmp_path)[0] == 0
    captions("AWS_SECRET_ACCESS_KEY")
    code, out, err = nextloom("plan", "r.yaml", cwd=tmp_path)
    field = "steps.words.execution.api_key_env"
    assert code == 1 and f"{field}: the recipe sends the environment variable AWS_SECRET_ACCESS_KEY" in err
    assert "to api.openai.com" in err and "blocked" in out
    allowed = f"{field}=AWS_SECRET_ACCESS_KEY"
    assert f"--set {allowed}" in err
    assert nextloom("plan", "r.yaml", "--set", allowed, cwd=tmp_path)[0] == 0
    code, _, err = nextloom("run", "r.yaml", cwd=tmp_path)
    assert code == 1 and "AWS_SECRET_ACCESS_KEY" in err


def test_the_folder_of_a_recipe_without_own_ops_is_no_place_for_modules(monkeypatch, captions, tmp_path):
    import sys

    captions("OPENAI_API_KEY")
    before = list(sys.path)
    Recipe.load(str(tmp_path / "r.yaml"), root=str(tmp_path))
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands here twice, first on line 1"),
        ("a: [" * 40, "nested deeper than 32 levels"),
        ("? [x]\n: 1\n", "a key is a word or a number"),
        ("a: 1\n---\na: 2\n", "expected a single document"),
    ],
)
def test_yaml_is_read_strictly(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_yaml(tmp_path / "r.yaml")


def test_anchors_and_merges_are_read_as_ever(tmp_path):
    (tmp_path / "r.yaml").write_text("base: &b {x: 1, y: 2}\nc: {<<: *b, x: 3}\nl: [*b, *b]\n")
    both = {"x": 1, "y": 2}
    assert load_yaml(tmp_path / "r.yaml") == {"base": both, "c": {"x": 3, "y": 2}, "l": [both, both]}


def test_text_of_any_language_stays_as_it_is():
    for text in ("ein Fuß, 山の猫, שלום, سلام, ελιά, naïve café, 🐈", "a\tb\nc"):
        assert printable(text, lines=True) == redacted(text) == text
    assert printable("a\nb\x1b[2J\u202e") == "a\\nb\\x1b[2J\\u202e"


@pytest.mark.parametrize(
    "text",
    [
        "completion_tokens=120, max_tokens: 300",
        "the key 'a/b' stands in two files",
        "mail to someone@example.org about https://example.org/a?page=2",
        "12 of 300 rows have no author; monkey=3",
    ],
)
def test_what_is_no_secret_is_not_redacted(text):
    assert redacted(text) == text
