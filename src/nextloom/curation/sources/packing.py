"""Compressed files: which packer wrote one, by its first bytes, and the command that unpacks it whatever its name."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from nextloom.io import is_uri
from nextloom.untrusted import bare


@dataclass(frozen=True, slots=True)
class Packing:
    """One way of compression."""

    name: str
    """As `pyarrow` calls it; "" where that reads none."""
    magic: bytes
    suffixes: tuple[str, ...]
    """The first is what its tool expects of any file; the others are short for .tar and it."""
    tool: str

    def unpack(self, uri: str) -> str:
        """The command that leaves the unpacked file in its place, under a name without the packer's suffix."""
        if is_uri(uri):
            return f"copy {bare(uri)} to a disk, unpack it there with {self.tool}, and put it back"
        path = shlex.quote(uri)
        if uri.endswith(self.suffixes):
            return f"unpack it: {self.tool} {path}"
        packed = shlex.quote(uri + self.suffixes[0])
        return f"unpack it: mv {path} {packed} && {self.tool} {packed}"


PACKINGS = (
    Packing("gzip", b"\x1f\x8b", (".gz", ".tgz"), "gunzip"),
    Packing("bz2", b"BZh", (".bz2", ".tbz2"), "bunzip2"),
    Packing("", b"\xfd7zXZ", (".xz", ".txz"), "unxz"),
    Packing("zstd", b"\x28\xb5\x2f\xfd", (".zst", ".tzst"), "unzstd --rm"),
)


def packing_of(head: bytes) -> Packing | None:
    """Which packer a file's first bytes are of."""
    return next((packing for packing in PACKINGS if head.startswith(packing.magic)), None)
