"""Select: a verdict and a reason per row, and what a rule may not say."""

import json
from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from nextloom.config import validate
from nextloom.curation.decisions.select import SelectWhere
from nextloom.curation.scores.scales import KOALA_MOTION, LAION_V2
from nextloom.curation.sources.files import Files
from nextloom.errors import UserError
from nextloom.op import ERROR, error_value
from nextloom.pipelines.recipe import Recipe

BROKEN = error_value("photo", ValueError("the file is empty"))


def column(values: dict, errors: list | None = None) -> pa.Table:
    count = len(next(iter(values.values())))
    error = pa.array(errors or [None] * count, ERROR)
    return pa.table({"id": pa.array(range(count), pa.int64()), **values, "error": error})


def source(**values) -> pa.Table:
    return column(values).drop_columns(["error"])


def decide(where: str, **columns: pa.Table) -> list[tuple]:
    table = SelectWhere(where=where).decide(columns)
    assert table.schema.names == ["id", "verdict", "reason", "rules"]
    return [tuple(row.values()) for row in table.to_pylist()]


def test_kept_rejected_and_failed_with_their_reasons():
    rows = decide(
        "aesthetic.score > 4.3 and photo.short_side >= 256 and not duplicate.hit",
        aesthetic=column({"score": [5.0, 4.0, 4.0, None, 5.0]}),
        photo=column({"short_side": [300, 300, 100, 300, None]}, [None, None, None, None, BROKEN]),
        duplicate=column({"hit": [False, False, True, False, None]}),
    )
    assert rows == [
        (0, "kept", None, "[]"),
        (1, "rejected", "aesthetic.score > 4.3", '["aesthetic.score > 4.3"]'),
        (
            2,
            "rejected",
            "aesthetic.score > 4.3",
            '["aesthetic.score > 4.3", "photo.short_side >= 256", "not duplicate.hit"]',
        ),
        (3, "rejected", "aesthetic.score > 4.3 is null", '["aesthetic.score > 4.3 is null"]'),
        (4, "failed", "photo: ValueError: the file is empty", None),
    ]


def test_an_error_fails_a_row_even_where_sql_would_keep_it():
    photo = column({"width": [None]}, [BROKEN])
    assert decide("photo.width is null or photo.width > 3", photo=photo)[0][1] == "failed"


def test_an_error_of_a_step_that_the_rule_does_not_name_is_no_failure():
    rows = decide("a.x > 1", a=column({"x": [2]}), photo=column({"width": [None]}, [BROKEN]))
    assert rows == [(0, "kept", None, "[]")]


def test_tables_are_joined_by_id_not_by_place():
    a = column({"x": [10, 20, 30]})
    b = column({"y": [10, 20, 31]}).take([2, 0, 1])
    assert [row[1] for row in decide("a.x = b.y", a=a, b=b)] == ["kept", "kept", "rejected"]


def test_source_columns_and_text():
    rows = decide("source.caption ilike '%cat''s%' and source.key <> '一.jpg'",
                  source=source(caption=["A Cat's eye", "dog", None], key=["a", "b", "一.jpg"]))  # fmt: skip
    assert [row[1:3] for row in rows] == [
        ("kept", None),
        ("rejected", "source.caption ilike '%cat''s%'"),
        ("rejected", "source.caption ilike '%cat''s%' is null"),
    ]
    assert json.loads(rows[2][3]) == ["source.caption ilike '%cat''s%' is null", "source.key <> '一.jpg'"]


@pytest.mark.parametrize(
    ("where", "rules"),
    [
        ("a.x between 1 and 3 and b.y", ("a.x between 1 and 3", "b.y")),
        ("(a.x > 1 and (b.y or a.z)) and a.w", ("a.x > 1", "b.y or a.z", "a.w")),
        ("a.x > 1 or a.y > 1 and a.z > 1", ("a.x > 1 or a.y > 1 and a.z > 1",)),
        ("not (a.x and a.y)", ("not (a.x and a.y)",)),
        ("case when a.x and a.y then a.z end and a.w", ("case when a.x and a.y then a.z end", "a.w")),
        ("a.x > 1 -- and nothing\n  AND   a.t = ' and  (' /* and */ and a.z", ("a.x > 1", "a.t = ' and  ('", "a.z")),
        ('"odd step"."a and b" > 1 and a.x in (1, 2)', ('"odd step"."a and b" > 1', "a.x in (1, 2)")),
        ("(a.x) > 1 and (a.y) < 2", ("(a.x) > 1", "(a.y) < 2")),
        ("a.t = $$x and y$$ and a.z", ("(a.t = 'x and y')", "a.z")),  # split in vain: as DuckDB writes it
    ],
)
def test_rules_are_the_parts_joined_by_and(where, rules):
    assert SelectWhere(where=where).rules() == rules


