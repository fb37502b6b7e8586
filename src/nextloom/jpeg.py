"""How many scans a JPEG has, from its markers alone: each scan is as much work as a plain file of its size.

Markers of the first image count; what lies in its segments (thumbnails, profiles) and behind its end (a film, a second
image) does not. Source: ITU-T T.81, annex B.
"""

from __future__ import annotations

import re

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""The next marker: in the data of a scan, 0xFF is followed by 0, or by a restart."""
_SCAN, _END = 0xDA, 0xD9


def scans(raw: bytes, most: int) -> int:
    """Scans of the first image in `raw`, counted up to `most` + 1."""
    count, place = 0, 2
    while count <= most:
        found = _MARKER.search(raw, place)
        if found is None or found[1][0] == _END:
            break
        place = found.end()
        count += found[1][0] == _SCAN
        if len(raw) < place + 2 or found[1][0] in (0x01, 0xD8):
            continue
        place += int.from_bytes(raw[place : place + 2], "big")
    return count
