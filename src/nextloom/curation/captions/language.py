"""Which language a caption is in: py3langid, a naive Bayes over byte n-grams whose model ships in its package.

Measured on translated program messages of 8 to 60 words, which stand in for captions (docs/log.md): at a confidence of
0.3 no English one of 3,000 was taken for another language, and 1 % of those in 21 other languages passed for English or
unclear; of their first five words 0.5 % and 5 %. Function words, the rule before, lost 7 % of the English and passed a
third of the Hungarian. A list of tags or a noun phrase without function words is judged as well.
"""

from __future__ import annotations

from typing import Any

CONFIDENT = 0.3
"""Probability from which a language is named; below, a text is too short or too mixed to tell."""
ENGLISH = frozenset({"en", "pcm", "sco"})
"""English, and two languages that are written nearly as it is: a short English text may be taken for them."""


class Languages:
    """The identifier, loaded once per worker (0.7 CPU-seconds, 60 MB)."""

    def __init__(self) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def of(self, text: str) -> str | None:
        """ISO 639 code of the language of `text`; None where it cannot be told."""
        if not any(map(str.isalpha, text)):
            return None
        language, confidence = self._identifier.classify(text)
        return language if confidence >= CONFIDENT else None
