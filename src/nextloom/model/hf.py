"""To and from the key names of Hugging Face's Qwen2.5-VL, for the parts that are Qwen's.

The layers and the final norm carry over as they are; of `embed_tokens` and `lm_head` the text rows do. Code vectors,
connector, scale embeddings and the rows of `<boi>`, `<eoi>` and codes have no place in a Qwen checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nextloom.errors import UserError
from nextloom.model.transformer import NextFlow

PREFIXES = ("model.language_model.", "language_model.", "model.", "")
"""Where checkpoints of different ages keep the text model; the first is today's."""
VISION_START, VISION_END = 151652, 151653
"""Qwen's ids for the ends of an image, from which `<boi>` and `<eoi>` start."""


def to_hf(model: NextFlow, prefix: str = PREFIXES[0]) -> dict[str, Tensor]:
    """The Qwen part of a decoder under Hugging Face's names; views, not copies.

    Args:
        model: a decoder with whole (unsharded) parameters.
        prefix: of the text model's keys; `lm_head.weight` never has one.
    """
    state = model.state_dict()
    rows = model.config.text_vocab
    out = {f"{prefix}{name}": state[name] for name in _shared(state)}
    out[f"{prefix}embed_tokens.weight"] = state["embed_tokens.weight"][:rows]
    out["lm_head.weight"] = state["lm_head.weight"][:rows]
    return out


@torch.no_grad()
def load_hf(model: NextFlow, checkpoint: Mapping[str, Tensor]) -> None:
    """Start a decoder from a Qwen2.5-VL checkpoint.

    Text rows are copied. `<boi>` and `<eoi>` start from the ends-of-image tokens where the text vocabulary has them,
    else from the mean row; new rows of the head start from the mean text row plus N(0, 0.02), so that codes and text
    start with like mass. Keys of Qwen's vision tower are passed over.

    Raises:
        UserError: a key is missing or has another shape.
    """
    state = model.state_dict()
    rows = model.config.text_vocab
    prefix = next((p for p in PREFIXES if f"{p}norm.weight" in checkpoint), None)
    if prefix is None:
        raise UserError("no Qwen2.5-VL text model in this checkpoint: norm.weight is missing")
    for name in _shared(state):
        state[name].copy_(_fetch(checkpoint, f"{prefix}{name}", state[name].shape))
    shape = (rows, model.config.width)
    embed = _fetch(checkpoint, f"{prefix}embed_tokens.weight", shape)
    head = _fetch(checkpoint, "lm_head.weight", shape)
    known = rows > VISION_END
    state["embed_tokens.weight"][:rows] = embed
    state["embed_tokens.weight"][rows] = embed[VISION_START] if known else embed.mean(0)
    state["embed_tokens.weight"][rows + 1] = embed[VISION_END] if known else embed.mean(0)
    state["lm_head.weight"][:rows] = head
    state["lm_head.weight"][rows:] = head.mean(0) + 0.02 * torch.randn_like(state["lm_head.weight"][rows:])


def _shared(state: Mapping[str, Tensor]) -> list[str]:
    return [name for name in state if name.startswith(("layers.", "norm."))]


def _fetch(checkpoint: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in checkpoint:
        raise UserError("missing from the checkpoint", where=name, next="give all shards of a Qwen2.5-VL checkpoint")
    if checkpoint[name].shape != shape:
        raise UserError(
            f"has shape {tuple(checkpoint[name].shape)}, the model wants {tuple(shape)}",
            where=name,
            next="set width, layers, heads, mlp and text_vocab to the checkpoint's sizes",
        )
    if not checkpoint[name].is_floating_point():
        raise UserError(f"is {checkpoint[name].dtype}, not weights", where=name, next="give the checkpoint unquantised")
    return checkpoint[name]
