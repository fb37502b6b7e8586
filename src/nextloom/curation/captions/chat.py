"""Client of OpenAI-compatible chat endpoints: many requests in flight, bounded in number, retries and time.

    requests of one batch -> at most `concurrency` in flight -> a reply or an exception for each, in order

Tried again: 408, 429 and 5xx, connections that fail or break, requests that take too long. The wait
doubles from `backoff` up to 60 s, spread by a hash of the row's key, and is at least what Retry-After asks for. A
row ends with its `max_attempts` or `max_seconds`, whichever comes first; its error is then transient. Any other
status, and a reply that cannot be read, fails at once. A row that waits keeps its place among those in flight: an
endpoint that asks for rest gets fewer requests, not those of other rows.

An address that cannot be reached when a worker starts stops the step (`probe`); one that dies later costs each row
its attempts, and `max_error_rate` bounds how many. Price paid: the last requests of a batch finish with free places
beside them, since a chunk of rows is written before the next begins; more rows per chunk, or two workers, fill them.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextloom.curation.captions.chat_execution import ChatExecution
from nextloom.curation.captions.chat_format import BadReply, Reply, Request, Sampling, chat_body, read_reply
from nextloom.errors import UserError
from nextloom.hashing import uniform
from nextloom.op import RowFailure

LONGEST_WAIT = 60.0
LONGEST_REPLY = 4 * 2**20
AGAIN = (408, 429)


class ChatError(RowFailure):
    """A request without a usable answer; `attempts` says how many were made."""

    def __init__(self, kind: str, message: str, detail: str = "", *, transient: bool, attempts: int) -> None:
        super().__init__(kind, message, detail=detail or None, transient=transient, values={"attempts": attempts})


@dataclass(frozen=True, slots=True)
class _Trouble:
    """One failed request."""

    kind: str
    message: str
    again: bool
    rest: float = 0.0
    """Seconds that the server asks to wait."""
    detail: str = ""
    """What the server or the library says, which may differ from one request to the next."""


class ChatClient:
    """Sends requests to one endpoint."""

    def __init__(self, execution: ChatExecution, sampling: Sampling) -> None:
        """Read the key.

        Raises:
            UserError: the environment variable that should hold it is empty.
        """
        self._how, self._sampling, self._key = execution, sampling, ""
        if execution.api_key_env:
            self._key = os.environ.get(execution.api_key_env, "").strip()
            if not self._key:
                raise UserError(
                    f"the environment variable {execution.api_key_env} is not set where the workers run",
                    where="execution.api_key_env",
                    next=f"export {execution.api_key_env}=... before Ray starts, then run again",
                )

    def probe(self) -> None:
        """See that a server is there: any answer to GET /models will do.

        Raises:
            UserError: no connection within `max_attempts` and `max_seconds`.
        """
        trouble = asyncio.run(self._probe())
        if trouble:
            why = f"{trouble.message}: {trouble.detail}".rstrip(": ")
            raise UserError(
                f"cannot reach {self._how.endpoint}: {why}; no row was touched",
                where="execution.endpoint",
                next="start the server, or --set steps.NAME.execution.endpoint=http://...: it makes no caption stale",
            )

    def ask(self, requests: Sequence[Request]) -> list[Reply | Exception]:
        """A reply, or the reason why there is none, for each request, in their order."""
        return asyncio.run(self._ask(requests))

    async def _probe(self) -> _Trouble | None:
        start = time.monotonic()
        async with self._session() as session:
            for attempt in itertools.count(1):
                trouble = await self._send(session, "GET", "models", None, start)
                if not isinstance(trouble, _Trouble) or trouble.kind == "HttpStatus":
                    return None
                wait = self._wait("probe", attempt, 0)
                if attempt >= self._how.max_attempts or time.monotonic() + wait - start >= self._how.max_seconds:
                    return trouble
                await asyncio.sleep(wait)
        raise AssertionError

    async def _ask(self, requests: Sequence[Request]) -> list[Reply | Exception]:
        places = asyncio.Semaphore(self._how.concurrency)
        async with self._session() as session:

            async def one(request: Request) -> Reply | Exception:
                async with places:
                    try:
                        return await self._answer(session, request)
                    except Exception as error:
                        return error

            return await asyncio.gather(*map(one, requests))

    def _session(self) -> Any:
        import aiohttp

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        connector = aiohttp.TCPConnector(limit=0)  # the semaphore is the limit
        return aiohttp.ClientSession(headers=headers, connector=connector)

    async def _answer(self, session: Any, request: Request) -> Reply:
        start = time.monotonic()
        body = await asyncio.to_thread(lambda: json.dumps(chat_body(self._sampling, request.messages())).encode())
        for attempt in itertools.count(1):
            got = await self._send(session, "POST", "chat/completions", body, start)
            if not isinstance(got, _Trouble):
                try:
                    return read_reply(got, attempt)
                except BadReply as error:
                    problem, more = f"the reply cannot be read: {error}", self._clean(error.detail or "")
                    raise ChatError("BadReply", problem, more, transient=False, attempts=attempt) from None
            if not got.again:
                raise ChatError(got.kind, got.message, got.detail, transient=False, attempts=attempt)
            wait, left = self._wait(request.key, attempt, got.rest), self._how.max_seconds - (time.monotonic() - start)
            if attempt >= self._how.max_attempts or wait >= left:
                why = f"after {attempt} attempts" if attempt >= self._how.max_attempts else "out of time"
                raise ChatError(got.kind, f"{got.message} ({why})", got.detail, transient=True, attempts=attempt)
            await asyncio.sleep(wait)
        raise AssertionError

    async def _send(self, session: Any, method: str, path: str, body: bytes | None, start: float) -> bytes | _Trouble:
        """Body of a 200 reply, or what went wrong."""
        import aiohttp

        seconds = min(self._how.timeout, max(0.05, self._how.max_seconds - (time.monotonic() - start)))
        try:
            async with session.request(
                method,
                f"{self._how.endpoint}/{path}",
                data=body,
                headers={"Content-Type": "application/json"} if body else None,
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,  # a key goes nowhere but to the address that was named
            ) as response:
                data = await _read(response)
                if response.status == 200:
                    return data
                again = response.status in AGAIN or response.status >= 500
                said = self._clean(data[:300].decode("utf-8", "replace"))
                message = f"{response.status} {self._clean(response.reason or '')}".strip()
                return _Trouble("HttpStatus", message, again, rest_of(response.headers, time.time()), said)
        except TimeoutError:
            return _Trouble("Timeout", "no reply in time", True, detail=f"{seconds:g} s")
        except _TooLong:
            return _Trouble("BadReply", f"the reply is longer than {LONGEST_REPLY:,} bytes", False)
        except (aiohttp.ClientError, OSError) as error:
            return _Trouble("ConnectionError", type(error).__name__, True, detail=self._clean(str(error)))

    def _wait(self, key: str, attempt: int, rest: float) -> float:
        """Seconds before the next request: 0.5 to 1.5 of the doubled back-off, or what the server asks for."""
        spread = 0.5 + float(uniform(np.array([attempt]), "chat wait", key)[0])
        return max(rest, min(LONGEST_WAIT, self._how.backoff * 2.0 ** (attempt - 1)) * spread)

    def _clean(self, text: str) -> str:
        """A server's words without the key, which some repeat."""
        return " ".join((text.replace(self._key, "***") if self._key else text).split())


class _TooLong(Exception):
    """A reply beyond `LONGEST_REPLY`."""


async def _read(response: Any) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_chunked(2**16):
        size += len(part)
        if size > LONGEST_REPLY:
            raise _TooLong
        parts.append(part)
    return b"".join(parts)


def rest_of(headers: Mapping[str, str], now: float) -> float:
    """Seconds that a Retry-After header asks to wait, as a number or a date; 0 without one that can be read.

    Args:
        headers: of the response.
        now: seconds since the epoch.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    return 0.0
