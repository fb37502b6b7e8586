"""What goes to a chat model and what comes back, in the form that OpenAI's chat completions gave its name to.

A server that answers 200 with something else is not guessed at: `read_reply` says what was there instead. Counts and
names that a server leaves out are None.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is asked of a model besides the messages; all of it is identity."""

    model: str
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Request:
    """One question. `messages` is called once, in a thread, when its turn comes: pictures are not encoded before."""

    key: str
    messages: Callable[[], Messages]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; None where the server does not say."""

    text: str
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    attempts: int
    refused: bool = False
    """The server itself says that the model refused or that a filter stopped it."""


def chat_body(sampling: Sampling, messages: Messages) -> dict[str, Any]:
    """Body of a request to ``/chat/completions``."""
    return {
        "model": sampling.model,
        "messages": messages,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "stream": False,
    }


class BadReply(ValueError):
    """A reply that is no chat completion: what is wrong, and beside it how it begins."""

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail


def read_reply(data: bytes, attempts: int) -> Reply:
    """The first choice of a reply.

    Raises:
        BadReply: no JSON, or without the fields that a chat completion has; `detail` says what is there.
    """
    try:
        reply = json.loads(data)
    except ValueError:
        raise BadReply("it is no JSON", data[:100].decode("utf-8", "replace")) from None
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    if not isinstance(choices, list) or not choices:
        raise BadReply("it has no choices", data[:100].decode("utf-8", "replace"))
    message = choices[0].get("message") if isinstance(choices[0], Mapping) else None
    if not isinstance(message, Mapping):
        raise BadReply("its first choice holds no message")
    content, refusal = message.get("content"), message.get("refusal")
    if not isinstance(content, str | None) or not isinstance(refusal, str | None):
        raise BadReply("its content is no text", type(content or refusal).__name__)
    usage = reply.get("usage")
    finish = _text(choices[0].get("finish_reason"))
    return Reply(
        text=(content or refusal or "").strip(),
        model=_text(reply.get("model")),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        finish_reason=finish,
        attempts=attempts,
        refused=bool(refusal) or finish == "content_filter",
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None
