"""Parquet and Arrow files of strangers: columns that run code, buffers that unfold, offsets that leave the file."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data  # noqa: F401  (registers the extension types that run code)
from ray.data.extensions import ArrowPythonObjectType

from hostile.attack import Attack, Outcome, patched
from hostile.tools import Context, Strike, all_of, listed, told
from nextloom import arrow_files, content
from nextloom.content import Content
from nextloom.curation.sources import readers
from nextloom.curation.sources.table import Table
from nextloom.errors import UserError
from nextloom.untrusted import Door


class Runs:
    """A pickle that makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def objects(mark: Path) -> pa.Array:
    raw = pa.array([pickle.dumps(Runs(mark))], pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), raw)


class Greedy(pa.ExtensionType):
    """A type of another library, that runs code when a schema with it is read."""

    ran: list[bytes] = []

    def __init__(self, text: bytes = b"") -> None:
        self.text = text
        super().__init__(pa.binary(), "hostile.greedy")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.text

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Greedy:
        cls.ran.append(serialized)
        return cls(serialized)


pa.register_extension_type(Greedy())


def in_struct(array: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([array], names=["bytes"])


def in_list(array: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), array)


def in_struct_in_list(array: pa.Array) -> pa.Array:
    return in_list(in_struct(array))


def as_it_is(array: pa.Array) -> pa.Array:
    return array


SHAPES = {"": as_it_is, " in a struct": in_struct, " in a list": in_list, " in a struct in a list": in_struct_in_list}


def write_arrow(path: Path, table: pa.Table, kind: str) -> None:
    if kind == "Parquet":
        pq.write_table(table, path)
    elif kind == "Arrow stream":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)


STORED = dict.fromkeys(SHAPES, "the cell holds no bytes") | dict.fromkeys(("", " in a struct"), "bytes of storage")
KINDS = {"Parquet": "t.parquet", "Arrow file": "t.arrow", "Arrow stream": "t.ipc", "Feather": "t.feather"}


def as_picture(kind: str, shape: str) -> Strike:
    """The picture's cell is a pickle; read as a worker does, of rows that were listed where Ray was not loaded."""

    def strike(folder: Path) -> Outcome:
        path = folder / KINDS[kind]
        write_arrow(path, pa.table({"jpg": SHAPES[shape](objects(folder / "ran"))}), kind)
        door = Door([str(folder)])
        row = {"uri": str(path), "member": "jpg#0", "version": door.stamp(str(path)), "offset": None}
        try:
            end = f"{len(Content(door).fetch(row))} bytes of storage"
        except Exception as error:
            end = told(error)
        return Outcome((folder / "ran").exists(), end)

    return strike


def as_metadata(kind: str, shape: str, role: str) -> Strike:
    """Another column is a pickle; a listing writes its values into the sidecar."""

    def strike(folder: Path) -> Outcome:
        path = folder / KINDS[kind]
        pickled = SHAPES[shape](objects(folder / "ran"))
        write_arrow(path, pa.table({"jpg": [b"x"], role: pickled}), kind)
        try:
            (row,) = listed(Table(path=str(path), image="jpg"))
            end = f"sidecar {row['sidecar']}"
        except Exception as error:
            end = told(error)
        return Outcome((folder / "ran").exists(), end)

    return strike


def on_open(kind: str) -> Strike:
    """A type whose library runs code as soon as the schema is read."""

    def strike(folder: Path) -> Outcome:
        path, Greedy.ran[:] = folder / KINDS[kind], []
        raw = pa.ExtensionArray.from_storage(Greedy(b"from the file"), pa.array([b"x"]))
        write_arrow(path, pa.table({"jpg": raw}), kind)
        Greedy.ran[:] = []
        try:
            (row,) = listed(Table(path=str(path)))
            end = f"member {row['member']}"
        except UserError as error:
            end = told(error)
        return Outcome(bool(Greedy.ran), end)

    return strike


def doubled_schema(folder: Path) -> Outcome:
    """Two ARROW:schema entries in a footer, of which a careful reader may look at the other one."""
    path, plain = folder / "t.parquet", folder / "plain.parquet"
    data = pa.table({"jpg": objects(folder / "ran")})
    pq.write_table(pa.table({"jpg": data["jpg"].cast(pa.large_binary())}), plain)
    pq.write_table(data, path)
    inner = pq.read_metadata(path).metadata[b"ARROW:schema"]
    data = pq.read_table(plain)
    pq.write_table(data.replace_schema_metadata({b"AAAAA:schema": inner}), path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"AAAAA:schema", b"ARROW:schema"))
    door = Door([str(folder)])
    row = {"uri": str(path), "member": "jpg#0", "version": door.stamp(str(path)), "offset": None}
    try:
        end = f"{len(Content(door).fetch(row))} bytes of storage"
    except Exception as error:
        end = told(error)
    return Outcome((folder / "ran").exists(), end)


