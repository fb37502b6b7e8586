"""Classes of rows: a column with one label per row, or with a list of them, as pairs of row and class.

Labels are compared as they are written; a label that a row lists twice counts once; null labels are none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nextloom.errors import UserError


@dataclass(frozen=True)
class Classes:
    """P pairs of row and class, by row, in the order in which the row lists its labels."""

    names: list[str]
    """Each class once, sorted."""
    rows: np.ndarray
    """(P,) int64 position of the row."""
    codes: np.ndarray
    """(P,) int64 index into `names`."""
    count: int
    """Rows, those without a label included."""

    def sizes(self) -> np.ndarray:
        """(C,) int64: pairs of each class."""
        return np.bincount(self.codes, minlength=len(self.names))

    def only(self, wanted_N: np.ndarray) -> Classes:
        """The pairs of some rows; names and positions stay."""
        mine = wanted_N[self.rows]
        return replace(self, rows=self.rows[mine], codes=self.codes[mine])


def classes(column: pa.Array | pa.ChunkedArray, name: str) -> Classes:
    """The classes in `column`: strings, integers, or lists of them.

    Args:
        column: a value per row.
        name: the column's name, for the message.

    Raises:
        UserError: it holds something else.
    """
    data = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    count, kind = len(data), data.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        rows = pc.list_parent_indices(data).to_numpy().astype(np.int64)
        data = pc.list_flatten(data)
    else:
        rows = np.arange(count)
    if pa.types.is_dictionary(data.type):
        data = data.dictionary_decode()
    if pa.types.is_integer(data.type) or pa.types.is_null(data.type):
        data = data.cast(pa.string())
    if not (pa.types.is_string(data.type) or pa.types.is_large_string(data.type)):
        raise UserError(f"{name} is {kind}, and a class is a string or an integer, or a list of them", where="by")
    there = data.is_valid().to_numpy(zero_copy_only=False)
    rows, data = rows[there], data.drop_null()
    names = sorted(pc.unique(data).to_pylist())
    codes = pc.index_in(data, pa.array(names, data.type)).to_numpy(zero_copy_only=False).astype(np.int64)
    once = np.sort(np.unique(rows * len(names) + codes, return_index=True)[1])
    return Classes(names, rows[once], codes[once], count)
