"""What makes a file an image by its name, and which names beside an image may hold a caption that is not read."""

from __future__ import annotations

from collections.abc import Iterable

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
"""Default suffixes, in any case: of all formats that `nextloom.pixels` reads."""

CAPTION_FIELDS = ("caption", "text")
"""Names, in any case, of a column or a JSON field that is taken for the caption; the first that there is."""
LIKELY_CAPTIONS = (
    *("alt", "alt_text", "alttext", "description", "prompt", "title", "captions", "texts", "caption_en", "top_caption"),
    *("long_caption", "short_caption", "image_caption", "image_description", "re_caption", "recaption", "sentence"),
    *("sentences", "label_text", "conversations", "prompt_en", "tags", "blip2_caption", "blip_caption", "answer"),
)
"""Names that may be one, and are not guessed; told where there is no caption."""
LIKELY_FILES = (".caption", ".captions", ".cap", ".tags", ".prompt", ".xmp", ".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of files in a folder of images that may hold captions."""


def likely(names: Iterable[str]) -> str:
    """The first of `names` that may be a caption under another name; "" where none may."""
    known = {name.lower(): name for name in names}
    return next((known[want] for want in LIKELY_CAPTIONS if want in known), "")


def shown(suffix: str) -> str:
    """A suffix as a notice says it."""
    return suffix or "without suffix"
