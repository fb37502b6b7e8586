"""Names of members for the keys of strangers: safe to unpack anywhere, never two alike, the key itself if possible.

A name is the key without the suffix of its image, `a/cat` for `a/cat.jpg`, and each character that a tar, a shell or
a file system would read otherwise is percent-encoded, dots first of all (webdataset cuts a name at its first dot).
Where two keys would get one name (`cat.jpg` and `cat.png`) each keeps its suffix inside the name: `cat%2Ejpg`. So
`urllib.parse.unquote` gives the key back, but for its suffix; a name too long for a file system is cut and ends in
`~` and a digest of its key. So do names that differ in upper and lower case alone, or in how an accent is composed
(`ü`): some file systems take them for one. The key itself stands in the sample's `.json`.

Memory: 16 bytes per row of the release.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

import numpy as np

from nextloom.pipelines.export.suffix import is_suffix
from nextloom.printable import printable

MAX_PART, MAX_NAME = 200, 900
"""Bytes of a folder or file name, and of all of it; file systems take 255 and 4,096, suffixes come behind."""
_PLAIN = re.compile(r"[\w @+,=()#!-]", re.ASCII)
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(?![^ ])")
"""Names of devices on Windows, whatever suffix follows."""


class Names:
    """Key -> name of its members, without a suffix.

    Args:
        keys: of all rows of the release.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        both = ((_hash(_folded(stem(key))), _hash(_folded(key))) for key in keys)
        self._shared, self._alike = map(_repeated, np.fromiter(both, np.dtype((np.uint64, 2))).T)

    def of(self, key: str) -> str:
        """The name for a key of the release."""
        if _hash(_folded(key)) in self._alike:
            name = escaped(key, key)
            return name if "~" in name else f"{name}~{_digest(key)}"
        short = stem(key)
        return escaped(key if short != key and _hash(_folded(short)) in self._shared else short, key)


def stem(key: str) -> str:
    """The key without the suffix of an image; whole where dots would be left in its last part."""
    folder, slash, name = key.rpartition("/")
    base, dot, suffix = name.rpartition(".")
    return f"{folder}{slash}{base}" if dot and base and "." not in base and is_suffix(suffix) else key


def escaped(text: str, key: str) -> str:
    """`text` as a relative path without dots, controls, empty parts and names of devices; no two texts alike.

    Args:
        text: the key, or part of it.
        key: whose digest ends a name that is too long.
    """
    parts = text.split("/")
    # an empty part would be an absolute name or a doubled slash: the slash behind it becomes part of the next name
    joined = ""
    for at, part in enumerate(parts):
        if at:
            joined += "/" if part and parts[at - 1] else "%2F"
        joined += _part(part)
    joined = joined or "%"
    if len(joined.encode()) <= MAX_NAME and all(len(part.encode()) <= MAX_PART for part in joined.split("/")):
        return joined
    kept = joined.rpartition("/")[2].encode()[:100].decode(errors="ignore")
    return f"{kept}~{_digest(key)}"


def _part(part: str) -> str:
    out = "".join(char if _safe(char) else quote(char, safe="") if char not in ".~" else _HEX[char] for char in part)
    if out[-1:] == " " or out[:1] == " ":
        out = out.replace(" ", "%20")
    if out[:1] == "-" or _RESERVED.match(out):
        out = f"%{ord(out[0]):02X}{out[1:]}"
    return out


_HEX = {".": "%2E", "~": "%7E"}


def _safe(char: str) -> bool:
    if char.isascii():
        return _PLAIN.match(char) is not None
    return printable(char) == char


def _folded(text: str) -> str:
    """What file systems that fold case and compose accents take a name for."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _repeated(hashes: np.ndarray) -> frozenset[int]:
    values, counts = np.unique(hashes, return_counts=True)
    return frozenset(values[counts > 1].tolist())


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
