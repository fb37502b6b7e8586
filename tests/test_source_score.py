"""Scores, hashes and texts that a source brought in the row's record; and what reads them, through the engine."""

import json
import re

import pytest

from engine import build, contents, plans, run, write_pictures
from nextloom.config import validate
from nextloom.curation.scores.source_hash import SourceHash
from nextloom.curation.scores.source_score import SourceScore
from nextloom.curation.scores.source_text import SourceText
from nextloom.errors import UserError
from nextloom.op import Row, RowFailure

COYO = {
    "id": 841814333321,
    "image_phash": "c4a6df00b1fe2e05",
    "clip_similarity_vitb32": 0.291504,
    "nsfw_score_opennsfw2": 0.0185,
    "watermark_score": 0.0193,
    "aesthetic_score_laion_v2": 5.2372,
}
"""Columns of a row in the shape of COYO-700M."""


def row(record: object) -> Row:
    return Row(1, "a.jpg", {"sidecar": record if isinstance(record, str | None) else json.dumps(record)})


def score(record: object, **config) -> float:
    return SourceScore(**config).measure(row(record))["score"]


@pytest.mark.parametrize(
    ("column", "scale"),
    [
        ("aesthetic_score_laion_v2", "laion-aesthetic-v2"),
        ("clip_similarity_vitb32", "clip-vitb32-cosine"),
        ("nsfw_score_opennsfw2", "opennsfw2"),
        ("watermark_score", "coyo-watermark"),
        ("pwatermark", "laion-watermark"),
        ("punsafe", "laion-unsafe"),
        ("similarity", "laion-similarity"),
        ("clarity_score", "koala-clarity"),
        ("aesthetic_score", "koala-aesthetic"),
        ("motion_score", "koala-motion"),
        ("metadata.punsafe", "laion-unsafe"),
    ],
)
def test_columns_of_public_datasets_have_their_scale(column, scale):
    assert SourceScore(column=column).score_scales()["score"].name == scale


def test_a_score_is_the_number_in_the_record_to_the_last_bit():
    for column in ("aesthetic_score_laion_v2", "clip_similarity_vitb32", "watermark_score"):
        assert score(COYO, column=column) == COYO[column]
    assert score({"pwatermark": " 0.25 "}, column="pwatermark") == 0.25  # CSV sources bring texts
    assert score({"punsafe": 1}, column="punsafe") == 1.0
    assert score({"a": {"b": {"punsafe": 0.5}}}, column="a.b.punsafe") == 0.5
    assert score({"a.punsafe": 0.5, "a": {"punsafe": 0.1}}, column="a.punsafe") == 0.5  # the whole name first


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        ({"pwatermrk": 0.1}, "NoColumn", "did you mean 'pwatermrk'"),
        ({"error": "not UTF-8"}, "NoColumn", "could not be read: not UTF-8"),
        ({"pwatermark": {"x": 1}}, "NoNumber", "{'x': 1}"),
        ({"pwatermark": True}, "NoNumber", "True"),
        ({"pwatermark": "high"}, "NoNumber", "'high'"),
        ({"pwatermark": "1_0"}, "NoNumber", "'1_0'"),
        ({"pwatermark": "nan"}, "NoNumber", "'nan'"),
        ('{"pwatermark": NaN}', "NoNumber", "nan"),
        ('{"pwatermark": 1e999}', "NoNumber", "inf"),
        ({"pwatermark": 37.0}, "OffScale", r"pwatermark is not on laion-watermark \(0 to 1\): 37"),
        (None, "NoSidecar", "brought no record"),
        ("", "NoSidecar", "brought no record"),
        ("[1]", "NoSidecar", "not names with values: list"),
        ("{", "NoSidecar", "is no JSON"),
        ("[" * 100_000, "NoSidecar", "is no JSON"),
    ],
)
def test_a_row_without_the_number_is_an_error(record, kind, message):
    with pytest.raises(RowFailure) as caught:
        score(record, column="pwatermark")
    assert caught.value.kind == kind
    assert re.search(message, f"{caught.value}: {caught.value.detail}")
    assert caught.value.values == ({"score": 37.0} if kind == "OffScale" else {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"column": "aesthetic"}, "laion-aesthetic-v1 or laion-aesthetic-v2"),
        ({"column": "likes"}, "what do the numbers of 'likes' mean"),
        ({"column": "likes", "scale": "laion-aestetic-v2"}, "did you mean 'laion-aesthetic-v2'"),
        ({"column": "likes", "scale": "likes"}, r"range: \[LOW, HIGH\]"),
        ({"column": "likes", "range": [0, 1]}, "without the name of its scale"),
        ({"column": "likes", "scale": "likes", "range": [1, 1]}, "is empty"),
        ({"column": "x", "scale": "laion-aesthetic-v2", "range": [0, 1]}, "range of its own"),
    ],
)
def test_a_scale_that_is_not_known_is_refused(config, message):
    with pytest.raises(UserError, match=rf"(?s)^steps\.s: .*{message}"):
        validate(SourceScore, config, where="steps.s")


