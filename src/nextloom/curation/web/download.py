"""Annotate `download`: the bytes behind a URL, as a column.

    file:  {op: download, max_bytes: 20_000_000, execution: {concurrency: 256, per_host: 4}}
    photo: {op: image_stats, reads: [file]}             looks at the downloaded picture

A row whose `uri` is http or https is fetched; what the server sent is stored as it is, with its SHA-256. A row that
gives no bytes is an error row that keeps its `status`, `http_status` and number of attempts; no part of a body is
kept. Every row of a run has one of these, so the rows that failed are the ones that `run --retry-errors` asks for
again, and a second run asks for none. `curation.http` says how a visit goes and what bounds it.
Price paid: a chunk of rows waits for its slowest, so a list with many dead hosts wants larger chunks or more workers.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from nextloom.curation.web.addresses import Allowed
from nextloom.curation.web.answer import WebError
from nextloom.curation.web.http import Client, Limits, Pace
from nextloom.op import Annotate, Row, RowFailure

UNWANTED = ("noai", "noimageai", "noindex", "noimageindex")


class Download(Annotate):
    """URL -> bytes."""

    name: ClassVar[str] = "download"
    code_version: ClassVar[int] = 1
    batch: ClassVar[int] = 4096
    content: ClassVar[str] = "bytes"
    apart: ClassVar[bool] = True

    max_bytes: int = Field(default=32 * 2**20, gt=0)
    """Largest body taken, compressed or not; a larger one fails with `TooLarge`."""
    max_redirects: int = Field(default=5, ge=0)
    """Redirects followed."""
    schemes: tuple[Literal["http", "https"], ...] = ("http", "https")
    """Schemes taken, in a row and in a redirect."""
    allow_private: tuple[str, ...] = ()
    """Addresses, networks or ports that may be visited although not public: ``10.1.0.0/16``, ``127.0.0.1:8000``."""
    unwanted: tuple[str, ...] = UNWANTED
    """Words of the X-Robots-Tag header by which an owner says no; such a row fails with `Disallowed`."""
    execution: Pace = Pace()  # pyrefly: ignore[bad-override]

    @field_validator("allow_private")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            Allowed.parse(text)
        return value

    def columns(self) -> pa.Schema:
        """What came.

        bytes: the body; `size` its length, `sha256` its digest in hexadecimal.
        status: ``success``, or ``failed_`` and the type of the error: ``failed_http_status``, ``failed_timeout``.
        http_status: of the last answer; null where there was none.
        attempts: visits made, the first included.
        mime: what the server calls it, without parameters.
        final_url: where the redirects led.
        """
        texts = ("mime", "sha256", "final_url")
        return pa.schema(
            [
                ("bytes", pa.binary()),
                ("status", pa.string()),
                ("http_status", pa.int32()),
                ("attempts", pa.int32()),
                ("size", pa.int64()),
                *((name, pa.string()) for name in texts),
            ]
        )

    def process(self, rows: Sequence[Row]) -> Sequence[dict[str, Any] | Exception]:
        """Visit all rows at once, within the bounds of `execution`."""
        return asyncio.run(self._all(rows))

    async def _all(self, rows: Sequence[Row]) -> Sequence[dict[str, Any] | Exception]:
        limits = Limits(
            max_bytes=self.max_bytes,
            max_redirects=self.max_redirects,
            schemes=self.schemes,
            allowed=tuple(Allowed.parse(text) for text in self.allow_private),
            unwanted=tuple(word.lower() for word in self.unwanted),
        )
        async with Client(limits, self.execution) as client:
            return await asyncio.gather(*(_fetch(client, row.source["uri"]) for row in rows))


async def _fetch(client: Client, url: str) -> dict[str, Any] | RowFailure:
    visit = client.visit(url)
    try:
        await client.get(visit)
    except WebError as error:
        values = {
            "status": "failed_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", error.kind).lower(),
            "http_status": visit.http_status,
            "attempts": visit.attempts,
            "final_url": visit.final_url,
        }
        return RowFailure(error.kind, str(error), detail=error.detail, transient=error.transient, values=values)
    assert visit.body is not None
    return {
        "bytes": visit.body,
        "status": "success",
        "http_status": visit.http_status,
        "attempts": visit.attempts,
        "size": len(visit.body),
        "mime": visit.mime,
        "sha256": hashlib.sha256(visit.body).hexdigest(),
        "final_url": visit.final_url,
    }
