"""Captions to token ids: UTF-8 bytes, or a Hugging Face `tokenizer.json`.

    text: {op: text_tokens, rows: keep}

Bytes need no vocabulary and suit a toy; a language model brings its own file. Ids are little-endian signed 32-bit.
The file is read here and now, for it is small: its digest, not its path, is part of the step's identity.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, PrivateAttr, ValidationInfo

from nextloom.config import resolve
from nextloom.errors import UserError
from nextloom.model_files import MOST_VOCABULARY, read_json
from nextloom.op import Annotate, Row

BYTES = "bytes"
GIVE = "give a tokenizer.json, or tokenizer: bytes"
ID_DTYPE = np.dtype("<i4")
"""How ids lie in the `ids` column."""


def _vocabulary(value: str, info: ValidationInfo) -> str:
    root = (info.context or {}).get("root")
    return value if value == BYTES or root is None else resolve(value, root)


class TextTokens(Annotate):
    """Token ids of each row's source caption, without special tokens."""

    name: ClassVar[str] = "text_tokens"
    code_version: ClassVar[int] = 1

    tokenizer: Annotated[str, AfterValidator(_vocabulary)] = BYTES
    """`bytes` (256 ids, UTF-8), or the path of a Hugging Face `tokenizer.json`."""
    column: str = "caption"
    """The source's column that holds the text."""
    empty: Literal["refuse", "allow"] = "refuse"
    """Whether a row without text becomes an error row, or gets no ids."""

    _encode: Any = PrivateAttr(None)

    def identity(self) -> dict[str, Any]:
        """As in `Op`, with the tokenizer file's digest in place of its path."""
        if self.tokenizer == BYTES:
            return super().identity()
        return {**super().identity(), "tokenizer": hashlib.sha256(self._file().read_bytes()).hexdigest()}

    def columns(self) -> pa.Schema:
        """`ids`: little-endian i4; `n_tokens`: how many."""
        return pa.schema([("ids", pa.binary()), ("n_tokens", pa.int32())])

    def setup(self) -> None:
        """Read the vocabulary."""
        if self.tokenizer == BYTES:
            self._encode = _utf8
            return
        from tokenizers import Tokenizer

        path = self._file()
        read_json(path, most=MOST_VOCABULARY, next=GIVE)
        try:
            vocabulary = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"no tokenizer: {str(error)[:200]}", where=str(path), next=GIVE) from None
        self._encode = lambda text: vocabulary.encode(text, add_special_tokens=False).ids

    def measure(self, row: Row) -> dict[str, Any]:
        """Ids of one caption.

        Raises:
            ValueError: there is no text and `empty` is not `allow`.
        """
        text = row.source.get(self.column) or ""
        if not text and self.empty != "allow":
            raise ValueError(f"no text in source column {self.column!r}; `empty: allow` accepts it")
        ids = np.asarray(self._encode(text), ID_DTYPE)
        return {"ids": ids.tobytes(), "n_tokens": len(ids)}

    def _file(self) -> Path:
        path = Path(self.tokenizer)
        if not path.is_file():
            raise UserError("no such tokenizer file", where=self.tokenizer, next=GIVE)
        return path


def _utf8(text: str) -> list[int]:
    return list(text.encode())