def test_a_scale_named_or_implied_is_one_identity():
    implied, named = SourceScore(column="punsafe"), SourceScore(column="punsafe", scale="laion-unsafe")
    assert implied.identity() == named.identity()
    assert implied.identity() != SourceScore(column="punsafe", scale="open-nsfw").identity()
    own = SourceScore(column="stats.likes", scale="likes", range=(0, 1e6))
    assert (own.score_scales()["score"].name, own.score_scales()["score"].high) == ("likes", 1e6)
    assert json.dumps(SourceScore(column="motion_score").identity(), allow_nan=False)


def test_a_hash_in_hex_is_the_bit_pattern():
    found = SourceHash().measure(row(COYO))["hash"]
    assert found % 2**64 == 0xC4A6DF00B1FE2E05
    assert found < 0  # the first digit holds the sign bit
    assert SourceHash(column="h").measure(row({"h": "00000000000000FF"})) == {"hash": 255}
    for bad in ("ff", "0xc4a6df00b1fe2e05", "c4a6df00b1fe2e0g", 5, "c4a6df00b1fe2e05\n"):
        with pytest.raises(RowFailure, match="not 16 hex digits"):
            SourceHash().measure(row({"image_phash": bad}))


def test_a_text_is_kept_as_it_is():
    text = SourceText(column="LICENSE")
    assert text.measure(row({"LICENSE": " CC-BY \u4e00"})) == {"text": " CC-BY \u4e00"}
    assert text.measure(row({"LICENSE": 7})) == {"text": "7"}
    for bad in (True, 1.5, ["a"]):
        with pytest.raises(RowFailure, match="LICENSE is no text"):
            text.measure(row({"LICENSE": bad}))


def test_a_null_of_the_source_is_a_null_and_no_failure():
    """Before: an error row, which no rule could keep."""
    assert score({"pwatermark": None}, column="pwatermark") is None
    assert SourceText(column="LICENSE").measure(row({"LICENSE": None})) == {"text": None}
    assert SourceHash(column="h").measure(row({"h": None})) == {"hash": None}


STEPS = {
    "length": {"op": "toy_ops:KeyLength"},
    "aesthetic": {"op": "source_score", "column": "aesthetic_score_laion_v2"},
    "phash": {"op": "source_hash"},
    "topic": {"op": "source_text", "column": "topic"},
    "duplicate": {"op": "near_duplicate", "reads": ["phash"], "max_colour": None},
    "cut": {"op": "quantile", "reads": ["aesthetic"], "column": "score", "top": 0.5},
    "keep": {"op": "select", "where": "aesthetic.score > 4.3 and not duplicate.hit"},
    "balanced": {"op": "balance", "rows": "keep", "by": "topic.text", "max_rows": 3},
    "after": {"op": "toy_ops:Mean", "rows": "balanced"},
}


def write(root, start: int, count: int) -> None:
    """Pictures with records: scores 4.0, 4.1, ...; p003 has none; p005 and p006 hash alike; two cats to a dog."""
    write_pictures(root / "pics", count, start=start)
    for i in range(start, start + count):
        record = {
            "aesthetic_score_laion_v2": f"{4 + i / 10}",
            "image_phash": f"{0x5555 * (i - (i == 6)) ** 9 % 2**64:016x}",
            "topic": "dog" if i % 3 == 2 else "cat",
        }
        if i != 3:
            (root / "pics" / f"p{i:03d}.json").write_text(json.dumps(record))


