"""Annotate `caption` and `recaption`: what a vision-language model says about a picture.

    caption: {op: caption, model: qwen3-vl-8b, prompt: detailed-v1,
              execution: {endpoint: "http://127.0.0.1:8000/v1", concurrency: 64}}
    better:  {op: recaption, model: qwen3-vl-8b, execution: {endpoint: "http://127.0.0.1:8000/v1"}}

`recaption` also shows the alt text that the source brought and asks for a better one. Identity is the model's name,
the prompt (id and text), the sampling and the form of the picture (see `data_uri.py`); where and how fast it runs is
`execution` (see `chat_execution.py`), so another address makes nothing stale. What is wrong with a caption is
measured by `caption_qa` from what is stored here. Price paid: a server's arithmetic may differ between batches and
GPUs, so a caption done again can differ by words even at temperature 0; each is computed once and kept. The files
of a batch, 256 or `chunk_rows` of them, are in memory together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Protocol

import pyarrow as pa
from pydantic import BeforeValidator, Field, PrivateAttr, field_validator

from nextloom import pixels
from nextloom.curation.captions.chat import ChatClient
from nextloom.curation.captions.chat_execution import MOST_ROWS, ChatExecution
from nextloom.curation.captions.chat_format import Messages, Reply, Request, Sampling
from nextloom.curation.captions.data_uri import data_uri
from nextloom.curation.captions.prompts import ALT, PROMPTS, Prompt, named
from nextloom.curation.captions.vllm_chat import VllmChat
from nextloom.op import Annotate, Row, RowFailure, attempt


class Chat(Protocol):
    """Either backend."""

    def ask(self, requests: Sequence[Request]) -> list[Reply | Exception]: ...


class Caption(Annotate):
    """A caption of each picture, with what it cost and how it ended."""

    name: ClassVar[str] = "caption"
    code_version: ClassVar[int] = 1
    needs: ClassVar = "bytes"
    batch: ClassVar[int] = MOST_ROWS
    apart: ClassVar[bool] = True

    model: str = Field(min_length=1)
    """Name under which the server knows the model."""
    prompt: Annotated[Prompt, BeforeValidator(named)] = PROMPTS["detailed-v1"]
    """Id of a built-in prompt, or ``{id, system, user}`` of one's own."""
    max_tokens: int = Field(512, gt=0)
    """Longest caption, in tokens of the model."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest word; larger varies more."""
    seed: int = Field(0, ge=0)
    """Sent with each request; counts at temperatures above 0, with servers that heed it."""
    max_side: int = Field(1536, ge=16)
    """Pixels of the longer side that are sent; larger pictures are brought down."""
    max_bytes: int = Field(4 * 2**20, gt=0)
    """Original files up to this size are sent as they are, others as JPEG."""
    execution: ChatExecution = ChatExecution()

    _chat: Chat | None = PrivateAttr(None)

    @field_validator("prompt")
    @classmethod
    def _fits(cls, prompt: Prompt) -> Prompt:
        if ALT in prompt.system + prompt.user:
            raise ValueError(f"{prompt.id!r} shows an alt text; that is for recaption")
        return prompt

    def identity(self) -> dict[str, Any]:
        """As in `Op`, with the prompt as its id and the digest of its text."""
        return {**super().identity(), "prompt": self.prompt.identity()}

    def version(self) -> str:
        return f"{self.code_version}+{pixels.DECODE_VERSION}"

    def check(self, known: Any, where: str) -> None:
        """Refuse an execution that names no place to run."""
        self.execution.check(where)

    def columns(self) -> pa.Schema:
        """What came back, and what was asked.

        text: the caption, stripped of blanks at both ends.
        model: what the server calls the model that answered.
        prompt, instruction: id and text of the prompt; shown: the alt text it showed, null for `caption`.
        prompt_tokens, completion_tokens: as the server counts them; null where it does not.
        finish_reason: such as stop, length or content_filter; null where the server does not say.
        refused: the server itself marks the answer as a refusal.
        attempts: requests made for this row, kept beside an error too.
        """
        texts = [(name, pa.string()) for name in ("text", "model", "prompt", "instruction", "shown", "finish_reason")]
        counts = [(name, pa.int32()) for name in ("prompt_tokens", "completion_tokens", "attempts")]
        return pa.schema([*texts, *counts, ("refused", pa.bool_())])

    def sampling(self) -> Sampling:
        """What is asked of the model besides the messages."""
        return Sampling(self.model, self.max_tokens, self.temperature, self.seed)

    def setup(self) -> None:
        """Reach the server, or load the model.

        Raises:
            UserError: nobody answers at the address; no API key; no vLLM, GPU or model folder.
        """
        if self.execution.backend == "vllm":
            self._chat = VllmChat.load(self.execution, self.sampling())
            return
        client = ChatClient(self.execution, self.sampling())
        client.probe()
        self._chat = client

    def shown(self, row: Row) -> str | None:
        """The alt text that the model sees; None for a plain caption.

        Raises:
            ValueError: there should be one.
        """
        return None

    def messages(self, row: Row) -> Messages:
        """The conversation about one picture, the same for every backend.

        Raises:
            PictureError: the bytes give no pixels.
        """
        assert row.raw is not None
        uri = data_uri(row.raw, row.source.get("frame"), max_side=self.max_side, max_bytes=self.max_bytes)
        text = self.prompt.user.replace(ALT, self.shown(row) or "")
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]
        system = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
        return [*system, {"role": "user", "content": content}]

    def process(self, rows: Sequence[Row]) -> list[dict[str, Any] | Exception]:
        """A caption or an error for each row, in order, all of them asked at once."""
        assert self._chat is not None
        shown = [attempt(self.shown, row) for row in rows]
        asked = [i for i, text in enumerate(shown) if not isinstance(text, Exception)]
        requests = [Request(rows[i].key, partial(self.messages, rows[i])) for i in asked]
        out: list[Any] = list(shown)
        for i, reply in zip(asked, self._chat.ask(requests), strict=True):
            out[i] = self._values(reply, shown[i])
        return out

    def _values(self, reply: Reply | Exception, shown: Any) -> dict[str, Any] | Exception:
        asked = {"prompt": self.prompt.id, "instruction": self.prompt.instruction(), "shown": shown}
        if isinstance(reply, RowFailure):
            reply.values.update(asked)
        if isinstance(reply, Exception):
            return reply
        values = {
            "text": reply.text,
            "model": reply.model,
            **asked,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "finish_reason": reply.finish_reason,
            "attempts": reply.attempts,
            "refused": reply.refused,
        }
        if not reply.text:
            said = f"no text (finish_reason {reply.finish_reason}, {reply.completion_tokens} tokens)"
            return RowFailure("EmptyReply", said, values={**values, "text": None})
        return values


