"""The suffix of bytes: by what they are, else by what the row is called."""

from __future__ import annotations

from nextloom.magic import kind_of

OF_KIND = {
    "JPEG": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "WebP": "webp",
    "TIFF": "tif",
    "BigTIFF": "tif",
    "BMP": "bmp",
    "AVIF": "avif",
    "HEIC": "heic",
    "HEIC or AVIF": "heif",
    "JPEG 2000": "jp2",
    "JPEG XL": "jxl",
    "PPM": "ppm",
}
"""Kind of an image -> suffix."""
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
    if found := OF_KIND.get(kind_of(raw)):
        return found
    ends = (name.partition("?")[0].rpartition(".")[2].lower() for name in names)
    return next((end for end in ends if end in KNOWN), UNKNOWN)
