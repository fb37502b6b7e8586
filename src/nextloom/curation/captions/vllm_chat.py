"""The same questions asked of a model that vLLM (https://docs.vllm.ai) runs inside the worker.

    caption: {op: caption, model: qwen3-vl-8b, execution: {backend: vllm, model_path: models/qwen3-vl-8b, num_gpus: 1,
              workers: 8, engine: {max_model_len: 8192}}}

A pool of `workers` processes with `num_gpus` GPUs each is what every op gets; the engine is made once per
process in `setup()`, splits the model over its GPUs and batches the requests of a chunk by itself. `ray.data.llm`
of Ray 2.60 is not used: its stages start their own actors for each run of a dataset, while a step's rows must pass
through a worker that books them; and its vLLM stage drops the finish reason, without which a cut caption is not
seen. Price paid: the engine idles while a chunk is written; raise `chunk_rows` (a batch stays at 256 rows).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nextloom.curation.captions.chat_execution import ChatExecution
from nextloom.curation.captions.chat_format import Messages, Reply, Request, Sampling
from nextloom.curation.captions.engine_options import check_engine
from nextloom.errors import UserError
from nextloom.model_files import DATA_ONLY
from nextloom.op import RowFailure


class VllmChat:
    """Answers requests with an engine in this process."""

    def __init__(self, engine: Any, parameters: Any, model: str) -> None:
        """Wrap an engine.

        Args:
            engine: a ``vllm.LLM``.
            parameters: ``vllm.SamplingParams`` of every request.
            model: name that the replies carry.
        """
        self._engine, self._parameters, self._model = engine, parameters, model

    @classmethod
    def load(cls, execution: ChatExecution, sampling: Sampling) -> VllmChat:
        """Load the model.

        Raises:
            UserError: vLLM, a GPU or the model's folder is not there.
        """
        refuse_without_gpu(execution)
        import vllm  # pyrefly: ignore[missing-import]

        engine = vllm.LLM(**engine_arguments(execution, sampling))
        return cls(engine, vllm.SamplingParams(**sampling_arguments(sampling)), sampling.model)

    def ask(self, requests: Sequence[Request]) -> list[Reply | Exception]:
        """A reply, or the reason why there is none, for each request, in their order."""
        made = [_messages(request) for request in requests]
        good = [i for i, messages in enumerate(made) if not isinstance(messages, Exception)]
        out: list[Any] = list(made)
        for i, reply in zip(good, self._replies([made[i] for i in good]), strict=True):
            out[i] = reply
        return out

    def _replies(self, conversations: list[Any]) -> list[Reply | Exception]:
        """Replies of the engine; where it refuses a batch, one by one, so that one bad row costs one row."""
        if not conversations:
            return []
        try:
            outputs = self._engine.chat(conversations, self._parameters, use_tqdm=False)
        except ValueError as error:  # what vLLM raises for a request it cannot take: too long, too many pictures
            if len(conversations) > 1:
                return [self._replies([conversation])[0] for conversation in conversations]
            return [RowFailure("BadRequest", str(error), values={"attempts": 1})]
        return [self._reply(output) for output in outputs]

    def _reply(self, output: Any) -> Reply:
        first = output.outputs[0]
        return Reply(
            text=first.text.strip(),
            model=self._model,
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(first.token_ids),
            finish_reason=first.finish_reason,
            attempts=1,
        )


def engine_arguments(execution: ChatExecution, sampling: Sampling) -> dict[str, Any]:
    """Arguments of ``vllm.LLM``; those in `execution.engine` win over the defaults here, but not over what is ours."""
    gpus = int(execution.num_gpus)
    return {
        "limit_mm_per_prompt": {"image": 1},
        "seed": sampling.seed,
        **check_engine(execution.engine),
        "model": execution.model_path,
        "served_model_name": sampling.model,
        "tensor_parallel_size": gpus,
        "distributed_executor_backend": "mp" if gpus > 1 else "uni",  # the GPUs that Ray gave to this process
        "trust_remote_code": DATA_ONLY["trust_remote_code"],
        "load_format": "safetensors",
    }


def sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    """Arguments of ``vllm.SamplingParams``."""
    return {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "seed": sampling.seed}


def refuse_without_gpu(execution: ChatExecution) -> None:
    """Refuse a machine that cannot run vLLM.

    Raises:
        UserError: no vLLM, no GPU or no model folder.
    """
    elsewhere = "or serve the model elsewhere and set execution.backend to endpoint: it makes no caption stale"
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed where this worker runs",
            where="execution.backend",
            next=f"pip install 'nextloom[gpu]' on the GPU machines, {elsewhere}",
        )
    import torch

    if torch.cuda.device_count() < execution.num_gpus:
        raise UserError(
            f"vLLM is asked to use {execution.num_gpus:g} GPUs, this worker sees {torch.cuda.device_count()}",
            where="execution.num_gpus",
            next=f"use a machine with GPUs, {elsewhere}",
        )
    if not Path(execution.model_path or "").is_dir():
        raise UserError(
            f"no model folder at {execution.model_path}; nothing is downloaded at run time",
            where="execution.model_path",
            next="copy the model's files there, on every machine that runs workers",
        )


def _messages(request: Request) -> Messages | Exception:
    try:
        return request.messages()
    except Exception as error:
        return error
