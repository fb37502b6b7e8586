"""A folder as Hugging Face's transformers saves it, looked at before the library reads it.

transformers follows what a folder says: `config.json` may name another attention (a kernel fetched from a hub and
run), a quantiser, an adapter, and shards may be named by paths. A folder for an encoder needs none of that, so it is
refused. Numbers are bounded, because the library builds what they say before it looks at the weights.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nextloom.errors import UserError
from nextloom.model_files import MOST_VOCABULARY, brief, check_archive, layout, numbers_in, read_json

REFUSED = (
    "attn_implementation",
    "experts_implementation",
    "quantization_config",
    "use_kernels",
    "base_model_name_or_path",
)
"""Fields of a configuration, at any depth and also with `_` before them, that fetch or run something else."""
MOST, MOST_LAYERS = 2**20, 512
"""The largest number in a configuration, and the most layers."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Ends of names of weights that are pickles."""


def check_folder(folder: str | Path) -> None:
    """Refuse a folder that says more than which network it is, and weights that are not whole.

    Raises:
        UserError: names the file, and what in it.
    """
    path = Path(folder)
    config = read_json(path / "config.json")
    for field in _fields(config):
        if field.lstrip("_").removesuffix("_internal") in REFUSED:
            raise _refused(path / "config.json", f"{field!r} would have other code or files used")
    check_numbers(path / "config.json", config)
    if (path / "adapter_config.json").exists():
        raise _refused(path / "adapter_config.json", "an adapter names another model, which would be loaded")
    for index in sorted(path.glob("*.index.json")):
        shards = read_json(index, most=MOST_VOCABULARY).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else {None}
        if wrong := [name for name in names if not _plain(name) or not (path / str(name)).is_file()]:
            raise _refused(index, f"it names the shard {str(wrong[0])[:100]!r}, which is not in this folder")
    for file in weights_in(path):
        check_weights(file)


@contextmanager
def reading(path: str | Path) -> Generator[None, None, None]:
    """Turn whatever a library says of a folder or file inside the block into a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every library raises its own, down to KeyError
        what = f"cannot be read as a model: {brief(error)}"
        raise UserError(what, where=str(path), next="give the files of the model as they were published") from error


def check_numbers(path: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration with numbers that no model has: the library builds what they say.

    Raises:
        UserError: names the first.
    """
    for name, value in numbers_in(config):
        most = MOST_LAYERS if "layer" in name.rpartition(".")[2] and "norm" not in name else MOST
        if not abs(value) <= most:
            raise _refused(path, f"{name} is {value:.4g}, more than {most:,}")


def check_weights(path: str | Path) -> None:
    """Refuse a file of weights that is not whole, or an archive that would inflate.

    Raises:
        UserError: says what is wrong.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        layout(path)
        return
    try:
        check_archive(path)
    except (ValueError, OSError) as error:
        raise _refused(path, str(error)) from None


def values_in(folder: str | Path) -> int:
    """The most weights that the files of a folder can hold: those of its safetensors, or a byte each of its pickles."""
    files = weights_in(Path(folder))
    named = [entry for file in files if file.suffix == ".safetensors" for entry in layout(file).values()]
    if named:
        return sum(entry.numel for entry in named)
    return sum(file.stat().st_size for file in files)


def weights_in(path: Path) -> list[Path]:
    """Files of weights in a folder, by their suffix."""
    return sorted(p for p in path.iterdir() if p.suffix in (".safetensors", *PICKLES) and p.is_file())


def _plain(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and Path(name).name == name


def _fields(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        yield from document
    values = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    for value in values:
        yield from _fields(value)


def _refused(path: Path, what: str) -> UserError:
    return UserError(
        what,
        where=str(path),
        next="model folders are data: take this out, or give the folder of a model as it was published in safetensors",
    )
