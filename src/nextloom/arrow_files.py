"""Parquet and Arrow files of strangers, opened so that nothing in them runs and nothing unfolds without bound.

*Extension types.* A file may say that a column of plain bytes is an extension type; where a library has registered
it, reading calls that library (`ray.data.arrow_pickled_object` unpickles, others build classes from the file). No
schema that names one reaches Arrow: the name of the key is spelled otherwise in a copy of the schema, and the column
is what it is stored as. Anywhere: nested, in a dictionary, in Parquet's `ARROW:schema`.

*Compressed Arrow buffers* say how long they are unpacked; the sum of a batch is looked at before one is unpacked.

*Offsets* of an Arrow file are taken as they stand and may point outside of it, so what is read is validated.

    open_parquet(file)   a `ParquetFile`
    ArrowFile(file)      record batches of an Arrow file, stream or Feather file, by number
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

EXTENSION, PLAIN = b"ARROW:extension:name", b"arrow:extension_name"
SCHEMA, NO_SCHEMA = b"ARROW:schema", b"arrow:schema"
MAX_FOOTER = 256 * 2**20
"""Largest footer of a Parquet or Arrow file, in bytes."""
TAIL = 1 << 16
"""Bytes read at once from the end of a Parquet file; most footers are shorter."""
MAX_UNPACKED = 2**30
"""Most bytes that the compressed buffers of a record batch may give; of a stream, those of all its batches."""
PAR, MAGIC = b"PAR1", b"ARROW1"
_RECORDS, _DICTIONARY = 3, 2


def open_parquet(file: Any, **options: Any) -> pq.ParquetFile:
    """A Parquet file whose columns are their storage types.

    Args:
        file: a `pyarrow.NativeFile`, at any place.
        options: of `ParquetFile`; `metadata` only from a file that was opened here.

    Raises:
        pa.ArrowInvalid: it is broken.
    """
    footer = None if "metadata" in options else _parquet_footer(file)
    if footer is not None:
        if _names_extension(footer):
            footer = footer.replace(SCHEMA, NO_SCHEMA)
        end = PAR + footer + struct.pack("<I", len(footer)) + PAR
        options["metadata"] = pq.read_metadata(pa.BufferReader(end))
    opened = pq.ParquetFile(file, arrow_extensions_enabled=False, **options)
    _expect_plain(opened.schema_arrow)
    return opened


def _parquet_footer(file: Any) -> bytes | None:
    size = file.size()
    end = file.read_at(min(size, TAIL), max(0, size - TAIL))
    if size < 12 or end[-4:] != PAR:
        return None  # Arrow says what is wrong with it
    (length,) = struct.unpack("<I", end[-8:-4])
    if length > min(size - 8, MAX_FOOTER):
        raise pa.ArrowInvalid(f"a footer of {length:,} bytes in a file of {size:,}")
    return end[-8 - length : -8] if length + 8 <= len(end) else file.read_at(length, size - 8 - length)


def _names_extension(footer: bytes) -> bool:
    """Whether an Arrow schema in a footer names an extension type, or may: one that is not plain base64."""
    first = footer.find(SCHEMA)
    if first < 0:
        return False
    value = footer[first + len(SCHEMA) :]
    if SCHEMA in value or EXTENSION in footer:
        return True
    try:
        length, at = _text_field(value)
        return EXTENSION in base64.b64decode(value[at : at + length], validate=True)
    except (binascii.Error, ValueError, IndexError):
        return True


def _text_field(data: bytes) -> tuple[int, int]:
    """Length and place of the value that follows a key in thrift's compact form: a field header, a varint, the text."""
    length, shift, at = 0, 0, 1
    while True:
        byte = data[at]
        length, shift, at = length | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return length, at


def _expect_plain(schema: pa.Schema) -> None:
    for field in schema:
        if _has_extension(field.type):
            raise pa.ArrowInvalid(f"column {field.name!r} has an extension type, which is not read")


