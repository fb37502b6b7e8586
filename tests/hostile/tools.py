"""What the attacks on reads share: contexts, a source read as a worker reads it, a server that sees requests."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.attack import Outcome
from nextloom.content import Content
from nextloom.curation.sources.source import Source
from nextloom.errors import UserError
from nextloom.op import error_value

Strike = Callable[[Path], Outcome]
Context = contextlib.AbstractContextManager


def all_of(*contexts: Context) -> Context:
    stack = contextlib.ExitStack()
    for context in contexts:
        stack.enter_context(context)
    return stack


def told(error: BaseException) -> str:
    if isinstance(error, UserError):
        return f"refused: {error.what}"
    value = error_value("fetch", error)
    return f"error row {value['type']}: {value['message']}"


def listed(source: Source) -> list[dict]:
    units = source.units()
    return [row for unit in units for row in source.items(unit, {}).to_pylist()]


def read(source: Source, number: int = 0) -> bytes:
    """Bytes of one row, as a worker reads them."""
    return Content(source.door()).fetch(listed(source)[number])


@contextlib.contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server on this machine, and the first line of each request it sees."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path}")
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        server.server_close()