def test_used_names_steps_in_order_once():
    op = SelectWhere(where="b.x > 1 and lower(source.caption) = 'x' and b.y < a.z::double and \"Odd Name\".s.f")
    assert op.used() == ("b", "source", "a", "Odd Name")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("a.x >", "not a SQL expression"),
        ("", "reads no step.column"),
        ("true) from a where (true", "whole query"),
        ("a.x); drop table a; select (1", "whole query|not a SQL expression"),
        ("score > 3", "write step.column, not 'score'"),
        ("a.x > (select 1)", "a subquery"),
        ("a.x in (select b.y from b)", "a subquery"),
        ("sum(a.x) > 1", "sum.. *, which is about many"),
        ("count(*) over () > 1 and a.x", "a window function"),
        ("a.x > random()", "the same verdict every time"),
        ("a.day < now()", "the same verdict every time"),
        ("age(a.day) > interval 1 day", "the same verdict every time"),
        ("lowr(a.x) = 'a'", "did you mean 'lower'"),
        ("a.x > ?", "a parameter"),
        ("columns('.*') > 1", "cannot hold"),
        ("list_filter(a.x, v -> v > 1) = []", "cannot hold"),
        ("source.sidecar->'$.x' = 1", "write `->>`"),
        ("true", "reads no step.column"),
    ],
)
def test_what_a_rule_may_not_say(where, message):
    with pytest.raises(UserError, match=rf"(?s)^steps\.keep\.where: .*({message})"):
        validate(SelectWhere, {"where": where}, where="steps.keep")


def test_unknown_names_are_refused_with_a_suggestion():
    photo = column({"short_side": [1]})
    with pytest.raises(UserError, match=r"^where: .*did you mean 'short_side'\?"):
        decide("photo.shortside > 1", photo=photo)
    with pytest.raises(UserError, match=r"^where: .*did you mean 'photo'\?"):
        decide("foto.short_side > 1", photo=photo)
    with pytest.raises(UserError, match=r"^steps\.keep\.where: "):
        SelectWhere(where="photo.x > 1").check({"photo": ["y"]}, "steps.keep")


def test_a_rule_is_true_or_false_and_takes_every_value():
    with pytest.raises(UserError, match=r"'photo\.width' is BIGINT, not true or false"):
        decide("photo.width", photo=column({"width": [1]}))
    with pytest.raises(UserError, match=r"cannot be evaluated: .* 'x' to INT32.*\n  next: write try_cast"):
        decide("source.caption::int > 1", source=source(caption=["x"]))
    assert decide("try_cast(source.caption as int) > 1", source=source(caption=["x"]))[0][1] == "rejected"


@pytest.mark.parametrize("extra", [{}, {"distinct": "dup.group"}])
def test_a_value_that_a_rule_does_not_fit_costs_its_row_alone(extra):
    captions = source(caption=["2", "n/a", None, "1"])
    rule = SelectWhere(where="source.caption::int > 1 and source.id >= 0", **extra)
    groups = column({"group": [0, 1, 2, 3]})
    rows = rule.decide({"source": captions, "dup": groups}).to_pylist()
    assert [row["verdict"] for row in rows] == ["kept", "failed", "rejected", "rejected"]
    assert rows[1]["reason"] == "where: CannotEvaluate: a value of this row does not fit source.caption::int > 1"
    assert rows[2]["reason"] == "source.caption::int > 1 is null" and rows[1]["rules"] is None


def test_half_of_a_surrogate_pair_in_one_sidecar_stops_no_rule(tmp_path):
    for name, text in (("a", r'{"score": 1, "alt": "\ud83d"}'), ("b", r'{"score": 2, "alt": "\ud83d\ude00"}')):
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
        (tmp_path / f"{name}.json").write_text(text)
    sidecars = Files(path=str(tmp_path)).items("", {})["sidecar"].to_pylist()
    rows = decide("(source.sidecar->>'$.score')::int > 1", source=source(sidecar=sidecars))
    assert [row[1] for row in rows] == ["rejected", "kept"]
    assert [json.loads(text)["alt"] for text in sidecars] == [r"\ud83d", "\U0001f600"]


def test_arithmetic_in_a_rule():
    rows = decide("a.x + 1 - a.y * 2 > 0 and year(a.day) = 2024",
                  a=column({"x": [10, 1], "y": [2, 1], "day": [date(2024, 2, 3), date(2024, 2, 3)]}))  # fmt: skip
    assert [row[1] for row in rows] == ["kept", "rejected"]


def test_tables_of_different_ids_are_refused():
    with pytest.raises(AssertionError, match="different ids"):
        decide("a.x > b.y", a=column({"x": [1, 2]}), b=column({"y": [0]}))


