"""Files of a model folder, read as data and never as code.

JSON has a size limit. A safetensors file is looked at before a byte of it is taken: its header is bounded, types are
known ones, and the tensors it names fill the file, no more and no less, so that what is allocated is never more than
what lies on disk. A pickle (`.pt`, `.pth`, `.bin`) is read by torch's `weights_only` unpickler alone, which knows
tensors and containers and calls nothing, out of an archive that does not inflate. What is not so is a `UserError`
with the file and the next step. Trade-off: a model saved with objects of its own in it has to be saved anew.

torch is imported by what needs it.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextloom.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MOST_JSON, MOST_HEADER = 4 * 2**20, 4 * 2**20
"""Bytes of a configuration, and of a safetensors header: a model of 400 billion weights has one of 0.2 MB."""
MOST_VOCABULARY = 64 * 2**20
"""Bytes of a `tokenizer.json`; those of 256,000 words have 35 MB."""
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
"""Type in a safetensors header -> bytes of a value."""
NEXT = "put back the file as it was published or saved, and try again"
DATA_ONLY = {"trust_remote_code": False, "local_files_only": True}
"""Arguments of every `from_pretrained`: nothing of a folder is run, nothing is fetched."""
WEIGHTS_ONLY = True
"""Argument of every `torch.load`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_json(path: str | Path, *, most: int | None = None, next: str = NEXT) -> dict[str, Any]:
    """The mapping in a JSON file of at most `most` bytes, `MOST_JSON` where nothing is said.

    Raises:
        UserError: there is none, it is larger, or it is no JSON mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", where=str(path), next=next)
    size, most = path.stat().st_size, most or MOST_JSON
    if size > most:
        raise UserError(f"{size:,} bytes; a file of this kind has at most {most:,}", where=str(path), next=next)
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {str(error)[:200]}", where=str(path), next=next) from None
    if not isinstance(document, dict):
        raise UserError("JSON, but not a mapping", where=str(path), next=next)
    return document


def layout(path: str | Path, *, next: str = NEXT) -> dict[str, Entry]:
    """Name -> type and shape of the tensors in a safetensors file, from its header alone.

    Raises:
        UserError: no such file, or one whose header and length do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", where=str(path), next=next)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, MOST_HEADER):
                raise ValueError(f"its header would be {length:,} of {size:,} bytes, at most {MOST_HEADER:,} are read")
            header = json.loads(file.read(length))
        entries, end = {}, 0
        spans = ((name, told) for name, told in header.items() if name != "__metadata__")
        for name, told in sorted(spans, key=lambda item: item[1]["data_offsets"]):
            entry = Entry(str(told["dtype"]), tuple(told["shape"]))
            begin, stop = told["data_offsets"]
            if entry.dtype not in ITEM_BYTES or not all(type(n) is int and n >= 0 for n in entry.shape):
                raise ValueError(f"{name[:100]} is {entry.dtype[:20]} of shape {entry.shape[:8]}")
            if begin != end or stop - begin != ITEM_BYTES[entry.dtype] * math.prod(entry.shape):
                raise ValueError(f"the bytes of {name[:100]} do not fit its shape and its place")
            entries[name], end = entry, stop
        if size != 8 + length + end:
            raise ValueError(f"{size:,} bytes instead of {8 + length + end:,}: cut short, or something is behind it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise UserError(f"no whole safetensors file: {error}", where=str(path), next=next) from None
    return entries


def check_shapes(path: str | Path, wanted: Mapping[str, tuple[int, ...]], *, next: str = NEXT) -> None:
    """Refuse a safetensors file that lacks one of the tensors, or has it in another shape or as integers.

    Raises:
        UserError: names the first that differs; as `layout`.
    """
    found = layout(path, next=next)
    for name, shape in wanted.items():
        if name not in found:
            raise UserError(f"no tensor {name} in this file, which has {len(found)}", where=str(path), next=next)
        if found[name].shape != tuple(shape):
            raise UserError(
                f"{name} has shape {found[name].shape}, the configuration says {tuple(shape)}",
                where=str(path),
                next=next,
            )
        if "F" not in found[name].dtype:
            raise UserError(f"{name} is {found[name].dtype}, not numbers with a fraction", where=str(path), next=next)


def load_tensors(
    path: str | Path, wanted: Mapping[str, tuple[int, ...]] | None = None, *, next: str = NEXT
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Args:
        path: of the file.
        wanted: name -> shape of those that must be there, floating point; None takes what is there.
        next: the command or edit that mends a file that does not fit.

    Raises:
        UserError: as `check_shapes`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_shapes(path, wanted or {}, next=next)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), next=next) from None


def load_pickled(path: str | Path, *, next: str = NEXT) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote, on the CPU; no code of the file is run.

    Raises:
        UserError: something else, an archive that would inflate, or tensors larger than what is stored of them.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", where=str(path), next=next)
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=WEIGHTS_ONLY)
        if not isinstance(state, Mapping):
            raise ValueError(f"it holds a {type(state).__name__}, not a state dict")
        for name, tensor in state.items():
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"{str(name)[:100]} is a {type(tensor).__name__}, not a tensor")
            strided = tensor.layout == torch.strided
            if not strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError(f"{str(name)[:100]} is larger than what is stored of it")
    except Exception as error:  # the unpickler raises anything on a damaged file
        raise UserError(f"no weights that can be read as data: {brief(error)}", where=str(path), next=next) from None
    return dict(state)


def check_archive(path: str | Path) -> None:
    """Refuse a zip archive that holds more than its own bytes: torch stores tensors as they are.

    Raises:
        ValueError: an entry is compressed, or the entries are longer than the file.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    packed = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]
    if packed or sum(info.file_size for info in infos) > path.stat().st_size:
        raise ValueError("its entries are compressed, or longer than the file")


def numbers_in(document: Any, path: str = "") -> Iterator[tuple[str, int | float]]:
    """(path, value) of every number in nested data."""
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in pairs:
        where = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict | list):
            yield from numbers_in(value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield where, value


def brief(error: Exception) -> str:
    """The first line of what torch says, which may go on for a page."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
