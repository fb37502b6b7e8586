"""A chat endpoint on this machine that misbehaves on purpose, for tests of captions.

It decodes the picture of each request and answers by its grey level: picture number n is grey n. So an answer shows
which picture it was about, and a test says `stub.behave[7] = "fail"`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import threading
from collections import Counter
from typing import Any

from aiohttp import web
from PIL import Image

WINDOW = "a window with white frames, a wooden table, and some books on the floor in the soft light of the morning."
LOOP = "The picture shows " + "a red car on the road and " * 12
TRUNCATED = "The picture shows a long street with houses on both sides and a"
REFUSAL = "I'm sorry, but I can't help with describing this picture."
FRENCH = "Une femme est assise dans le jardin avec un chien et des fleurs sur la table devant la maison."


def grey_png(number: int, side: int = 8) -> bytes:
    """Picture number `number`."""
    sink = io.BytesIO()
    Image.new("L", (side, side), number).save(sink, "PNG")
    return sink.getvalue()


def caption_of(number: int) -> str:
    """What the stub says of that picture."""
    return f"This is picture number {number}: the room has {WINDOW}"


class StubEndpoint:
    """`with StubEndpoint() as stub:` serves `stub.url` from a thread; `behave` maps a picture's number to a fault."""

    def __init__(self, *, gate: int = 0) -> None:
        self.behave: dict[int, str] = {}
        self.gate = gate
        """Requests are held until so many are in flight at once, and then a little longer for one more to come."""
        self.asked: Counter[int] = Counter()
        """Requests per picture."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.peak = 0
        """Most requests in flight at once."""
        self.order: list[int] = []
        """Numbers of the pictures in the order in which they were answered."""
        self._flying = 0
        self._ready = threading.Event()

    def __enter__(self) -> StubEndpoint:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop, self._open = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self._flying += 1
        self.peak = max(self.peak, self._flying)
        try:
            body = await request.json()
            self.bodies.append(body)
            self.keys.add(request.headers.get("Authorization"))
            number = picture_number(body)
            self.asked[number] += 1
            await self._pass_gate()
            response = await self._react(request, body, number)
            self.order.append(number)
            return response
        finally:
            self._flying -= 1

    async def _pass_gate(self) -> None:
        if not self.gate:
            return
        if self.peak >= self.gate:
            self._open.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._open.wait(), 10)
        await asyncio.sleep(0.2)

    async def _react(self, request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        how, time = self.behave.get(number, "answer"), self.asked[number]
        if how == "fail" or (how == "fail twice" and time <= 2):
            return web.Response(status=500, text="out of memory")
        if how == "busy once" and time == 1:
            return web.Response(status=429, headers={"Retry-After": "1"}, text="slow down")
        if how == "busy for an hour":
            return web.Response(status=429, headers={"Retry-After": "3600"}, text="come back later")
        if how == "bad request":
            return web.Response(status=400, text=f"unknown field; your key is {request.headers.get('Authorization')}")
        if how == "elsewhere":
            return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"})
        if how == "drop":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if how == "hang":
            await asyncio.sleep(30)
        if how == "endless":
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b" " * 2**20)
        if how == "late":
            await asyncio.sleep(0.3)
        if how == "no json":
            return web.Response(text="<html>gateway</html>")
        if how == "no choices":
            return web.json_response({"choices": []})
        if how == "no message":
            return web.json_response({"choices": [{"text": "an old completion"}]})
        return web.json_response(completion(how, body, number))


def completion(how: str, body: dict[str, Any], number: int) -> dict[str, Any]:
    """A well-formed reply, whatever it says."""
    text, finish, more = caption_of(number), "stop", {}
    if how in ("refuse", "loop", "french"):
        text = {"refuse": REFUSAL, "loop": LOOP, "french": FRENCH}[how]
    if how == "truncate":
        text, finish = TRUNCATED, "length"
    if how == "copy":
        text = instruction(body)
    if how == "blank":
        text = "  \n"
    if how == "filter":
        text, finish, more = "", "content_filter", {"refusal": "This picture cannot be described by the model."}
    message = {"role": "assistant", "content": text or None, **more}
    usage = {"prompt_tokens": 100 + number, "completion_tokens": len(text.split())}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"model": f"{body['model']}@stub", "choices": [choice], "usage": usage}


def picture_of(body: dict[str, Any]) -> tuple[str, bytes]:
    """Media type and bytes of the picture in a request."""
    (url,) = [p["image_url"]["url"] for p in body["messages"][-1]["content"] if p["type"] == "image_url"]
    kind, _, data = url.partition(";base64,")
    return kind.removeprefix("data:"), base64.b64decode(data)


def picture_number(body: dict[str, Any]) -> int:
    """The grey level of its picture."""
    value = Image.open(io.BytesIO(picture_of(body)[1])).convert("L").getpixel((0, 0))
    assert isinstance(value, int)
    return value


def instruction(body: dict[str, Any]) -> str:
    """The text beside its picture."""
    (text,) = [p["text"] for p in body["messages"][-1]["content"] if p["type"] == "text"]
    return text
