"""A guarded web client: each GET ends in time, fits in memory, and stays off the private network.

One `get` is attempts; an attempt is hops, one for every redirect; a hop holds a place of its host and one of all
while it runs. A row's `timeout` covers all of that except the wait for a place, so a long queue fails nobody. A host
that asks to be left alone (429, 503, Retry-After) is, by every row. Redirects are followed by hand, so that each
target is judged like a first URL; addresses are judged in `curation.addresses`. Bytes come as the server has them:
no compression is asked for, and one that comes anyway is undone within `max_bytes`.
Price paid: a body longer than its Content-Length may pass for a right one, of the announced length.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from nextloom.curation.web.addresses import Allowed, Guard
from nextloom.curation.web.answer import WebError, bad_status, named, robots, unpacker
from nextloom.op import Execution
from nextloom.untrusted import bare

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from yarl import URL

MOVED = (301, 302, 303, 307, 308)
GOOD = (200, 203)


class Pace(Execution):
    """How fast and how patiently; times in seconds. Nothing here changes the bytes that are stored."""

    chunk_rows: int = Field(256, gt=0)
    """Rows per written file; a chunk stays in memory, and lasts as long as its slowest row."""
    row_seconds: float = Field(7200.0, gt=0)
    """As in every op, for a batch of rows; a row has its own `timeout`, which begins when it has a place."""
    row_memory: float = Field(16.0, gt=0)
    """As in every op, for a batch of rows."""
    workers: int = Field(1, gt=0)
    """Worker processes; they share the two bounds below."""
    concurrency: int = Field(64, gt=0)
    """Requests in flight."""
    per_host: int = Field(8, gt=0)
    """Requests in flight to one host."""
    connect_timeout: float = Field(10.0, gt=0)
    """Longest wait for a name, a connection and its encryption."""
    read_timeout: float = Field(15.0, gt=0)
    """Longest silence of a server."""
    timeout: float = Field(90.0, gt=0)
    """Longest time for one row: all attempts, redirects and waits between them, but not the wait for its turn."""
    retries: int = Field(2, ge=0)
    """Attempts after the first: on 408, 425, 429, 5xx, time-outs and broken connections. (Inside an attempt, aiohttp
    renews a connection that is dropped without an answer, once.)"""
    backoff: float = Field(1.0, ge=0)
    """First wait between attempts; it doubles each time. A Retry-After that asks for more gets more."""
    user_agent: str = Field("nextloom", min_length=1)
    """What servers see; add where its owner can be reached."""

    @model_validator(mode="after")
    def _enough_for_all(self) -> Pace:
        if self.workers > min(self.per_host, self.concurrency):
            raise ValueError(f"{self.workers} workers cannot share per_host {self.per_host}: raise it or lower them")
        return self


@dataclass(frozen=True, slots=True)
class Limits:
    """What is taken at all; another limit may give another result."""

    max_bytes: int
    max_redirects: int
    schemes: tuple[str, ...]
    allowed: tuple[Allowed, ...] = ()
    unwanted: tuple[str, ...] = ()
    """Words of an X-Robots-Tag header that end the visit."""


@dataclass(slots=True)
class Visit:
    """One GET and what became of it, also when it failed."""

    url: str
    left: float
    """Seconds of its time-out that are not used up."""
    attempts: int = 0
    http_status: int | None = None
    final_url: str | None = None
    mime: str | None = None
    body: bytes | None = None


@dataclass(slots=True)
class _Host:
    """The places of one host, and when it may be asked again."""

    places: asyncio.Semaphore
    quiet_until: float = field(default=0.0)


class Client:
    """GETs within limits; an asynchronous context, for one event loop."""

    def __init__(self, limits: Limits, pace: Pace) -> None:
        import aiohttp

        self._limits, self._pace = limits, pace
        self._places = asyncio.Semaphore(pace.concurrency // pace.workers)
        self._hosts: dict[str, _Host] = defaultdict(lambda: _Host(asyncio.Semaphore(pace.per_host // pace.workers)))
        connector = aiohttp.TCPConnector(
            limit=0, resolver=aiohttp.ThreadedResolver(), ttl_dns_cache=300, socket_factory=Guard(limits.allowed)
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": pace.user_agent, "Accept-Encoding": "identity", "Accept": "image/*,*/*;q=0.8"},
            timeout=aiohttp.ClientTimeout(total=None, connect=pace.connect_timeout, sock_read=pace.read_timeout),
            auto_decompress=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Client:
        names = ThreadPoolExecutor(self._pace.concurrency, "names")  # a queue for a name would count as silence
        asyncio.get_running_loop().set_default_executor(names)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def visit(self, url: str) -> Visit:
        """A visit to make, with the whole of its time left."""
        return Visit(url, self._pace.timeout)

    async def get(self, visit: Visit) -> None:
        """Make the visit; `visit` then holds the body.

        Raises:
            WebError: it gave none, after all attempts.
        """
        while True:
            visit.attempts += 1
            visit.http_status = None
            try:
                return await self._follow(visit)
            except WebError as error:
                wait = max(error.wait, self._pace.backoff * 2 ** (visit.attempts - 1))
                if not error.transient or visit.attempts > self._pace.retries or wait >= visit.left:
                    raise
                if error.busy and visit.final_url:
                    host = self._host(visit.final_url)
                    host.quiet_until = max(host.quiet_until, time.monotonic() + wait)
            visit.left -= wait
            await asyncio.sleep(wait)

    def _host(self, url: str) -> _Host:
        from yarl import URL

        return self._hosts[URL(url).host or ""]

    async def _follow(self, visit: Visit) -> None:
        """One attempt: hop by hop until a body."""
        url = self._checked(visit.url)
        for _ in range(self._limits.max_redirects + 1):
            visit.final_url = str(url)
            target = await self._hop(url, visit)
            if target is None:
                return
            url = self._checked(target, url)
        raise WebError("TooManyRedirects", "more redirects than max_redirects", f"{self._limits.max_redirects}")

    def _checked(self, text: str, base: URL | None = None) -> URL:
        from yarl import URL

        try:
            url = URL(text) if base is None else base.join(URL(text))
        except ValueError:
            raise WebError("BadUrl", "no valid URL", _shown(text)) from None
        if url.scheme not in self._limits.schemes or not url.host:
            allowed = " or ".join(self._limits.schemes)
            raise WebError("BadUrl", f"no {allowed} URL", _shown(text))
        if url.raw_user is not None or url.raw_password is not None:
            raise WebError("BadUrl", "the URL holds a user name or a password", _shown(text))
        return url

    async def _hop(self, url: URL, visit: Visit) -> str | None:
        """One request, in its turn; the target of a redirect, or None when the visit has its body."""
        host = self._hosts[url.host or ""]
        async with host.places:
            while (pause := host.quiet_until - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            async with self._places:
                start = time.monotonic()
                try:
                    async with asyncio.timeout(max(0.0, visit.left)):
                        return await self._request(url, visit)
                except WebError:
                    raise
                except Exception as error:
                    over = time.monotonic() - start >= visit.left
                    raise named(error, self._pace.timeout if over else None) from error
                finally:
                    visit.left -= time.monotonic() - start

    async def _request(self, url: URL, visit: Visit) -> str | None:
        async with self._session.get(url, allow_redirects=False) as answer:
            visit.http_status = answer.status
            if answer.status in MOVED and "Location" in answer.headers:
                answer.close()
                return answer.headers["Location"]
            if answer.status not in GOOD:
                raise bad_status(answer)
            words = robots(answer.headers.getall("X-Robots-Tag", []), self._pace.user_agent)
            if unwanted := words & set(self._limits.unwanted):
                raise WebError("Disallowed", f"X-Robots-Tag says {', '.join(sorted(unwanted))}")
            visit.mime = answer.content_type if "Content-Type" in answer.headers else None
            visit.body = await self._body(answer)
        return None

    async def _body(self, answer: ClientResponse) -> bytes:
        import aiohttp

        most, length = self._limits.max_bytes, answer.content_length
        too_large = WebError("TooLarge", "larger than max_bytes", f"more than {most:,} bytes")
        if length is not None and length > most:
            raise WebError("TooLarge", "larger than max_bytes", f"{length:,} bytes are announced, {most:,} are taken")
        unpack = unpacker(answer.headers.get("Content-Encoding", ""))
        body, came = bytearray(), 0
        try:
            async for piece in answer.content.iter_any():
                came += len(piece)
                body += unpack(piece, most + 1 - len(body)) if unpack else piece
                if len(body) > most or came > most:
                    raise too_large
        except aiohttp.ClientPayloadError:
            announced = f"{length:,} bytes are announced" if length is not None else "the last chunk never came"
            raise WebError("WrongLength", "the body ends early", announced, transient=True) from None
        if unpack:
            unpack(None, 0)
        return bytes(body)


def _shown(url: str) -> str:
    """A URL as it may be told: cut, and without a user name, a password and a query."""
    return repr(bare(url if "://" in url else url.rpartition("@")[2])[:200])
