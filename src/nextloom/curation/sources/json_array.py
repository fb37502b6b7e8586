"""A JSON text of any length, read value by value: what lies in memory is one value, and a block of bytes behind it."""

from __future__ import annotations

import codecs
import io
import json
import re
from typing import Any

from nextloom.curation.sources.jsontext import DECODER, DEEP, NOT_JSON, expect_shallow
from nextloom.curation.sources.shards import Refusal

_BLANK = re.compile(r"[ \t\r\n]*")


class JsonArray:
    """A JSON text of any length, of which a part is in memory."""

    def __init__(self, stream: io.BufferedReader, most: int) -> None:
        self._stream, self._most = stream, most
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._step, self._done = "", 0, 1 << 20, False

    def _more(self) -> bool:
        if self._done or len(self._text) - self._at > self._most:
            return False
        raw = self._stream.read(self._step)
        self._done = not raw
        try:
            more = self._decoder.decode(raw, final=self._done)
        except UnicodeDecodeError:
            raise Refusal("not UTF-8", "convert it: iconv -f ENCODING -t utf-8") from None
        self._text, self._at = self._text[self._at :] + more, 0
        self._step = min(2 * self._step, self._most)
        return not self._done

    def _blank(self) -> None:
        while True:
            match = _BLANK.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return

    def next(self, mark: str) -> bool:
        """Whether `mark` is next; then it is read."""
        self._blank()
        found = self._text[self._at : self._at + 1] == mark
        self._at += found
        return found

    def over(self) -> bool:
        """Whether nothing is left."""
        self._blank()
        return self._at >= len(self._text)

    def value(self) -> tuple[Any, int]:
        """The next value and its length.

        Raises:
            ValueError: `NOT_JSON` in front where there is none; else it is one that is refused.
        """
        self._blank()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise ValueError(f"{NOT_JSON}: {error.msg}") from None
                continue
            except RecursionError:
                raise ValueError(DEEP) from None
            piece = self._text[self._at : end]
            expect_shallow(value, piece)
            self._at, self._step = end, 1 << 20
            return value, len(piece)

    def skip_value(self) -> bool:
        """Go behind a value that is JSON, and yet refused."""
        try:
            _, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
        except (ValueError, RecursionError):
            return False
        return True
