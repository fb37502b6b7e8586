"""Patterns of shards: what they match, and that neither names nor time grow without bound."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextloom.curation.sources.finding import find_shards
from nextloom.curation.sources.globs import MAX_PATTERNS, matcher, spelled
from nextloom.errors import UserError


@pytest.mark.parametrize(
    ("pattern", "fits", "not_so"),
    [
        ("*.tar", ["a.tar", ".tar"], ["a/b.tar", "a.tar.gz"]),
        ("**/*.tar", ["a.tar", "a/b.tar", "a/b/c.tar"], ["a/b.tgz"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb", "x/a/b"]),
        ("a/**", ["a/b"], ["a", "a/b/c"]),
        ("**/x/**/y", ["x/y", "a/x/b/c/y", "x/x/y"], ["y/x", "xy"]),
        ("[ab]?[!0-9].t", ["axz.t", "b1-.t"], ["ax9.t", "cxz.t", "a/z.t"]),
        ("a*b*c", ["abc", "aXbYc", "abbcc"], ["acb", "ab/c"]),
        ("a]b[c", ["a]b[c"], ["abc"]),
        ("[]a]*", ["]x", "ax"], ["bx"]),
        ("a.b+(c)", ["a.b+(c)"], ["axb+(c)", "a.bb(c)"]),
        ("*a/b*", ["xa/by", "a/b"], ["xa/cb"]),
        ("*\n*", ["a\nb"], ["ab"]),
    ],
)
def test_what_a_pattern_fits(pattern, fits, not_so):
    assert [name for name in fits + not_so if matcher(pattern)(name)] == fits


PIECES = st.sampled_from(["a", "b", "ab", "*", "?", "/", "**/", "[ab]", "[!a]"])


@given(st.lists(PIECES, max_size=8), st.text("ab/", max_size=9))
def test_it_fits_what_the_plain_regex_fits(pieces, name):
    pattern = re.sub(r"(?<=[^/])\*\*+/|\*\*\*+/?", "*/", re.sub("/+", "/", "".join(pieces)))
    parts = {"**/": "(?:[^/]*/)*", "*": "[^/]*", "?": "[^/]", "[!a]": "[^a/]"}
    tokens = re.findall(r"(?<![^/])\*\*/|\*+|\?|\[!?\w+\]|.", pattern)
    plain = "".join(parts.get(token) or ("[^/]*" if token[0] == "*" else token) for token in tokens)
    assert matcher(pattern)(name) == bool(re.fullmatch(plain, name)), (pattern, plain)


@pytest.mark.parametrize(
    "pattern", ["a*" * 60 + "c", "**/" * 40 + "c", "*a/" * 12 + "c", "?*" * 50 + "c", "[a-b]*" * 50 + "c"]
)
def test_no_pattern_takes_long(pattern):
    fits, names = matcher(pattern), ["a" * 250, "a/" * 120 + "a", "ab" * 120]
    start = time.process_time()
    assert not any(fits(name) for name in names)
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..99999999999}",
        "{0..9999}" * 3,
        "{a,b}" * 40,
        "{0..999999999999999999}",
        f"{{0..{'9' * 5000}}}",
        f"{{{'0' * 5000}1..2}}",
        "x" * 4000 + "{0..1999999}",
    ],
)
def test_braces_are_bounded_before_they_are_spelled_out(pattern):
    start = time.process_time()
    with pytest.raises(UserError, match=r"stands for .* names; at most|cannot spell out"):
        spelled(pattern)
    assert time.process_time() - start < 0.1


def test_braces_beside_wildcards_are_few(tmp_path):
    with pytest.raises(UserError, match=f"at most {MAX_PATTERNS:,} are spelled out"):
        find_shards(str(tmp_path / "{0000..9999}-*.tar"), (".tar",))
    with pytest.raises(UserError, match="cannot read"):
        find_shards(str(tmp_path / "[z-a]*.tar"), (".tar",))


def test_a_million_names_are_spelled_out():
    names = spelled("s3://bucket/{000000..999999}.tar")
    assert len(names) == 10**6 and names[-1] == "s3://bucket/999999.tar"
