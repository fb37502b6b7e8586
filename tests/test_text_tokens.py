"""Captions to ids: bytes, a Hugging Face file, what a missing caption does, and the step's identity."""

import json

import numpy as np
import pytest

from nextloom.config import validate
from nextloom.errors import UserError
from nextloom.op import Row
from nextloom.tokenize.text_tokens import TextTokens

WORDS = {
    "version": "1.0",
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"a": 0, "red": 1, "heart": 2, "?": 3}, "unk_token": "?"},
}


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(WORDS))
    return path


def ids(op, text):
    op.setup()
    (value,) = op.process([Row(id=1, key="k", source={"caption": text})])
    if isinstance(value, Exception):
        raise value
    found = np.frombuffer(value["ids"], "<i4").tolist()
    assert value["n_tokens"] == len(found)
    assert set(value) == set(op.columns().names)
    return found


def test_bytes_are_the_utf8_of_the_caption():
    text = "a red heart, 心 ♥"
    found = ids(TextTokens(), text)
    assert bytes(found).decode() == text
    assert all(0 <= i < 256 for i in found)


def test_golden_output():
    op = TextTokens()
    op.setup()
    out = op.measure(Row(id=7, key="7", source={"caption": "né"}))
    golden = {"ids": bytes([110, 0, 0, 0, 195, 0, 0, 0, 169, 0, 0, 0]), "n_tokens": 3}
    assert out == golden, "the same caption gives other ids: bump code_version"


def test_a_hugging_face_file_decides_the_ids(vocabulary):
    assert ids(TextTokens(tokenizer=str(vocabulary)), "a red red heart") == [0, 1, 1, 2]


@pytest.mark.parametrize("caption", [None, ""])
def test_a_missing_caption_is_an_error_row_unless_allowed(caption):
    with pytest.raises(ValueError, match="empty: allow"):
        ids(TextTokens(), caption)
    assert ids(TextTokens(empty="allow"), caption) == []


def test_a_row_without_the_column_fails_alone():
    op = TextTokens(column="title")
    op.setup()
    good, bad = op.process([Row(1, "a", {"title": "x"}), Row(2, "b", {"caption": "x"})])
    assert good["n_tokens"] == 1
    assert isinstance(bad, ValueError)


def test_identity_is_the_content_of_the_file_not_its_place(vocabulary, tmp_path):
    copy = tmp_path / "elsewhere.json"
    copy.write_bytes(vocabulary.read_bytes())
    before = TextTokens(tokenizer=str(vocabulary)).identity()
    assert TextTokens(tokenizer=str(copy)).identity() == before
    copy.write_text(json.dumps({**WORDS, "version": "1.0 "}))
    assert TextTokens(tokenizer=str(copy)).identity() != before
    assert TextTokens().identity()["tokenizer"] == "bytes"


def test_paths_resolve_below_the_root_and_a_missing_file_is_refused(vocabulary, tmp_path):
    found = validate(TextTokens, {"tokenizer": "tokenizer.json"}, where="steps.text", root=str(tmp_path))
    assert found.tokenizer == str(vocabulary)
    assert validate(TextTokens, {"tokenizer": "bytes"}, where="steps.text", root=str(tmp_path)).tokenizer == "bytes"
    with pytest.raises(UserError, match="no such tokenizer file"):
        TextTokens(tokenizer=str(tmp_path / "no.json")).identity()