def test_decisions_change_without_a_scorer_or_a_decode(tmp_path, ray_local):
    """A threshold, a cap, a share: only what decides is to do. New files: balance whole, scores of the new rows."""
    write(tmp_path, 0, 14)
    recipe, dataset = build(tmp_path, STEPS)
    counts = run(recipe, dataset)
    assert counts["aesthetic"] == {"rows": 14, "values": 13, "errors": 1, "done": 14}
    assert counts["keep"] == {"rows": 14, "kept": 9, "rejected": 4, "failed": 1, "done": 14}
    assert counts["balanced"] == {"rows": 9, "kept": 6, "rejected": 3, "failed": 0, "done": 9}
    assert counts["after"]["rows"] == 6  # rows: balanced
    table = contents(recipe, dataset)
    told = {r["key"]: r for r in table["balanced"]}
    cats = [r for key, r in told.items() if int(key[1:4]) % 3 != 2]
    assert [r["reason"] for r in cats if r["verdict"] == "rejected"] == [f"cat: {len(cats)} of 3"] * (len(cats) - 3)
    assert {r["key"] for r in table["keep"] if r["reason"] == "not duplicate.hit"} == {"p006.png"}
    assert {r["key"] for r in table["keep"] if r["verdict"] == "failed"} == {"p003.png"}
    cut = {r["key"]: r for r in table["cut"]}
    assert cut["p003.png"]["error"]["type"] == "NoSidecar"
    assert {(r["of"], r["scale"], r["rows"], r["threshold"]) for key, r in cut.items() if key != "p003.png"} == {
        ("aesthetic.score", "laion-aesthetic-v2", 13, 4.7)  # the 7th of 13
    }

    def todo(**changes) -> dict[str, int | None]:
        steps = {name: {**fields, **changes.get(name, {})} for name, fields in STEPS.items()}
        found = plans(*build(tmp_path, steps))
        return {name: p.todo for name, p in found.items() if p.todo != 0}

    assert todo() == {}
    assert todo(cut={"top": 0.2}) == {"cut": 14}
    assert todo(keep={"scales": {"aesthetic": "laion-aesthetic-v2"}}) == {}, "naming the scale changes nothing"
    capped = todo(balanced={"max_rows": 2})
    assert capped == {"balanced": 9}, "a lower cap keeps fewer of the same rows, so the pass after it has none to do"
    looser = todo(balanced={"max_rows": 4})
    assert looser == {"balanced": 9, "after": 1}, "a higher cap adds one cat"
    threshold = todo(keep={"where": "aesthetic.score > 5.0 and not duplicate.hit"})
    new = [key for key in ("p011.png", "p012.png", "p013.png") if told[key]["verdict"] != "kept"]
    assert threshold == {"keep": 14, "balanced": 3, "after": len(new)}, "all that is left of a class has room now"

    changed = {
        **STEPS,
        "keep": {**STEPS["keep"], "where": "aesthetic.score > 4.5 and not duplicate.hit"},
        "balanced": {**STEPS["balanced"], "max_rows": 2},
    }
    counts = run(*build(tmp_path, changed))
    assert {name: c["done"] for name, c in counts.items() if c["done"]} == {"keep": 14, "balanced": 7}
    assert counts["after"]["rows"] == 4
    run(recipe, dataset)

    write(tmp_path, 14, 2)
    found = plans(recipe, dataset)
    assert {name: found[name].todo for name in ("length", "aesthetic", "phash", "topic")} == dict.fromkeys(
        ("length", "aesthetic", "phash", "topic"), 2
    )
    counts = run(recipe, dataset)
    assert counts["aesthetic"]["done"] == 2
    assert (counts["duplicate"]["done"], counts["cut"]["done"]) == (16, 16), "a reduce is done whole"
    assert counts["balanced"] == {"rows": 11, "kept": 6, "rejected": 5, "failed": 0, "done": 11}
    assert contents(recipe, dataset)["balanced"] == contents(*fresh(tmp_path))["balanced"]


def fresh(root):
    """The same recipe over the same files in a dataset of its own, run once."""
    recipe, dataset = build(root, STEPS, dataset="toy")
    other = type(dataset)(str(root / "datasets" / "again"))
    run(recipe, other)
    return recipe, other


def test_a_plan_refuses_thresholds_of_another_scale(tmp_path):
    write(tmp_path, 0, 1)

    def refused(match: str, **changes) -> None:
        with pytest.raises(UserError, match=match):
            build(tmp_path, {**STEPS, **changes})

    keep = {"op": "select", "where": "aesthetic.score > 0.5"}
    refused(r"(?s)^steps\.keep\.where: aesthetic\.score is on scale laion-aesthetic-v2 \(1 to 10\), and 0\.5 is not.*"
            r"op: quantile, reads: \[aesthetic\], column: score, top: 0\.30", keep=keep)  # fmt: skip
    refused(r"^steps\.keep\.where: cut\.rank is on scale share \(0 to 1\), and 30 ",
            keep={**keep, "where": "cut.rank <= 30"})  # fmt: skip
    refused(r"^steps\.keep\.where: cut\.threshold is on scale laion-aesthetic-v2",
            keep={**keep, "where": "cut.threshold > 0.5"})  # fmt: skip
    koala = {"op": "source_score", "column": "aesthetic_score"}
    refused(r"^steps\.keep\.where: cut\.threshold is on .* they do not compare",
            koala=koala, keep={**keep, "where": "koala.score >= cut.threshold"})  # fmt: skip
    assert build(tmp_path, {**STEPS, "keep": {**keep, "where": "aesthetic.score >= cut.threshold"}})
    assert build(tmp_path, {**STEPS, "keep": {**keep, "scales": {"aesthetic": "laion-aesthetic-v2"}}})
