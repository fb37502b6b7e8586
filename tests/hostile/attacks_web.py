"""Addresses that a list of URLs may name, however they are spelled, and servers that answer what they should not."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.attack import Attack, Outcome, patched
from hostile.tools import Strike, all_of, listener, told
from nextloom.curation.web import addresses, answer
from nextloom.curation.web import http as web
from nextloom.curation.web.addresses import Guard, PrivateAddress
from nextloom.curation.web.download import Download
from nextloom.op import Row

SPECIAL = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "161.26.0.10"),
    *("166.8.0.1", "168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192"),
    *("192.0.0.8", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.0.1", "192.175.48.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:168.63.129.16", "::ffff:0:127.0.0.1", "100::1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::127.0.0.1", "64:ff9b:1::1", "2001::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::"),
    *("2002:a9fe:a9fe::", "2620:4f:8000::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254"),
    *("fe80::1", "fec0::1", "ff02::1", "2600::5efe:7f00:1", "2600::200:5efe:a9fe:a9fe"),
)


def reaches(address: str) -> Strike:
    """A socket for the address is what a connection needs."""

    def strike(_: Path) -> Outcome:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        target = (address, 80, 0, 0) if ":" in address else (address, 80)
        try:
            Guard(())((family, socket.SOCK_STREAM, 0, "", target)).close()
        except PrivateAddress as error:
            return Outcome(False, f"error row PrivateAddress: {error}")
        return Outcome(True, "a socket was made")

    return strike


QUICK = {"timeout": 2.0, "retries": 0, "connect_timeout": 1.0, "read_timeout": 0.5}


def fetched(url: str, **fields) -> tuple[dict | None, str]:
    """What a `download` stores of one URL, or the error row."""
    op = Download(execution=QUICK, **fields)
    (value,) = op.process([Row(0, "0", {"uri": url})])
    if isinstance(value, dict):
        return value, "downloaded"
    return {**value.values, "detail": value.detail}, told(value)


def visits(host: str) -> Strike:
    """A spelling of a private address, on a server of this machine."""

    def strike(_: Path) -> Outcome:
        with listener() as (port, seen):
            _, end = fetched(f"http://{host}:{port}/a.jpg")
            return Outcome(bool(seen), end)

    return strike


SPELLINGS = (
    *("127.0.0.1", "localhost", "LOCALHOST", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "0.0.0.0"),
    *(
        "127。0。0。1",
        "127．0．0．1",
        "127｡0｡0｡1",
        "１２７.0.0.1",
        "ｌocalhost",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
    ),
    *("[0:0:0:0:0:ffff:127.0.0.1]", "[::ffff:0.0.0.0]"),
)
"""Others (127.1, 2130706433, 0177.0.0.1) are no URL for the client, and are sent nowhere, guard or not."""


@contextlib.contextmanager
def saying(*answers: bytes, endless: bytes = b"") -> Iterator[tuple[int, list[bytes]]]:
    """A server that writes prepared bytes to one connection after another, and keeps what it was sent."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            for raw in answers:
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(3)
                        requests.append(connection.recv(65536))
                        connection.sendall(raw.replace(b"PORT", str(port).encode()))
                        for _ in range(4096 if endless else 0):
                            connection.sendall(endless)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield port, requests
        server.shutdown(socket.SHUT_RDWR)  # ends an `accept` that waits
    thread.join(4)


OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: image/png\r\n"
MOST = 100_000


def downloads(
    *answers: bytes, endless: bytes = b"", stolen: Callable[[dict, list[bytes]], bool], url: str = ""
) -> Strike:
    def strike(_: Path) -> Outcome:
        with saying(*answers, endless=endless) as (port, requests):
            address = (url or "http://127.0.0.1:PORT/").replace("PORT", str(port))
            value, end = fetched(address, max_bytes=MOST, allow_private=(f"127.0.0.1:{port}",))
            return Outcome(stolen({**(value or {}), "end": end}, requests), end)

    return strike


def big(value: dict, _: list[bytes]) -> bool:
    return (value.get("size") or 0) > MOST


def shown(value: dict, _: list[bytes]) -> bool:
    return "s3cret" in json.dumps(value, default=str)


def sent_password(value: dict, requests: list[bytes]) -> bool:
    return any(b"Authorization" in raw for raw in requests) or shown(value, requests)


def trailing_taken(value: dict, _: list[bytes]) -> bool:
    return value.get("bytes") == b"small"


def lenient_unpacker(encoding: str) -> Callable[[bytes | None, int], bytes] | None:
    """As it was: what comes behind the stream's end is dropped and counted nowhere."""
    stream = zlib.decompressobj(wbits=47)
    return (lambda piece, most: b"" if piece is None else stream.decompress(piece)) if encoding else None


def no_limit(self: web.Client, limits: web.Limits, pace: web.Pace, first=web.Client.__init__) -> None:
    from dataclasses import replace

    first(self, replace(limits, max_bytes=2**40), pace)


def quoting(error: Exception, over: float | None, first=answer.named) -> answer.WebError:
    """As it was: what aiohttp says of bytes that are no HTTP quotes them."""
    found = first(error, over)
    return answer.WebError(found.kind, str(error))


