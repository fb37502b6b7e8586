"""Rules that look at a caption: pure functions of text, no model.

    words       letters and digits between blanks; a Chinese character, kana or hangul syllable is a word
    looped      words that repeat back to back, or the share of four-word sequences that were there before
    copied      share of a caption's words that stand in the same order in another text
    chinese     scripts; other languages are told by `language.py`

What they cannot see: a refusal in other words than `REFUSALS`; that a sentence is untrue. A picture of repeated text,
quoted faithfully, counts as a loop. Source: repeated n-grams after Rae et al., "Scaling Language Models" (2021).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_EAST = r"\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
WORD = re.compile(rf"[{_EAST}]|[^\W_{_EAST}]+(?:['’][^\W\d_{_EAST}]+)?")
SEQUENCE = 4
LONGEST_PERIOD = 40

REFUSALS = re.compile(
    r"""^\W*(?:
      (?:(?:i['’]?m|i\sam|we\sare)\s(?:very\s|so\s|really\s)?sorry|(?:my\s)?apologies|i\sapologi[sz]e|unfortunately)
        [,.;]?\s(?:but\s)?(?:i|we|there|it)\b
    | (?:i|we)\s(?:can['’]?t|cannot|can\snot|could\snot|couldn['’]?t|won['’]?t|will\snot
        |(?:am|are)\s(?:not\sable|unable)|['’]?m\s(?:not\sable|unable)|do\snot\sfeel|don['’]?t\sfeel)\s
        (?:to\s)?(?:\w+\s)?(?:assist|help|describe|provide|comply|fulfil|fulfill|identify|generate|create|caption|write
        |see|view|access|process|analy[sz]e|comment|discuss|engage|answer|continue|comfortable)
    | i['’]m\s(?:not\sable|unable)\sto\b
    | as\san?\s(?:ai|artificial|language\smodel|text-based)\b
    | (?:no|there\s(?:is|was)\sno)\s(?:image|picture|photo)\s(?:was\s|is\s)?
        (?:attached|provided|visible|uploaded|given|included)
    | (?:please|could\syou|can\syou)\s(?:please\s)?(?:provide|upload|attach|share|resend)\b
    | (?:很|非常|十分)?(?:抱歉|对不起|对不住|不好意思)
    | (?:我|作为)(?:无法|不能|没法|没有办法|一个?(?:人工智能|AI|语言模型))
    | (?:请|麻烦)(?:您|你)?(?:先)?(?:提供|上传|发送)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""How refusals begin, in English and Chinese."""

SENTENCE_ENDS = tuple(".!?…。！？”\"'’)）】》」]")


def words(text: str) -> list[str]:
    """Words in lower case, in their order."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def refuses(text: str) -> bool:
    """Whether a text begins like a refusal, or like a request for a picture that did not arrive."""
    return REFUSALS.match(text.strip()) is not None


def repeated_share(tokens: Sequence[str]) -> float:
    """Share, 0 to 1, of four-word sequences that stood earlier in the text; 0 for fewer than four words."""
    counts = Counter(zip(*(tokens[i:] for i in range(SEQUENCE)), strict=False))
    total = sum(counts.values())
    return (total - len(counts)) / total if total else 0.0


def runs_in_circles(tokens: Sequence[str]) -> bool:
    """Whether up to 40 words stand three times back to back over at least 12 words, or five times over fewer."""
    for period in range(1, min(LONGEST_PERIOD, len(tokens) // 3) + 1):
        same = 0  # words in a row that equal the word one period before
        for i in range(period, len(tokens)):
            same = same + 1 if tokens[i] == tokens[i - period] else 0
            length = same + period
            if length >= 5 * period or (length >= 3 * period and length >= 12):
                return True
    return False


def copied_share(tokens: Sequence[str], other: Sequence[str], least: int) -> float:
    """Share, 0 to 1, of words that belong to a sequence of `least` words which `other` has too.

    A text shorter than `least` counts when the whole of it is in `other`.
    """
    size = min(least, len(tokens))
    if not size or len(other) < size:
        return 0.0
    there = set(zip(*(other[i:] for i in range(size)), strict=False))
    covered = [False] * len(tokens)
    for start in range(len(tokens) - size + 1):
        if tuple(tokens[start : start + size]) in there:
            covered[start : start + size] = [True] * size
    return sum(covered) / len(tokens)


def is_chinese(text: str) -> bool:
    """More than half of its letters Han characters, and hardly any kana or hangul beside them."""
    scripts = _scripts(text)
    total = sum(scripts.values())
    if not total:
        return True
    return scripts["han"] > 0.5 * total and scripts["kana"] + scripts["hangul"] < 0.05 * total


def breaks_off(text: str) -> bool:
    """Whether a text ends without the end of a sentence."""
    return not text.rstrip().endswith(SENTENCE_ENDS)


def _scripts(text: str) -> Counter[str]:
    """Letters per script; a Han character counts as two, being about half a word."""
    counts: Counter[str] = Counter()
    for letter in filter(str.isalpha, unicodedata.normalize("NFKC", text)):
        code = ord(letter)
        if code < 0x250 or 0x1E00 <= code < 0x1F00:
            counts["latin"] += 1
        elif 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x323AF:
            counts["han"] += 2
        elif 0x3040 <= code <= 0x30FF:
            counts["kana"] += 2
        elif 0xAC00 <= code <= 0xD7AF:
            counts["hangul"] += 2
        else:
            counts["other"] += 1
    return counts