class Recaption(Caption):
    """A better caption, written with the alt text in view."""

    name: ClassVar[str] = "recaption"

    prompt: Annotated[Prompt, BeforeValidator(named)] = PROMPTS["rewrite-v1"]
    """Id of a built-in prompt, or ``{id, system, user}`` of one's own with ``{alt}`` in `user`."""
    column: str = "caption"
    """The source's column that holds the alt text."""
    max_alt_chars: int = Field(4000, gt=0)
    """A longer alt text makes an error row: a part of it would pass for the whole."""

    @field_validator("prompt")
    @classmethod
    def _fits(cls, prompt: Prompt) -> Prompt:
        if ALT not in prompt.user:
            raise ValueError(f"{prompt.id!r} has no {ALT} in its user text, where the alt text is shown")
        return prompt

    def shown(self, row: Row) -> str:
        """The alt text.

        Raises:
            RowFailure: ``NoAltText`` or ``LongAltText``.
        """
        text = (row.source.get(self.column) or "").strip()
        if not text:
            message = f"no alt text in source column {self.column!r}; a select on it can leave such rows out"
            raise RowFailure("NoAltText", message)
        if len(text) > self.max_alt_chars:
            message = f"the alt text is longer than max_alt_chars, {self.max_alt_chars:,}"
            raise RowFailure("LongAltText", message, detail=f"{len(text):,} characters")
        return text
