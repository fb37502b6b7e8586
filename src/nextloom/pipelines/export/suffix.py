"""The suffix of bytes: by what they are, else by what the row is called."""

from __future__ import annotations

MARKS = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"II*\0", "tif"),
    (0, b"MM\0*", "tif"),
    (0, b"II+\0", "tif"),
    (0, b"MM\0+", "tif"),
    (4, b"ftypavif", "avif"),
    (4, b"ftypavis", "avif"),
    (4, b"ftyphei", "heic"),
    (4, b"ftyphev", "heic"),
    (4, b"ftypmif1", "heif"),
    (4, b"ftypmsf1", "heif"),
    (4, b"jP  ", "jp2"),
    (0, b"\xff\x4f\xff\x51", "j2k"),
    (0, b"P4", "pbm"),
    (0, b"P5", "pgm"),
    (0, b"P6", "ppm"),
)
"""(offset, bytes there, suffix)."""
KNOWN = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "jif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff"),
        *("avif", "avifs", "heic", "heics", "heif", "heifs", "hif", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
        *("ppm", "pgm", "pbm", "pnm", "pfm"),
    )
)
"""How a name of an image ends."""
UNKNOWN = "bin"
"""Of bytes that are no image by any sign; they are exported all the same."""


def is_suffix(text: str) -> bool:
    """Whether a name that ends in a dot and this is called an image, in any case."""
    return text.lower() in KNOWN


def suffix_of(raw: bytes, *names: str) -> str:
    """Suffix for bytes, in lower case and without a dot.

    Args:
        raw: the bytes.
        names: what they are called; the first that ends like an image decides where the bytes tell nothing.
    """
    for offset, mark, suffix in MARKS:
        if raw.startswith(mark, offset):
            return suffix
    ends = (name.partition("?")[0].rpartition(".")[2].lower() for name in names)
    return next((end for end in ends if end in KNOWN), UNKNOWN)
