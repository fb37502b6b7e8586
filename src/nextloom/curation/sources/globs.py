"""Patterns of names: `{00000..00127}` and `{a,b}` spelled out, `*`, `?`, `[abc]` and `**/` matched in linear time.

A pattern says a set of names in a few characters, so both are bounded: how many names are spelled out, and how long
matching takes (no piece of a name is tried twice, whatever stars a pattern holds).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product

from nextloom.errors import UserError

MAX_NAMES = 2_000_000
"""Most names that a pattern with braces stands for."""
MAX_TEXT = 512 << 20
"""Most characters of all these names."""
MAX_PATTERNS = 1000
"""The same, where the names hold wildcards: each is compared with each file."""


def spelled(pattern: str, most: int | None = None) -> list[str]:
    """Names of a pattern with {00000..00127} and {a,b}; numbers keep the width of the first.

    Raises:
        UserError: a brace that is neither, or more than `most` names (default: `MAX_NAMES`).
    """
    most = MAX_NAMES if most is None else most
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[range | list[str]] = []
    widths: list[int] = []
    total, longest = 1, len(pattern)
    for at, part in enumerate(parts):
        numbers = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", part)
        widths.append(0)
        if at % 2 == 0:
            choices.append([part])
        elif numbers:
            low, high = numbers.groups()
            choices.append(range(int(low), int(high) + 1))
            widths[-1] = len(low)
        elif "," in part:
            choices.append(part.split(","))
        else:
            choices.append([])
        if not choices[-1] or (at % 2 == 0 and re.search(r"[{}]", part)):
            raise UserError(
                f"cannot spell out {pattern!r}", where="source.path", next="write {00000..00127}, or {train,test}"
            )
        total *= len(choices[-1])
    if total > most or total * longest > MAX_TEXT:
        raise UserError(
            f"{pattern!r:.200} stands for {total:,} names; at most {most:,} are spelled out",
            where="source.path",
            next="give the folder, or an index file with one name a line",
        )
    texts = [[str(n).zfill(width) if width else n for n in c] for c, width in zip(choices, widths, strict=True)]
    return ["".join(map(str, names)) for names in product(*texts)]


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a name fits `pattern`: `*` and `?` within a folder, `**/` over folders, [abc], [!abc].

    Raises:
        UserError: a range such as [z-a].
    """
    parts = [None if part == "**" else _segment(part, pattern) for part in pattern.split("/")]
    if parts[-1] is None:  # a/** is every name in a
        parts[-1] = _segment("*", pattern)

    def fits(name: str) -> bool:
        here = {0}
        pieces = name.split("/")
        for piece in pieces:
            after = set[int]()
            for at in _past_folders(here, parts):
                if at < len(parts):
                    part = parts[at]
                    if part is None:
                        after.add(at)
                    elif part.fullmatch(piece):
                        after.add(at + 1)
            here = after
        return len(parts) in here

    return fits


def _past_folders(here: set[int], parts: list[re.Pattern[str] | None]) -> set[int]:
    """Where matching may go on: `**` may also stand for no folder at all."""
    out = set(here)
    for at in sorted(here):
        while at < len(parts) and parts[at] is None:
            at += 1
            out.add(at)
    return out


def _segment(text: str, pattern: str) -> re.Pattern[str]:
    """One part of a pattern. A star takes the nearest place at which what follows fits, and never another."""
    pieces: list[str] = [""]
    for token in re.findall(r"\*+|\?|\[!?\]?[^\]]*\]|[^*?\[]+|\[", text):
        if token[0] == "*":
            pieces.append("")
        elif token == "?":
            pieces[-1] += "."
        elif len(token) > 1 and token[0] == "[":
            inside = re.sub(r"([\\\[\]&~|^])", r"\\\1", token[1:-1])
            pieces[-1] += f"[^{inside[1:]}]" if inside[:1] == "!" and len(inside) > 1 else f"[{inside}]"
        else:
            pieces[-1] += re.escape(token)
    first, *middle = pieces
    out = first
    if middle:
        out += "".join(f"(?>.*?{piece})" for piece in middle[:-1]) + ".*" + middle[-1]
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise UserError(f"cannot read {pattern!r}: {error}", where="source.path", next="write [abc] or [a-z]") from None
