"""What a web server's answer means: its errors in our words, the wait it asks for, its compression.

Types of error: BadCertificate, BadEncoding, BadResponse, BadUrl, ConnectError, Disallowed, HttpStatus, NoSuchHost,
PrivateAddress, Timeout, TooLarge, TooManyRedirects, WrongLength. Those that trying again could mend are transient.
"""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from nextloom.curation.web.addresses import PrivateAddress

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_NO_SUCH_HOST = tuple(getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name))


class WebError(Exception):
    """Why a GET gave no bytes; `transient`: trying again could help."""

    def __init__(self, kind: str, message: str, *, transient: bool = False, wait: float = 0.0, busy: bool = False):
        super().__init__(message)
        self.kind, self.transient = kind, transient
        self.wait, self.busy = wait, busy
        """Seconds that the server asks to wait; whether all rows should leave its host alone."""


def bad_status(answer: ClientResponse) -> WebError:
    status = answer.status
    again = status in (408, 425, 429) or status >= 500
    wait = retry_after(answer.headers.get("Retry-After")) if again else 0.0
    asked = f"; it asks to wait {wait:,.0f} s" if wait else ""
    message = f"the server says {status} {(answer.reason or '')[:100]}".rstrip() + asked
    return WebError("HttpStatus", message, transient=again, wait=wait, busy=status in (429, 503))


def retry_after(value: str | None) -> float:
    """Seconds from now, of a number or a date; 0 where it is neither."""
    try:
        if value is None or value.strip().isdecimal():
            return float(value or 0)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def robots(values: list[str], agent: str) -> set[str]:
    """Words of X-Robots-Tag headers that are meant for everyone or for `agent`."""
    words = set()
    product = agent.partition("/")[0].partition(" ")[0].lower()
    for value in values:
        name, colon, rest = value.lower().partition(":")
        if colon and "," not in name and not name.strip().startswith(("max-", "unavailable_after")):
            if name.strip() != product:
                continue
            value = rest
        words |= {word.strip().lower() for word in value.split(",")}
    return words


def unpacker(encoding: str) -> Callable[[bytes | None, int], bytes] | None:
    """A function (piece, most) -> at most so many bytes; called with None at the end. None: nothing to undo."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise WebError("BadEncoding", f"Content-Encoding {encoding[:50]!r} was not asked for and is not read")
    stream = zlib.decompressobj(wbits=47)

    def unpack(piece: bytes | None, most: int) -> bytes:
        if piece is None:
            if not stream.eof:
                raise WebError("BadEncoding", f"the {encoding} stream is cut off", transient=True)
            return b""
        try:
            return stream.decompress(piece, most)
        except zlib.error as error:
            raise WebError("BadEncoding", f"no valid {encoding}: {error}") from None

    return unpack


def named(error: Exception, over: float | None) -> WebError:
    """What went wrong with a connection, in our words. `over`: the row's time-out, when that has passed."""
    import aiohttp

    cause: Any = getattr(error, "os_error", None)
    if isinstance(error, TimeoutError):
        if over is not None:
            return WebError("Timeout", f"not done after {over:g} s", transient=True)
        connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
        what = "no connection within connect_timeout" if connecting else "the server was silent for read_timeout"
        return WebError("Timeout", what, transient=True)
    if isinstance(cause, PrivateAddress):
        return WebError("PrivateAddress", f"{cause}; allow_private names exceptions")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return WebError("NoSuchHost", str(cause), transient=cause.errno not in _NO_SUCH_HOST)
    if isinstance(error, aiohttp.ClientSSLError):
        return WebError("BadCertificate", str(error))
    if isinstance(error, ValueError):
        return WebError("BadUrl", str(error))
    if isinstance(error, aiohttp.ClientResponseError):
        return WebError("BadResponse", f"this is no HTTP: {error.message.partition(chr(10))[0]}"[:300])
    if isinstance(error, aiohttp.ClientError | OSError):
        return WebError("ConnectError", str(error) or type(error).__name__, transient=True)
    return WebError(type(error).__name__, str(error))
