"""Annotate `caption_qa`: what is wrong with a caption, as columns for a select to judge.

    qa:   {op: caption_qa, reads: [caption]}
    keep: {op: select, where: "not qa.refusal and not qa.loop and not qa.truncated and not qa.wrong_language"}

It reads the text that a `caption` or `recaption` step stored, so a changed rule captions nothing again. The rules
and their limits are in `caption_rules.py`. Price paid: rules know words, not meaning; look at the captions on both
sides before a select trusts them with a new model, prompt or language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, PrivateAttr, field_validator

from nextloom.curation.captions import caption_rules as rules
from nextloom.curation.captions.language import ENGLISH, Languages
from nextloom.errors import UserError
from nextloom.op import Annotate, Row

READ = ("text", "instruction", "shown", "finish_reason", "refused")


class CaptionQa(Annotate):
    """Faults of a caption, each true or false."""

    name: ClassVar[str] = "caption_qa"
    code_version: ClassVar[int] = 3

    reads: tuple[str, ...]
    """The one step that captions."""
    language: Literal["en", "zh"] | None = "en"
    """The language that captions should be in; null accepts any."""
    loop_share: float = Field(0.25, gt=0, le=1)
    """Share of four-word sequences that stood earlier in the text, from which it is a loop."""
    copy_share: float = Field(0.5, gt=0, le=1)
    """Share of a caption's words taken in sequences from the prompt, or from the alt text, from which it is a copy."""
    copy_words: int = Field(5, ge=2)
    """Words in a row that count as taken from the alt text or the prompt."""
    leak_words: int = Field(10, ge=4)
    """Words in a row of the prompt that are a copy however long the caption is."""

    _languages: Languages | None = PrivateAttr(None)

    @field_validator("reads")
    @classmethod
    def _one(cls, reads: tuple[str, ...]) -> tuple[str, ...]:
        if len(reads) != 1:
            raise ValueError("caption_qa reads exactly one step, the one that captions")
        return reads

    def check(self, known: Mapping[str, Iterable[str]], where: str) -> None:
        """Refuse a step that stores no captions.

        Raises:
            UserError: columns that are read are not there.
        """
        (step,) = self.reads
        absent = sorted(set(READ) - set(known[step]))
        if absent:
            raise UserError(
                f"{step!r} has no column {', '.join(absent)}",
                where=f"{where}.reads",
                next="name a step whose op is caption or recaption",
            )

    def columns(self) -> pa.Schema:
        """Faults, and the length.

        refusal: the server says so, or the text begins like a refusal.
        loop: words go round in circles.
        truncated: it was cut at `max_tokens`; where the server gives no reason, it ends within a sentence.
        wrong_language: it is in another one than the field `language`; a text too short to tell is not.
        copies_prompt: it repeats what the model was told, or the alt text that it was shown.
        words: how many; a Chinese character is one.
        language: ISO 639 code of the language it is in; null where it cannot be told.
        """
        faults = ("refusal", "loop", "truncated", "wrong_language", "copies_prompt")
        return pa.schema([*((name, pa.bool_()) for name in faults), ("words", pa.int32()), ("language", pa.string())])

    def setup(self) -> None:
        """Load the language identifier."""
        self._languages = Languages()

    def measure(self, row: Row) -> dict[str, Any]:
        """Faults of one caption."""
        assert self._languages is not None, "setup() comes first"
        caption = row.reads[self.reads[0]]
        text, finish = caption["text"], caption["finish_reason"]
        tokens = rules.words(text)
        language = self._languages.of(text)
        circles = rules.repeated_share(tokens) >= self.loop_share or rules.runs_in_circles(tokens)
        return {
            "refusal": bool(caption["refused"]) or rules.refuses(text),
            "loop": circles,
            "truncated": finish == "length" or (finish is None and rules.breaks_off(text)),
            "wrong_language": self._foreign(text, language),
            "copies_prompt": self._copies(tokens, caption["instruction"], caption["shown"]),
            "words": len(tokens),
            "language": language,
        }

    def _foreign(self, text: str, language: str | None) -> bool:
        if self.language == "zh":
            return not rules.is_chinese(text)
        return self.language == "en" and language is not None and language not in ENGLISH

    def _copies(self, tokens: list[str], instruction: str, shown: str | None) -> bool:
        told, alt = rules.words(instruction), rules.words(shown or "")
        if len(tokens) >= self.leak_words and rules.copied_share(tokens, told, self.leak_words) > 0:
            return True
        return any(rules.copied_share(tokens, other, self.copy_words) >= self.copy_share for other in (told, alt))
