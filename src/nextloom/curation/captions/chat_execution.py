"""How a chat model is asked: where it runs, how many requests at once, how long and how often a row may try.

Nothing here is identity: the same model behind another address, or in another process, makes no caption stale.
Price paid: that two addresses serve the same model under one name is the user's word; the `model` column keeps what
each server said of itself.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from nextloom.config import RootPath
from nextloom.curation.captions.engine_options import check_engine
from nextloom.errors import UserError
from nextloom.op import Execution

MOST_ROWS = 256
"""Rows of one batch: more requests than that are never in flight."""


class ChatExecution(Execution):
    """Where a chat model runs and how fast it is asked; none of it is identity."""

    workers: int | None = Field(1, gt=0)
    """Worker processes, each with `concurrency` requests in flight; with vLLM, each with `num_gpus` GPUs."""
    row_seconds: float = Field(7200.0, gt=0)
    """As in every op, for a batch of rows; a row has its own `max_seconds`, which begins when it has a place."""
    row_memory: float = Field(16.0, gt=0)
    """As in every op, for a batch of rows."""
    max_error_rate: float = Field(0.5, ge=0, le=1)
    """As in every op, but half by default: what is paid for should not run on when the endpoint is gone."""
    backend: Literal["endpoint", "vllm"] = "endpoint"
    """Ask a server, or load the model with vLLM in the workers themselves."""
    endpoint: str | None = None
    """Address up to the version, such as ``http://127.0.0.1:8000/v1``."""
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable with the API key, read where the workers run; the key is stored nowhere."""
    concurrency: int = Field(32, gt=0, le=MOST_ROWS)
    """Requests in flight; not more than `chunk_rows` either."""
    timeout: float = Field(120.0, gt=0)
    """Seconds for one request."""
    max_attempts: int = Field(6, gt=0)
    """Requests per row at most."""
    max_seconds: float = Field(600.0, gt=0)
    """Seconds per row at most, waits included."""
    backoff: float = Field(1.0, ge=0)
    """Seconds before the second request; doubles from one to the next."""
    model_path: RootPath | None = None
    """Folder with the model's files, for vLLM; `model` stays the name under which its captions are known."""
    engine: dict[str, Any] = {}
    """More arguments of vLLM's engine, such as ``max_model_len``: sizes, precision and switches, nothing that runs
    code, fetches or opens files (`engine_options.py` lists both)."""

    @field_validator("engine")
    @classmethod
    def _harmless(cls, engine: dict[str, Any]) -> dict[str, Any]:
        return check_engine(engine)

    @field_validator("endpoint")
    @classmethod
    def _address(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"no address: {endpoint!r}; it begins with http:// or https://")
        if parts.username or parts.password or parts.query:
            raise ValueError("an address carries no password, key or query: use api_key_env for the key")
        if parts.path.rstrip("/").endswith("/completions"):
            raise ValueError("leave out /chat/completions: the address ends with the version, such as /v1")
        return endpoint.rstrip("/")

    def check(self, where: str) -> None:
        """Refuse an execution that names no place to run.

        Args:
            where: config path of the step.

        Raises:
            UserError: no endpoint; or, for vLLM, no folder or no whole GPU.
        """
        where = f"{where}.execution"
        if self.backend == "endpoint":
            if not self.endpoint:
                raise UserError(
                    "no endpoint: captions come from a chat model that a server runs",
                    where=f"{where}.endpoint",
                    next=f"--set {where}.endpoint=http://127.0.0.1:8000/v1",
                )
            return
        if not self.model_path:
            raise UserError(
                "vLLM needs the folder with the model's files; nothing is downloaded at run time",
                where=f"{where}.model_path",
                next=f"--set {where}.model_path=models/...",
            )
        if self.num_gpus < 1 or self.num_gpus % 1:
            raise UserError(
                f"vLLM runs on whole GPUs, num_gpus is {self.num_gpus:g}",
                where=f"{where}.num_gpus",
                next=f"--set {where}.num_gpus=1",
            )
