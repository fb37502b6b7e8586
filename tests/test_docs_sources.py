"""docs/sources.md: the rules in it keep the rows it says, and the columns it lists are those there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nextloom.config import validate
from nextloom.curation.decisions.select import SelectWhere
from nextloom.curation.sources.files import Files
from nextloom.curation.sources.suffixes import SUFFIXES
from nextloom.curation.sources.table import Table
from nextloom.store.dataset import ROWS, Dataset
from nextloom.store.listing import Changes

DOCS = (Path(__file__).parent.parent / "docs" / "sources.md").read_text(encoding="utf-8")
RECORDS = re.search(r"```json\n(.*?)```", DOCS, re.DOTALL)[1]
RULES = re.findall(r"^\| `(.*source\..*)` \| ([a-c ]+) \|$", DOCS, re.MULTILINE)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "t.jsonl").write_text(RECORDS)
    dataset = Dataset(str(folder / "d"))
    changes = Changes(dataset, Table(path=str(folder / "t.jsonl")))
    with dataset.lease("test"):
        changes.apply()
    return dataset.live_rows(ROWS.names[1:])


def test_there_are_rules():
    assert len(RULES) >= 10


@pytest.mark.parametrize(("rule", "keeps"), RULES)
def test_a_rule_keeps_what_the_page_says(rows, rule, keeps):
    verdicts = SelectWhere(where=rule).decide({"source": rows}).to_pylist()
    assert not [row for row in verdicts if row["verdict"] == "failed"]
    assert " ".join("abc"[row["id"]] for row in verdicts if row["verdict"] == "kept") == keeps


def test_the_columns_are_those_of_the_rows_table():
    named = re.findall(r"^\| ((?:`source\.\w+`(?:, )?)+) \|", DOCS, re.MULTILINE)
    assert {name for cell in named for name in re.findall(r"source\.(\w+)", cell)} == set(ROWS.names)


def test_the_suffixes_are_those_that_are_read():
    (line,) = re.findall(r"make a file an image: (.*?)\. `suffixes", DOCS)
    assert tuple(line.split()) == SUFFIXES


def test_a_path_is_relative_to_the_root(tmp_path):
    source = validate(Files, {"path": "photos"}, where="source", root=str(tmp_path))
    assert source.path == str(tmp_path / "photos")
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    (tmp_path / "photos" / "sub" / "t.csv").write_text("url\npics/1.jpg\n")
    table = validate(Table, {"path": "photos/sub/t.csv"}, where="source", root=str(tmp_path))
    assert table.items(next(iter(table.units())), {})["uri"].to_pylist() == [str(tmp_path / "photos/sub/pics/1.jpg")]
    based = validate(Table, {"path": "photos/sub/t.csv", "base": "photos"}, where="source", root=str(tmp_path))
    assert based.items(next(iter(based.units())), {})["uri"].to_pylist() == [str(tmp_path / "photos/pics/1.jpg")]
