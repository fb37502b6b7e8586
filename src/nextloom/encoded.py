"""Images that are written as text: base64, and `data:` URIs (RFC 2397).

    is_encoded("data:image/png;base64,iVBORw0...")   True
    is_encoded("/9j/4AAQSkZJRgABAQAAAQABAAD...")     True: base64 of a file that begins as a JPEG does
    is_encoded("/9j/photo.jpg")                      False: a path

A text without `data:` in front is taken for base64 where its first 40 characters are of that alphabet and stand for
the beginning of an image (`is_image`), and no dot is in it; no path and no URL is like that.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

_MAYBE = re.compile(r"^\s*(?i:data:|[A-Za-z0-9+/_-]{40})")
_HEAD = 44
"""Characters of base64 whose 33 bytes tell what a file is."""
_STARTS = (
    (0, b"\xff\xd8\xff"),
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"GIF87a"),
    (0, b"GIF89a"),
    (8, b"WEBP"),
    (0, b"II*\0"),
    (0, b"MM\0*"),
    (0, b"II+\0"),
    (0, b"MM\0+"),
    (4, b"ftypavif"),
    (4, b"ftypavis"),
    (4, b"ftyphei"),
    (4, b"ftyphev"),
    (4, b"ftypmif1"),
    (4, b"ftypmsf1"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n"),
    (0, b"\xff\x4f\xff\x51"),
)
"""(offset, bytes) of the formats that `nextloom.pixels` reads; BMP and the PNM family have too short a mark alone."""


def is_image(head: bytes) -> bool:
    """Whether a file of an image format that is read may begin with these bytes.

    Args:
        head: its first 32 bytes, or all of a smaller one.
    """
    if any(head.startswith(mark, at) for at, mark in _STARTS):
        return True
    if head.startswith(b"BM"):  # size, two zeros, where the pixels are, size of the header
        return len(head) >= 18 and head[6:10] == b"\0\0\0\0" and head[14] in (12, 40, 52, 56, 64, 108, 124)
    return re.match(rb"P[1-7f][\s#]", head) is not None and head[2:3] in b" \t\r\n#"


def is_encoded(text: str) -> bool:
    """Whether a text is an image in base64 or a `data:` URI; what is behind its beginning may still be damaged."""
    if not _MAYBE.match(text):
        return False
    start = text[:256].lstrip()
    if start[:5].lower() == "data:":
        return True
    if "." in text:
        return False
    head = start[:_HEAD].translate(_URL_SAFE)
    try:
        return is_image(base64.b64decode(head[: len(head) // 4 * 4], validate=True))
    except binascii.Error:
        return False


def decode(text: str) -> bytes:
    """The bytes that a text stands for.

    Raises:
        ValueError: it is neither base64 nor a `data:` URI.
    """
    body = text.strip()
    if body[:5].lower() == "data:":
        kind, comma, body = body.partition(",")
        if not comma:
            raise ValueError("a data: URI without a comma")
        if not kind.lower().endswith(";base64"):
            return unquote_to_bytes(body)
        if "%" in body:
            body = unquote_to_bytes(body).decode("ascii", "replace")
    body = "".join(body.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("no base64") from None


_URL_SAFE = str.maketrans("-_", "+/")
