"""What a file is, by its first bytes: the word that stands in the error of a row which is no image that is read."""

from __future__ import annotations

import re

_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC or AVIF"),
    (4, b"ftypmsf1", "HEIC or AVIF"),
    (4, b"ftypcrx ", "Canon raw"),
    (4, b"ftypjxl ", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypqt  ", "QuickTime video"),
    (4, b"ftyp", "MP4 video"),
    (4, b"moov", "QuickTime video"),
    (8, b"AVI ", "AVI video"),
    (8, b"WAVE", "WAV audio"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"\0\0\x01\xba", "MPEG video"),
    (0, b"\0\0\x01\xb3", "MPEG video"),
    (0, b"OggS", "Ogg audio or video"),
    (0, b"ID3", "MP3 audio"),
    (0, b"fLaC", "FLAC audio"),
    (0, b"8BPS", "PSD"),
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"DDS ", "DDS"),
    (0, b"gimp xcf", "GIMP image"),
    (0, b"\0\0\x01\0", "Windows icon"),
    (0, b"\0\0\x02\0", "Windows cursor"),
    (0, b"icns", "Apple icon"),
    (0, b"\x59\xa6\x6a\x95", "Sun raster"),
    (0, b"\x01\xda", "SGI image"),
    (0, b"qoif", "QOI"),
    (0, b"farbfeld", "farbfeld"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"FORM", "IFF"),
    (0, b"BM", "BMP"),
    (0, b"\x0a\x05\x01\x08", "PCX"),
    (0, b"\xd7\xcd\xc6\x9a", "Windows metafile"),
    (0, b"\x01\0\0\0", "Windows metafile"),
    (128, b"DICM", "DICOM"),
    (0, b"PK\x03\x04", "ZIP archive"),
    (0, b"PK\x05\x06", "ZIP archive"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"(\xb5/\xfd", "zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"Rar!\x1a\x07", "RAR archive"),
    (257, b"ustar", "tar archive"),
    (0, b"PAR1", "Parquet"),
    (0, b"ARROW1", "Arrow"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"\x80\x02", "pickle"),
    (0, b"\x80\x04", "pickle"),
    (0, b"\x80\x05", "pickle"),
    (0, b"\x7fELF", "program"),
    (0, b"MZ", "program"),
    (0, b"#!", "script"),
)
_TEXTS = (
    (re.compile(rb"(?i)^(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg|<svg[\s>])", re.S), "SVG"),
    (re.compile(rb"(?i)^(<!--.*?-->\s*)?(<!doctype html|<html|<head|<body|<script|<title)", re.S), "HTML"),
    (re.compile(rb"^<\?xml"), "XML"),
    (re.compile(rb"^[\[{]\s*[\"\[{\]}\d]"), "JSON"),
    (re.compile(rb"^version https://git-lfs"), "Git LFS pointer"),
    (re.compile(rb"^P[1-6]\s"), "PPM"),
    (re.compile(rb"^P[7fF]\s"), "PAM or PFM"),
    (re.compile(rb"^/\* XPM \*/"), "XPM"),
    (re.compile(rb"^#define \S+_width"), "XBM"),
)
HEAD = 512
"""Bytes that are looked at."""


def kind_of(raw: bytes) -> str:
    """The name of a file's kind, such as ``JPEG``, ``PDF`` or ``HTML``; ``text``, ``zeros`` or ``unknown`` for others.

    Args:
        raw: the file, or its first bytes.
    """
    head = raw[:HEAD]
    if _is_tga(raw):
        return "TGA"
    for at, mark, name in _MARKS:
        if head.startswith(mark, at):
            return name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name in _TEXTS:
        if pattern.match(text):
            return name
    if not head.strip(b"\0"):
        return "zeros" if head else "nothing"
    return "text" if _is_text(head) else "unknown"


def _is_tga(raw: bytes) -> bool:
    """TGA has no mark; its header is telling, and newer files have a footer."""
    if raw[-18:-1] == b"TRUEVISION-XFILE.":
        return True
    if len(raw) < 18 or raw[16] not in (8, 15, 16, 24, 32):
        return False
    mapped = raw[1] == 1 and raw[2] in (1, 9)
    return mapped or (raw[1] == 0 and raw[2] in (2, 3, 10, 11) and raw[3:8] == bytes(5))


def _is_text(head: bytes) -> bool:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return not re.search("[\x00-\x08\x0e-\x1a\x1c-\x1f]", text)
