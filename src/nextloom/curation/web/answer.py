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
    """Why a GET gave no bytes; `transient`: trying again could help.

    Neither `message`, the same for all rows of a fault, nor `detail` holds bytes of a body or a password.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        detail: str | None = None,
        *,
        transient: bool = False,
        wait: float = 0.0,
        busy: bool = False,
    ):
        super().__init__(message)
        self.kind, self.detail, self.transient = kind, detail, transient
        self.wait, self.busy = wait, busy
        """Seconds that the server asks to wait; whether all rows should leave its host alone."""


def bad_status(answer: ClientResponse) -> WebError:
    status = answer.status
    again = status in (408, 425, 429) or status >= 500
    wait = retry_after(answer.headers.get("Retry-After")) if again else 0.0
    asked = f"it asks to wait {wait:,.0f} s" if wait else None
    return WebError(
        "HttpStatus", f"the server says {status}", asked, transient=again, wait=wait, busy=status in (429, 503)
    )


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
    """A function (piece, most) -> at most so many bytes; called with None at the end. None: nothing to undo.

    Bytes behind the end of the stream are refused: nobody would see them, and they could go on for ever.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise WebError("BadEncoding", "a Content-Encoding that was not asked for and is not read", repr(encoding[:50]))
    stream = zlib.decompressobj(wbits=47)

    def unpack(piece: bytes | None, most: int) -> bytes:
        if piece is None:
            if not stream.eof:
                raise WebError("BadEncoding", f"the {encoding} stream is cut off", transient=True)
            return b""
        try:
            out = stream.decompress(piece, most)
        except zlib.error as error:
            raise WebError("BadEncoding", f"no valid {encoding}", str(error)) from None
        if stream.unused_data:
            raise WebError("BadEncoding", f"bytes follow the end of the {encoding} stream")
        return out

    return unpack


def named(error: Exception, over: float | None) -> WebError:
    """What went wrong with a connection, in our words. `over`: the row's time-out, when that has passed."""
    import aiohttp

    cause: Any = getattr(error, "os_error", None)
    if isinstance(error, TimeoutError):
        if over is not None:
            return WebError("Timeout", "not done within timeout", f"{over:g} s", transient=True)
        connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
        what = "no connection within connect_timeout" if connecting else "the server was silent for read_timeout"
        return WebError("Timeout", what, transient=True)
    if isinstance(cause, PrivateAddress):
        return WebError("PrivateAddress", f"{cause}; allow_private names exceptions")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return WebError(
            "NoSuchHost", "no address for this host", str(cause), transient=cause.errno not in _NO_SUCH_HOST
        )
    if isinstance(error, aiohttp.ClientSSLError):
        return WebError("BadCertificate", "its certificate is not accepted", str(error))
    if isinstance(error, ValueError):
        return WebError("BadUrl", "no valid URL")
    if isinstance(error, aiohttp.ClientResponseError):
        return WebError("BadResponse", "this is no HTTP")  # aiohttp's words quote what came
    if isinstance(error, aiohttp.ClientError | OSError):
        return WebError(
            "ConnectError", "no connection, or one that broke", str(error) or type(error).__name__, transient=True
        )
    return WebError(type(error).__name__, "an unexpected error")