class Naive(arrow_files.ArrowFile):
    """Arrow files as they were opened before: by pyarrow, as they come."""

    def __init__(self, file: pa.NativeFile) -> None:
        head = file.read_at(6, 0)
        file.seek(0)
        reader = pa.ipc.open_file(file) if head == b"ARROW1" else pa.ipc.open_stream(file)
        self.schema = reader.schema
        known = head == b"ARROW1"
        self._all = [reader.get_batch(n) for n in range(reader.num_record_batches)] if known else list(reader)

    def __iter__(self):
        return iter(self._all)

    @property
    def sizes(self):
        return [batch.num_rows for batch in self._all]

    def batch(self, number: int) -> pa.RecordBatch:
        return self._all[number]


def trusting() -> Context:
    naive = [patched(module, "ArrowFile", Naive) for module in (content, readers)]
    return all_of(*naive, *(patched(module, "open_parquet", pq.ParquetFile) for module in (content, readers)))


UNPACKED = 1 << 20


def bomb(kind: str, codec: str) -> Strike:
    """A few kilobytes of compressed buffers that unfold to 64 MiB; the bound is lowered to 1 MiB for speed."""

    def strike(folder: Path) -> Outcome:
        path, batch = folder / KINDS[kind], pa.record_batch({"jpg": [bytes(1 << 26)]})
        make = pa.ipc.new_stream if kind == "Arrow stream" else pa.ipc.new_file
        with make(path, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
            writer.write_batch(batch)
        assert path.stat().st_size < 1 << 20
        before, door = pa.total_allocated_bytes(), Door([str(folder)])
        row = {"uri": str(path), "member": "jpg#0", "version": door.stamp(str(path)), "offset": None}
        holder = Content(door)
        with patched(arrow_files, "MAX_UNPACKED", UNPACKED):
            try:
                end = f"{len(holder.fetch(row))} bytes"
            except Exception as error:
                end = told(error)
        return Outcome(pa.total_allocated_bytes() - before > 1 << 25, end)

    return strike


def beyond(kind: str) -> Strike:
    """An offset that points behind the column's bytes: the cell would be what lies there in memory."""

    def strike(folder: Path) -> Outcome:
        path = folder / KINDS[kind]
        first, second = b"\xab" * 61, b"what lies behind it" * 100
        write_arrow(path, pa.table({"jpg": [first], "other": [second]}), kind)
        raw = path.read_bytes()
        at = raw.index(struct.pack("<ii", 0, len(first)) + first)
        path.write_bytes(raw[:at] + struct.pack("<ii", 0, 256) + raw[at + 8 :])
        door = Door([str(folder)])
        row = {"uri": str(path), "member": "jpg#0", "version": door.stamp(str(path)), "offset": None}
        try:
            got = Content(door).fetch(row)
        except Exception as error:
            return Outcome(False, told(error))
        return Outcome(b"behind" in got, f"{len(got)} bytes")

    return strike


def no_look(self: arrow_files._Message, file: object, body_at: int) -> int:
    return 0


ATTACKS: list[Attack] = [
    *(
        Attack("arrow", f"pickled picture{shape}, {kind}", STORED[shape], as_picture(kind, shape), trusting)
        for kind in KINDS
        for shape in SHAPES
    ),
    *(
        Attack("arrow", f"pickled metadata{shape}, {kind}", "sidecar", as_metadata(kind, shape, "note"), trusting)
        for kind in KINDS
        for shape in ("", " in a struct in a list")
    ),
    *(
        Attack("arrow", f"a type that runs when it is opened, {kind}", "member jpg#0", on_open(kind), trusting)
        for kind in KINDS
    ),
    Attack("arrow", "two schemas in one footer", "bytes of storage", doubled_schema, trusting),
    *(
        Attack(
            "arrow",
            f"{codec} that unfolds, {kind}",
            "unfolds to more than",
            bomb(kind, codec),
            lambda: patched(arrow_files._Message, "unpacked", no_look),
        )
        for kind in ("Arrow file", "Arrow stream")
        for codec in ("zstd", "lz4")
    ),
    *(
        Attack(
            "arrow",
            f"an offset behind the column's bytes, {kind}",
            "error row ArrowInvalid",
            beyond(kind),
            lambda: patched(arrow_files, "_valid", lambda batch: batch),
        )
        for kind in ("Arrow file", "Arrow stream")
    ),
]
