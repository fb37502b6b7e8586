"""What a recipe may say to vLLM's engine: sizes, precision and switches.

Many of its arguments import a class by name, fetch a model, or read a file at a place of their own; some decide
whether a folder's Python code is run. A captioner needs none of these, so what is allowed is listed and the rest is
refused, whatever a later vLLM calls it. Trade-off: a new harmless option has to be added here.
"""

from __future__ import annotations

import re
from typing import Any

ALLOWED = frozenset(
    (
        "async_scheduling",
        "block_size",
        "cpu_offload_gb",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "disable_mm_preprocessor_cache",
        "dtype",
        "enable_chunked_prefill",
        "enable_expert_parallel",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_dtype",
        "kv_cache_memory_bytes",
        "limit_mm_per_prompt",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_seq_len_to_capture",
        "mm_processor_cache_gb",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "quantization",
        "seed",
        "skip_mm_profiling",
        "swap_space",
    )
)
RUNS_OR_FETCHES = frozenset(
    (
        "additional_config",
        "allowed_local_media_path",
        "allowed_media_domains",
        "code_revision",
        "compilation_config",
        "config_format",
        "distributed_executor_backend",
        "download_dir",
        "ec_transfer_config",
        "generation_config",
        "guided_decoding_backend",
        "hf_config_path",
        "hf_overrides",
        "hf_token",
        "io_processor_plugin",
        "kv_events_config",
        "kv_transfer_config",
        "load_format",
        "logits_processors",
        "lora_modules",
        "mm_processor_kwargs",
        "model",
        "model_class_overrides",
        "model_impl",
        "model_loader_extra_config",
        "override_generation_config",
        "profiler_config",
        "reasoning_parser_plugin",
        "revision",
        "scheduler_cls",
        "speculative_config",
        "structured_outputs_config",
        "tokenizer",
        "tokenizer_mode",
        "tokenizer_revision",
        "tool_parser_plugin",
        "trust_remote_code",
        "worker_cls",
        "worker_extension_cls",
    )
)
"""Known ones that import code by name, run a folder's, fetch, or open files at places of their own."""
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


def check_engine(options: dict[str, Any]) -> dict[str, Any]:
    """The options, all of them harmless.

    Raises:
        ValueError: names one that is not, or whose value is more than a number, a switch or a word.
    """
    for name, value in options.items():
        if name in RUNS_OR_FETCHES:
            raise ValueError(f"{name} may run code, fetch or read files elsewhere; a recipe cannot set it")
        if name not in ALLOWED:
            raise ValueError(f"{name} is not known to be harmless; a recipe may set: {', '.join(sorted(ALLOWED))}")
        values = value.items() if isinstance(value, dict) and name == "limit_mm_per_prompt" else [("", value)]
        for key, each in values:
            if not _plain(key or "x") or not _plain(each):
                raise ValueError(f"{name} takes a number, true, false or a word, not {str(each)[:60]!r}")
    return options


def _plain(value: Any) -> bool:
    return (
        value is None or isinstance(value, bool | int | float) or bool(isinstance(value, str) and WORD.fullmatch(value))
    )
