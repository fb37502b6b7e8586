"""Comparisons with numbers that a rule makes: what a report draws as thresholds."""

import pytest

from nextloom.curation.decisions.rule import compared_columns, comparisons, connect, parse


def told(sql: str) -> list[tuple]:
    return [(f"{c.step}.{c.column}", c.operator, c.value, c.part, c.alone) for c in comparisons(sql)]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("a.x >= 64", [("a.x", ">=", 64, 0, True)]),
        ("-5 < a.x", [("a.x", ">", -5, 0, True)]),
        ("4.3 >= a.x", [("a.x", "<=", 4.3, 0, True)]),
        ("a.x = 1 and (a.y <> 2)", [("a.x", "=", 1, 0, True), ("a.y", "<>", 2, 1, True)]),
        ("a.x between 1 and 2.5", [("a.x", ">=", 1, 0, True), ("a.x", "<=", 2.5, 0, True)]),
        ("not a.hit and a.x > 1e-3", [("a.x", ">", 0.001, 1, True)]),
        ("a.x > 2 * 3 and a.y < 10::double", [("a.x", ">", 6, 0, True), ("a.y", "<", 10, 1, True)]),
        ("a.x > 1 or a.y > 2", [("a.x", ">", 1, 0, False), ("a.y", ">", 2, 0, False)]),
        ("not (a.x < 1) and a.y > 2", [("a.x", "<", 1, 0, False), ("a.y", ">", 2, 1, True)]),
        ("a.x not between 1 and 2", [("a.x", ">=", 1, 0, False), ("a.x", "<=", 2, 0, False)]),
    ],
)
def test_a_comparison_with_its_part_and_whether_it_is_all_of_it(sql, expected):
    assert told(sql) == expected


@pytest.mark.parametrize("sql", ["a.x > a.y", "a.x = 'red'", "a.x = '5'", "a.x > null", "abs(a.x) > 3", "a.x <> true"])
def test_what_is_no_column_beside_a_number(sql):
    assert told(sql) == []


def test_a_comparison_alone_says_what_its_part_says():
    """DuckDB, asked about numbers around the threshold, agrees with the comparison that was found."""
    sql = "5 < a.x and a.y <= 2.5 and not (a.z > 1) and a.w between 2 and 4"
    parts, found = parse(sql).parts, [c for c in comparisons(sql) if c.alone]
    assert [c.part for c in found] == [0, 1, 3, 3]
    for place in {c.part for c in found}:
        mine = [c for c in found if c.part == place]
        for value in (1.5, 2, 2.5, 3, 4, 4.5, 5, 5.5):
            bare = parts[place].replace(f"a.{mine[0].column}", f"{value}::double")
            ours = all(eval(f"{value} {c.operator} {c.value}") for c in mine)
            assert [(ours,)] == connect().sql(f"select {bare}").fetchall(), (parts[place], value)


def test_a_cast_column_counts_and_a_field_inside_a_column_does_not():
    assert told("a.x::double > 1 / 4") == [("a.x", ">", 0.25, 0, True)]
    assert told("a.s.f > 1 and a.x * 2 > 9") == []


def test_columns_compared_with_columns():
    sql = "a.x >= cut.threshold and not (b.y::int between a.z and 3) and a.x + 1 > b.w"
    assert compared_columns(sql) == ((("a", "x"), ("cut", "threshold")), (("a", "z"), ("b", "y")))
