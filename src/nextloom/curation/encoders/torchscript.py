"""Weights out of a TorchScript archive, the form of OpenAI's CLIP files, without loading its program.

`torch.jit.load` compiles the archive's code and runs its `__setstate__` methods, which may write files: it is a
program, not data. Here `data.pkl` is read by an unpickler that knows tensors, containers and empty objects in place of
the archive's own classes, and tensors are taken from the stored bytes. Trade-off: an attribute of another kind, which
no published CLIP has, is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nextloom.errors import UserError

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NOT_STORED = ("attn_mask",)
"""Tensors of OpenAI's archives that are no weights: models make them anew."""


class Plain(dict):
    """Stands for an object of a class that the archive brings: its attributes, and no methods."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("an object with a state of its own making")
        self.update(state)


def read_weights(path: str) -> dict[str, Tensor]:
    """Name -> tensor of the module in an archive, on the CPU.

    Raises:
        UserError: no such archive, or something in it that is neither a tensor nor a plain value.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            root = _Reader(archive, name.removesuffix("data.pkl")).load()
        found: dict[str, Tensor] = {}
        _flatten(root, "", found)
    except Exception as error:  # an unpickler raises anything on a damaged file
        raise UserError(
            f"no weights that can be read as data: {type(error).__name__}: {str(error)[:200]}",
            where=path,
            next="bring the file as OpenAI published it, or the same model as a folder with model: clip",
        ) from None
    return found


def _flatten(module: Any, prefix: str, found: dict[str, Tensor]) -> None:
    if not isinstance(module, Plain):
        raise ValueError(f"{prefix or 'it'} is a {type(module).__name__}, not a module")
    for name, value in module.items():
        if isinstance(value, Plain):
            _flatten(value, f"{prefix}{name}.", found)
        elif isinstance(value, Tensor) and name not in NOT_STORED:
            found[f"{prefix}{name}"] = value


class _Reader(pickle.Unpickler):
    """Of `data.pkl` in an open archive."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(_stored(archive, f"{folder}data.pkl")))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Nothing but what stands for data."""
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if module.partition(".")[0] == "__torch__":
            return Plain
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return list
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not data")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """The stored values that a tensor is a view of."""
        _, dtype, key, *_ = pid
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage without a type")
        if key not in self._storages:
            raw = bytearray(_stored(self._archive, f"{self._folder}data/{key}"))
            self._storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError(f"a tensor of shape {size} out of {storage.numel()} stored values")
    return storage.as_strided(size, stride, offset)


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, which torch does not do")
    return archive.read(info)