def lax(self: web.Client, text: str, base=None):
    from yarl import URL

    return URL(text) if base is None else base.join(URL(text))


def quoting_status(reply, first=answer.bad_status) -> answer.WebError:
    return answer.WebError("HttpStatus", f"the server says {reply.status} {reply.reason}")


GZIP = b"Content-Encoding: gzip\r\n"
BOMB, SMALL = gzip.compress(bytes(5_000_000)), gzip.compress(b"small")


def sized(raw: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw)


ATTACKS: list[Attack] = [
    *(
        Attack(
            "addresses",
            address,
            "error row PrivateAddress",
            reaches(address),
            lambda: patched(addresses, "is_public", lambda address: True),
        )
        for address in SPECIAL
    ),
    *(
        Attack(
            "spellings",
            host,
            "error row PrivateAddress",
            visits(host),
            lambda: patched(addresses, "is_public", lambda address: True),
        )
        for host in SPELLINGS
    ),
    Attack(
        "downloads",
        "gzip that unfolds beyond max_bytes",
        "error row TooLarge",
        downloads(OK + GZIP + sized(BOMB), stolen=big),
        lambda: patched(web.Client, "__init__", no_limit),
    ),
    Attack(
        "downloads",
        "deflate that unfolds beyond max_bytes",
        "error row TooLarge",
        downloads(OK + b"Content-Encoding: deflate\r\n" + sized(zlib.compress(bytes(5_000_000))), stolen=big),
        lambda: patched(web.Client, "__init__", no_limit),
    ),
    Attack(
        "downloads",
        "gzip with bytes behind its end",
        "error row BadEncoding: bytes follow the end",
        downloads(OK + GZIP + sized(SMALL + bytes(50_000)), stolen=trailing_taken),
        lambda: patched(web, "unpacker", lenient_unpacker),
    ),
    Attack(
        "downloads",
        "gzip with bytes behind its end, beyond max_bytes",
        "error row",
        downloads(OK + GZIP + b"\r\n" + SMALL, endless=bytes(1000), stolen=trailing_taken),
        lambda: all_of(patched(web, "unpacker", lenient_unpacker), patched(web.Client, "__init__", no_limit)),
    ),
    Attack(
        "downloads",
        "a body beyond max_bytes, no length announced",
        "error row TooLarge",
        downloads(OK + b"\r\n", endless=bytes(1000), stolen=big),
        lambda: patched(web.Client, "__init__", no_limit),
    ),
    Attack(
        "downloads",
        "a body beyond max_bytes, its length announced",
        "error row TooLarge",
        downloads(OK + sized(bytes(200_000)), stolen=big),
        lambda: patched(web.Client, "__init__", no_limit),
    ),
    Attack(
        "downloads",
        "a body beyond max_bytes in chunks",
        "error row TooLarge",
        downloads(
            OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"4e20\r\n%s\r\n" % bytes(20_000) * 10 + b"0\r\n\r\n",
            stolen=big,
        ),
        lambda: patched(web.Client, "__init__", no_limit),
    ),
    Attack(
        "downloads",
        "an answer that is no HTTP, quoted in the error",
        "error row BadResponse: this is no HTTP",
        downloads(b"s3cret of a private service\r\n\r\n", stolen=shown),
        lambda: patched(web, "named", quoting),
    ),
    Attack(
        "downloads",
        "a header that is no header, quoted in the error",
        "error row BadResponse: this is no HTTP",
        downloads(b"HTTP/1.1 200 OK\r\ns3cret of a private service\r\n\r\n", stolen=shown),
        lambda: patched(web, "named", quoting),
    ),
    Attack(
        "downloads",
        "the reason of a status, quoted in the error",
        "error row HttpStatus: the server says 500",
        downloads(b"HTTP/1.1 500 s3cret\r\nContent-Length: 0\r\n\r\n", stolen=shown),
        lambda: patched(web, "bad_status", quoting_status),
    ),
    Attack(
        "passwords",
        "of a URL, sent to its server",
        "error row BadUrl: the URL holds a user name or a password",
        downloads(OK + sized(b"x"), url="http://user:s3cret@127.0.0.1:PORT/", stolen=sent_password),
        lambda: patched(web.Client, "_checked", lax),
    ),
    Attack(
        "passwords",
        "of a redirect, sent and stored as final_url",
        "error row BadUrl: the URL holds a user name or a password",
        downloads(
            b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\n"
            b"Location: http://user:s3cret@127.0.0.1:PORT/\r\n\r\n",
            OK + sized(b"x"),
            stolen=sent_password,
        ),
        lambda: patched(web.Client, "_checked", lax),
    ),
    Attack(
        "passwords",
        "of a URL that is none, in the error's words",
        "error row BadUrl",
        downloads(url="http://user:s3cret@127.0.0.1:99999/", stolen=shown),
        lambda: patched(web, "_shown", repr),
    ),
    Attack(
        "passwords",
        "of an address without a scheme, in the error's words",
        "error row BadUrl",
        downloads(url="user:s3cret@127.0.0.1/a.jpg", stolen=shown),
        lambda: patched(web, "_shown", repr),
    ),
]
