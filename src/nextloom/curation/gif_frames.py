"""Expand `gif_frames`: a row for each frame of an animated GIF, WebP, PNG or AVIF.

    frames: {op: gif_frames}
    photo:  {op: image_stats, rows: frames}

A still picture has one frame, so it has one child, and `rows: frames` covers stills and animations alike. Frames
are composed as a viewer shows them. Price paid: a frame is decoded from the first one on, so an animation of n
frames costs n^2 / 2 steps; `max_frames` bounds that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from nextloom import pixels
from nextloom.op import MAX_CHILDREN, Child, Expand, Row, RowFailure


class GifFrames(Expand):
    """picture -> frames."""

    name: ClassVar[str] = "gif_frames"
    code_version: ClassVar[int] = 1

    max_frames: int = Field(default=256, ge=1, le=MAX_CHILDREN)
    """An animation of more frames becomes an error row: a part of it would pass for the whole."""

    def version(self) -> str:
        return f"{self.code_version}+{pixels.DECODE_VERSION}"

    def expand(self, row: Row) -> Iterator[Child]:
        """Children `name.gif#0000`, `name.gif#0001`, ... in time order.

        Raises:
            PictureError: the bytes are no picture.
            RowFailure: ``TooManyFrames``: more than `max_frames`.
        """
        assert row.raw is not None
        count = pixels.frame_count(row.raw)
        if count > self.max_frames:
            raise RowFailure(
                "TooManyFrames", f"more frames than max_frames, {self.max_frames}", detail=f"{count} frames"
            )
        for frame in range(count):
            yield Child(key=f"{row.key}#{frame:04d}", frame=frame)
