"""Annotate `source_text`: a text that the source brought, as a column: licence, language, a class.

    licence:  {op: source_text, column: LICENSE}
    balanced: {op: balance, by: licence.text, max_rows: 5000}

Price paid: texts are taken as they are written, so `CC-BY` and `cc-by` are two.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow as pa

from nextloom.curation.scores import sidecar
from nextloom.op import Annotate, Row, RowFailure


class SourceText(Annotate):
    """A text of the row's sidecar record."""

    name: ClassVar[str] = "source_text"
    code_version: ClassVar[int] = 2

    column: str
    """Its name in the record; names inside of names are joined by dots."""

    def columns(self) -> pa.Schema:
        return pa.schema([("text", pa.string())])

    def measure(self, row: Row) -> dict[str, Any]:
        """`text`: the text, or the digits of a whole number, such as the index of a class; null where it says null.

        Raises:
            RowFailure: ``NoSidecar`` or ``NoColumn``; ``NoText`` for anything else.
        """
        found = sidecar.value(row, self.column)
        if found is None:
            return {"text": None}
        if isinstance(found, bool) or not isinstance(found, str | int):
            raise RowFailure("NoText", f"{self.column} is no text", detail=f"{found!r:.80}")
        return {"text": str(found)}