def _has_extension(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return _has_extension(kind.value_type)
    return any(_has_extension(kind.field(at).type) for at in range(kind.num_fields))


class ArrowFile:
    """Record batches of an Arrow file (the layout with a footer) or stream, by number; each is validated.

    Batches of a file are read when asked for; those of a stream are read in order, and kept.

    Raises:
        pa.ArrowInvalid: it is broken, or unfolds to more than `MAX_UNPACKED`.
    """

    def __init__(self, file: Any) -> None:
        self._raw = self._file = file  # `read_at` of a Python file would move where the reader is
        self._footed = file.read_at(len(MAGIC), 0) == MAGIC
        self._blocks = list[tuple[int, int]]()
        self._held = list[pa.RecordBatch]()
        self._unpacked = 0
        start, schema = self._schema_bytes()
        if EXTENSION in schema:
            self._file = file = pa.PythonFile(_Patched(file, start, schema.replace(EXTENSION, PLAIN)), mode="r")
        if self._footed:
            self._blocks, dictionaries = _blocks(schema)
            for block in dictionaries:
                self._unpacked += self._weighed(*block)
            self._reader: Any = pa.ipc.open_file(file)
        else:
            file.seek(0)
            self._reader = pa.ipc.open_stream(file)
        self.schema: pa.Schema = self._reader.schema
        _expect_plain(self.schema)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self._footed:
            yield from map(self.batch, range(len(self._blocks)))
        else:
            yield from self._stream()

    @cached_property
    def sizes(self) -> list[int]:
        """Number of rows of each batch."""
        if not self._footed:
            self._held = list(self._stream())
            return [batch.num_rows for batch in self._held]
        return [_Message(self._raw.read_at(length, at)).rows for at, length in self._blocks]

    def batch(self, number: int) -> pa.RecordBatch:
        """One batch; of a stream, once `sizes` were asked for."""
        if not self._footed:
            return self._held[number]
        if self._unpacked + self._weighed(*self._blocks[number]) > MAX_UNPACKED:
            raise _too_much()
        return _valid(self._reader.get_batch(number))

    def _stream(self) -> Iterator[pa.RecordBatch]:
        """Batches in order; what the next one unfolds to is looked at before it is read."""
        while True:
            at, rows = self._file.tell(), False
            while not rows:
                head = self._raw.read_at(8, at)
                mark, length = struct.unpack("<iI", head.ljust(8, b"\0"))
                skip = 8
                if mark != -1:  # before Arrow 0.15 the length came first
                    length, skip = mark, 4
                if length <= 0:
                    break
                message = _Message(self._raw.read_at(length + skip, at))
                self._unpacked += message.unpacked(self._raw, at + skip + length)
                if self._unpacked > MAX_UNPACKED:
                    raise _too_much()
                at, rows = at + skip + length + message.body, message.kind == _RECORDS
            try:
                yield _valid(self._reader.read_next_batch())
            except StopIteration:
                return

    def _weighed(self, at: int, length: int) -> int:
        return _Message(self._raw.read_at(length, at)).unpacked(self._raw, at + length)

    def _schema_bytes(self) -> tuple[int, bytes]:
        """Where the schema lies: the footer of a file, the first message of a stream; and its bytes."""
        size = self._raw.size()
        if self._footed:
            end = self._raw.read_at(10, max(0, size - 10))
            (length,) = struct.unpack("<i", end[:4])
            start = size - 10 - length
            if end[4:] != MAGIC or not 0 < length <= min(MAX_FOOTER, size - 10):
                raise pa.ArrowInvalid("it has no footer: it is cut off or damaged")
        else:
            mark, length = struct.unpack("<iI", self._raw.read_at(8, 0).ljust(8, b"\0"))
            start = 8
            if mark != -1:
                length, start = mark, 4
            if not 0 < length <= min(MAX_FOOTER, size):
                raise pa.ArrowInvalid("no Arrow file and no Arrow stream")
        return start, self._raw.read_at(length, start)


def _valid(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)
    return batch


def _too_much() -> pa.ArrowInvalid:
    return pa.ArrowInvalid(f"a batch unfolds to more than {MAX_UNPACKED:,} bytes; write smaller batches")


class _Message:
    """A message of Arrow's IPC format: what kind, how long its body, which buffers are compressed.

    `flatbuffers` layout: a table begins with the distance back to its vtable, which holds the place of each field.
    """

    def __init__(self, raw: bytes) -> None:
        start = 8 if raw[:4] == b"\xff\xff\xff\xff" else 4
        self._raw = raw[start:]
        try:
            root = self._u32(0)
            self.kind = self._scalar(root, 1, "<B")
            self.body = self._scalar(root, 3, "<q")
            table = self._offset(root, 2)
            if self.kind == _DICTIONARY and table:
                table = self._offset(table, 1)
            self._table = table if self.kind in (_DICTIONARY, _RECORDS) else 0
            self.rows = self._scalar(self._table, 0, "<q") if self._table else 0
        except (struct.error, IndexError):
            raise pa.ArrowInvalid("a damaged message") from None
        if self.body < 0 or self.rows < 0:
            raise pa.ArrowInvalid("a damaged message")

    def unpacked(self, file: Any, body_at: int) -> int:
        """Bytes that its compressed buffers say they give; 0 where none is compressed."""
        if not self._table or not self._offset(self._table, 3):
            return 0
        vector, total = self._offset(self._table, 2), 0
        for at in range(self._u32(vector) if vector else 0):
            place, length = struct.unpack_from("<qq", self._raw, vector + 4 + 16 * at)
            if length >= 8 and place >= 0:
                (said,) = struct.unpack("<q", file.read_at(8, body_at + place).ljust(8, b"\0"))
                total += max(0, said)
        return total

    def _u32(self, at: int) -> int:
        return struct.unpack_from("<I", self._raw, at)[0]

    def _field(self, table: int, number: int) -> int:
        """Place of a field, 0 where it is absent."""
        vtable = table - struct.unpack_from("<i", self._raw, table)[0]
        if vtable < 0 or 4 + 2 * number >= struct.unpack_from("<H", self._raw, vtable)[0]:
            return 0
        distance = struct.unpack_from("<H", self._raw, vtable + 4 + 2 * number)[0]
        return table + distance if distance else 0

    def _scalar(self, table: int, number: int, form: str) -> int:
        at = self._field(table, number)
        return struct.unpack_from(form, self._raw, at)[0] if at else 0

    def _offset(self, table: int, number: int) -> int:
        at = self._field(table, number)
        return at + self._u32(at) if at else 0


def _blocks(footer: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(place, length of the metadata) of each record batch, and of each dictionary, from a footer."""
    message = _Message.__new__(_Message)
    message._raw = footer
    out = []
    try:
        root = message._u32(0)
        for number in (3, 2):
            vector = message._offset(root, number)
            count = message._u32(vector) if vector else 0
            if count * 24 > len(footer):
                raise pa.ArrowInvalid("a damaged footer")
            found = (struct.unpack_from("<qi4xq", footer, vector + 4 + 24 * at) for at in range(count))
            out.append([(at, length) for at, length, _ in found])
    except (struct.error, IndexError):
        raise pa.ArrowInvalid("a damaged footer") from None
    return out[0], out[1]


class _Patched(io.RawIOBase):
    """A file that reads as another one but for some of its bytes."""

    def __init__(self, file: Any, start: int, patch: bytes) -> None:
        self._inner, self._start, self._patch = file, start, patch
        self._at, self._size = 0, file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._at if size is None or size < 0 else size
        raw = bytearray(self._inner.read_at(max(0, min(size, self._size - self._at)), self._at))
        low, high = max(self._at, self._start), min(self._at + len(raw), self._start + len(self._patch))
        if low < high:
            raw[low - self._at : high - self._at] = self._patch[low - self._start : high - self._start]
        self._at += len(raw)
        return bytes(raw)
