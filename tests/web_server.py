"""A web server that misbehaves, one way per path, and counts what it sees; and a source of URLs.

Answers are written to the socket by hand, since a web framework would refuse to send most of them.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from nextloom.config import RootPath
from nextloom.curation.sources.source import Item, Source, item_table

HOLD = 0.1
"""Seconds that ``/held/...`` takes."""


def picture(name: str) -> bytes:
    """A small PNG that depends on `name`."""
    noise = np.random.default_rng(list(name.encode())).integers(0, 256, (40, 48, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


class WebServer:
    """Listens on every address of the machine, in a thread; a context."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        """Path -> requests."""
        self.times: dict[str, list[float]] = defaultdict(list)
        """Path -> when its requests came."""
        self.headers: dict[str, dict[str, str]] = {}
        """Path -> headers of its last request."""
        self.peak: Counter[str] = Counter()
        """Host that was asked for, and "all" -> most requests at a time."""
        self.down = False
        """While set, ``/moody/...`` answers 503."""
        self._now: Counter[str] = Counter()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> WebServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._client, "0.0.0.0", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = lines[0].split(" ")[1]
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
            host = headers["host"].partition(":")[0]
            self.seen[path] += 1
            self.times[path].append(time.monotonic())
            self.headers[path] = headers
            for name in (host, "all"):
                self._now[name] += 1
                self.peak[name] = max(self.peak[name], self._now[name])
            try:
                await self._answer(path, writer)
            finally:
                for name in (host, "all"):
                    self._now[name] -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        kind, _, rest = path.strip("/").partition("/")
        method = getattr(self, f"_{kind}", None)
        if method is None:
            reply(writer, 404, b"no such path", {"Content-Type": "text/html; charset=utf-8"})
        else:
            await method(writer, rest)
        await writer.drain()

    async def _good(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, 200, picture(rest))

    async def _held(self, writer: asyncio.StreamWriter, rest: str) -> None:
        await asyncio.sleep(HOLD)
        reply(writer, 200, b"x")

    async def _status(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, int(rest.split("/", maxsplit=1)[0]), b"<html>")

    async def _busy(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """429 with the wanted Retry-After at first, then a picture."""
        first = self.seen[f"/busy/{rest}"] == 1
        reply(writer, 429 if first else 200, picture(rest), {"Retry-After": rest} if first else {})

    async def _later(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, 503, b"", {"Retry-After": rest})

    async def _moody(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, 503 if self.down else 200, picture(rest))

    async def _drip(self, writer: asyncio.StreamWriter, rest: str) -> None:
        head(writer, 200, {})
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def _endless(self, writer: asyncio.StreamWriter, rest: str) -> None:
        head(writer, 200, {})
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async def _silent(self, writer: asyncio.StreamWriter, rest: str) -> None:
        await asyncio.sleep(60)

    async def _closed(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """Nothing is said."""

    async def _garbage(self, writer: asyncio.StreamWriter, rest: str) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    async def _circle(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, 302, b"", {"Location": "/circle"})

    async def _hops(self, writer: asyncio.StreamWriter, rest: str) -> None:
        left = int(rest)
        reply(writer, 307, b"", {"Location": f"/hops/{left - 1}" if left > 1 else "../good/hops"})

    async def _to(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, 301, b"", {"Location": rest})

    async def _short(self, writer: asyncio.StreamWriter, rest: str) -> None:
        head(writer, 200, {"Content-Length": "1000"})
        writer.write(bytes(600))

    async def _long(self, writer: asyncio.StreamWriter, rest: str) -> None:
        head(writer, 200, {"Content-Length": "1000"})
        writer.write(bytes(1600))

    async def _cut(self, writer: asyncio.StreamWriter, rest: str) -> None:
        head(writer, 200, {"Transfer-Encoding": "chunked"})
        writer.write(b"5\r\nhello\r\n")

    async def _announced(self, writer: asyncio.StreamWriter, rest: str) -> None:
        head(writer, 200, {"Content-Length": rest})
        writer.write(b"x")

    async def _gzip(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, 200, gzip.compress(picture("gzip")), {"Content-Encoding": "gzip"})

    async def _bomb(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, 200, gzip.compress(bytes(50_000_000)), {"Content-Encoding": "gzip"})

    async def _headers(self, writer: asyncio.StreamWriter, rest: str) -> None:
        await self._drips(writer, b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n")

    async def _manyheaders(self, writer: asyncio.StreamWriter, rest: str) -> None:
        await self._drips(writer, b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n" * 1000)

    async def _continue(self, writer: asyncio.StreamWriter, rest: str) -> None:
        await self._drips(writer, b"", b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _extension(self, writer: asyncio.StreamWriter, rest: str) -> None:
        await self._drips(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"a" * 100)

    async def _drips(self, writer: asyncio.StreamWriter, first: bytes, more: bytes) -> None:
        writer.write(first)
        while True:
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(0.05)

    async def _trailing(self, writer: asyncio.StreamWriter, rest: str) -> None:
        head(writer, 200, {"Content-Encoding": "gzip"})
        writer.write(gzip.compress(picture("gzip")))
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async def _half(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, 200, gzip.compress(picture("gzip"))[:-20], {"Content-Encoding": "gzip"})

    async def _robots(self, writer: asyncio.StreamWriter, rest: str) -> None:
        reply(writer, 200, b"x", {"X-Robots-Tag": rest.replace("_", " ")})


def head(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str]) -> None:
    lines = [f"HTTP/1.1 {status} Status", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in {"Content-Type": "image/png", **headers}.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())


def reply(writer: asyncio.StreamWriter, status: int, body: bytes, headers: Mapping[str, Any] | None = None) -> None:
    head(writer, status, {"Content-Length": str(len(body)), **(headers or {})})
    writer.write(body)


class Urls(Source):
    """One row per line of a text file; recipes name it ``web_server:Urls``."""

    name: ClassVar[str] = "urls"
    path: RootPath

    def items(self, unit: str, known: Mapping[str, str]) -> pa.Table:
        with open(self.path) as file:
            lines = file.read().split()
        return item_table(Item(key=f"{n:06d}", uri=line, size=0, version=line) for n, line in enumerate(lines))