def test_no_file_can_be_reached(tmp_path):
    from nextloom.curation.decisions.rule import connect

    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(Exception, match="disabled"):
        connect().sql(f"select * from '{tmp_path}/a.csv'").fetchall()


def test_no_rows_and_the_types_of_the_columns():
    op = SelectWhere(where="a.x > 1 and a.y")
    empty = op.decide({"a": column({"x": [1], "y": [True]}).slice(0, 0)})
    assert empty.num_rows == 0
    assert empty.schema.equals(pa.schema([("id", pa.int64()), *op.columns()]))


def test_a_million_rows():
    count = 1_000_000
    ids, none = np.arange(count), pa.nulls(count, ERROR)
    score = np.random.default_rng(0).random(count)
    a = pa.table({"id": ids, "score": score, "error": none})
    b = pa.table({"id": ids, "side": (score * 512).astype(np.int32), "error": none})
    table = SelectWhere(where="a.score > 0.5 and b.side < 400").decide({"a": a, "b": b})
    kept = table["verdict"].to_numpy(zero_copy_only=False) == "kept"
    assert (kept == ((score > 0.5) & ((score * 512).astype(int) < 400))).all()


SCALES = {"aesthetic": {"score": LAION_V2}, "motion": {"score": KOALA_MOTION}, "photo": {}}


def refuse_scale(where: str, message: str, **scales: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)^steps\.keep\.{message}"):
        SelectWhere(where=where, scales=scales).check_scales(SCALES, "steps.keep")


@pytest.mark.parametrize(
    "where",
    [
        "aesthetic.score > 0.5",  # the default of a peer, meant for 0 to 1
        "aesthetic.score between 0.2 and 0.9",
        "not (photo.width > 3 or 50 < aesthetic.score)",
        "aesthetic.score::float <= -1",
    ],
)
def test_a_number_of_another_scale_is_refused(where):
    told = r"where: aesthetic\.score is on scale laion-aesthetic-v2 \(1 to 10\), and \S+ is not on it"
    rank = r"\{op: quantile, reads: \[aesthetic\], column: score, (top|bottom): 0\.30\}"
    with pytest.raises(UserError, match=rf"(?s)^steps\.keep\.{told}.*{rank}"):
        SelectWhere(where=where, scales={}).check_scales(SCALES, "steps.keep")


@pytest.mark.parametrize(
    "where",
    [
        "aesthetic.score >= 1 and aesthetic.score <= 10",
        "photo.width > 1000",
        "aesthetic.score / 10 > 0.5",
        "aesthetic.score is not null or aesthetic.score = 0",
        "motion.score > 500000",
        "aesthetic.score > photo.width",
    ],
)
def test_numbers_on_the_scale_and_columns_without_one_pass(where):
    SelectWhere(where=where).check_scales(SCALES, "steps.keep")


def test_a_rule_may_name_its_scale():
    ask = "aesthetic.score > 0.5 and photo.width > 3"
    for name in ("aesthetic", "aesthetic.score"):
        SelectWhere(where=ask, scales={name: "laion-aesthetic-v2"}).check_scales(SCALES, "steps.keep")
        refuse_scale(ask, rf"scales\.{name}: .*laion-aesthetic-v2 \(1 to 10\), not on 'koala-aesthetic'.*quantile",
                     **{name: "koala-aesthetic"})  # fmt: skip
    refuse_scale(ask, "scales.photo: 'photo' is on no scale", photo="x")
    refuse_scale(ask, "scales.asthetic: .*did you mean 'aesthetic'", asthetic="x")
    refuse_scale("motion.score > -1", r"where: motion\.score is on scale koala-motion \(0 to no end\), and -1 ")
    refuse_scale("aesthetic.score < motion.score", "where: .*they do not compare")


def test_naming_a_scale_is_no_new_identity():
    assert SelectWhere(where="a.x > 1", scales={"a": "b"}).identity() == SelectWhere(where="a.x > 1").identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"where": "stats.width"}, r"steps\.keep\.where: 'stats\.width' is INTEGER, not true or false"),
        ({"where": "stats.width > 'abc'"}, r"steps\.keep\.where: the rule cannot be evaluated: .*'abc'"),
        ({"where": "stats.width + 1 and true"}, r"steps\.keep\.where: "),
        ({"where": "stats.width > 1", "distinct": "stats.aspect"}, r"steps\.keep\.distinct: stats\.aspect is DOUBLE"),
    ],
)
def test_a_rule_of_the_wrong_type_is_refused_before_anything_runs(tmp_path, fields, message):
    steps = {"stats": {"op": "image_stats"}, "keep": {"op": "select", **fields}}
    with pytest.raises(UserError, match=message):
        Recipe.build({"dataset": "x", "source": {"op": "files", "path": "p"}, "steps": steps}, root=str(tmp_path))
