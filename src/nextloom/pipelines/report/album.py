"""Album: the thumbnails of a report. Parts ask for rows, then all are made in one go, within one budget.

A thumbnail is a WebP of at most `SIDE` pixels in a data URI. A row whose bytes cannot be had or decoded has none,
and so has what lies beyond `MOST` pictures or `MOST_BYTES`: what was asked for first counts first, and `spare`
pictures count after all others.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from nextloom import pixels
from nextloom.content import WEB, Content
from nextloom.op import Annotate
from nextloom.pipelines.plan import Planner
from nextloom.pipelines.recipe import SOURCE
from nextloom.pipelines.report.picked import pick, table_of
from nextloom.printable import printable

SIDE = 96
QUALITY = 60
MOST = 1000
MOST_BYTES = 6_000_000
KEY_LENGTH = 200
CAPTION_LENGTH = 160
CAPTIONS = ("caption", "recaption")
"""Ops whose column `text` is shown in place of the caption that the source brought."""

_PLACE = ("key", "uri", "offset", "size", "member", "version", "frame", "caption")


class Album:
    """Slots for pictures to come, then the pictures."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._slots: dict[tuple[str, int], int] = {}
        self._spare: set[int] = set()
        self._rows: dict[int, dict[str, Any]] = {}
        self.pictures: dict[int, str] = {}
        """Slot -> data URI; filled by `develop`."""

    def want(self, domain: str, ids: list[int], *, spare: bool = False) -> list[int]:
        """Slots of rows whose pictures are wanted: rows of the source, or children of the Expand `domain`."""
        slots = []
        for row_id in ids:
            new = (domain, row_id) not in self._slots
            slot = self._slots.setdefault((domain, row_id), len(self._slots))
            slots.append(slot)
            if new and spare:
                self._spare.add(slot)
            elif not spare:
                self._spare.discard(slot)
        return slots

    def key(self, slot: int) -> str:
        """Key of the row, cut to `KEY_LENGTH`; known after `develop`."""
        return _cut(self._rows[slot]["key"], KEY_LENGTH) if slot in self._rows else ""

    def caption(self, slot: int) -> str:
        """What is said about the row, cut to `CAPTION_LENGTH`: by a caption step, or by its source; known after
        `develop`."""
        return _cut(self._rows.get(slot, {}).get("caption") or "", CAPTION_LENGTH)

    def shown(self, slots: Iterable[int]) -> list[dict[str, Any]]:
        """slot, key, caption and picture (data URI, or None) of rows; known after `develop`."""
        return [
            {"slot": slot, "key": self.key(slot), "caption": self.caption(slot), "picture": self.pictures.get(slot)}
            for slot in slots
        ]

    def develop(self) -> None:
        """Look the rows up, and make their pictures within the budget."""
        asked = sorted(self._slots.items(), key=lambda item: (item[1] in self._spare, item[1]))
        for domain in dict.fromkeys(domain for domain, _ in self._slots):
            table, schema = table_of(self._planner, SOURCE, domain)
            ids = np.array([row_id for d, row_id in self._slots if d == domain])
            names = [name for name in _PLACE if name in schema.names]
            for row in pick(table, ids, names, schema).to_pylist():
                self._rows[self._slots[domain, row["id"]]] = row
            self._read_captions(domain, ids)
        content, spent = Content(self._planner.recipe.source.door()), 0
        for (domain, _), slot in sorted(asked[:MOST], key=lambda item: (item[1] in self._spare, item[0])):
            made = self._picture(domain, self._rows.get(slot), content)
            if made is not None and spent + len(made) <= MOST_BYTES:
                self.pictures[slot] = made
                spent += len(made)

    def _read_captions(self, domain: str, ids: np.ndarray) -> None:
        for step in self._planner.graph:
            if step.op.name in CAPTIONS and step.domain == domain and step.name in self._planner.fingerprints:
                table, schema = table_of(self._planner, step.name, domain)
                for row in pick(table, ids, ["text"], schema).to_pylist():
                    if row["text"] and (domain, row["id"]) in self._slots:
                        self._rows[self._slots[domain, row["id"]]]["caption"] = row["text"]

    def _picture(self, domain: str, row: dict[str, Any] | None, content: Content) -> str | None:
        if row is None:
            return None
        try:
            raw = self._fetched(domain, row["id"]) if row["uri"].startswith(WEB) else content.fetch(row)
            return picture(raw, row.get("frame") or 0)
        except Exception:  # the report shows what there is; why a row has no pixels, its failures say
            return None

    def _fetched(self, domain: str, row_id: int) -> bytes:
        """Bytes that a step fetched for a row that is a URL."""
        for step in self._planner.graph:
            column = step.op.content if isinstance(step.op, Annotate) else ""
            if column and step.domain == domain and step.name in self._planner.fingerprints:
                table, schema = table_of(self._planner, step.name, domain)
                found = pick(table, np.array([row_id]), [column], schema)[column].to_pylist()
                if found and found[0] is not None:
                    return found[0]
        raise LookupError("no step has fetched it")


def _cut(text: str, length: int) -> str:
    """The start of a text of any length, with nothing in it that a reader does not see."""
    plain = printable(text[:length])
    return f"{plain[:length]}..." if len(text) > length else plain


def picture(raw: bytes, frame: int = 0) -> str:
    """Data URI of what a file shows: decoded and encoded anew, so that nothing else of the file is in it.

    Raises:
        Exception: the file does not decode.
    """
    return thumbnail(pixels.decode(raw, frame))


def thumbnail(rgb: np.ndarray) -> str:
    """Data URI of a WebP of at most `SIDE` x `SIDE` pixels: the picture's shape is kept, and it is never enlarged."""
    image = Image.fromarray(rgb)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
