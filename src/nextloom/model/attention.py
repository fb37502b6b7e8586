"""Attention inside one pack, by one rule and three backends.

The rule: q sees k when doc_q == doc_k and block_k <= block_q. It is causal over text, full inside a scale, causal
across scales, and keeps packed documents apart.

    sdpa_docs    one call per document with its dense mask; the default on CPU: no work between documents
    sdpa_dense   one call with an N x N mask; small packs and tests
    flex         FlexAttention with a block-sparse mask; the GPU path, never dense; no backward on CPU

Legend: B batch (1 for a pack), H query heads, G key heads, N positions, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from nextloom.errors import UserError

Backend = Literal["sdpa_docs", "sdpa_dense", "flex"]


@dataclass(frozen=True, slots=True, eq=False)
class Visible:
    """Who sees whom in one pack, in the form that its backend wants. Build once per pack, use in every layer."""

    backend: Backend
    lengths: tuple[int, ...] = ()
    """Positions per call, for the sdpa backends."""
    masks: tuple[Tensor, ...] = ()
    """One (n, n) bool mask per call: True where row sees column."""
    blocks: BlockMask | None = None


def sees(doc_q: Tensor, block_q: Tensor, doc_k: Tensor, block_k: Tensor) -> Tensor:
    """The rule, elementwise."""
    return (doc_q == doc_k) & (block_k <= block_q)


def mask_rule(doc_N: Tensor, block_N: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The rule as FlexAttention's `mask_mod(batch, head, q, k)`."""

    def mask_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(doc_N[q], block_N[q], doc_N[k], block_N[k])

    return mask_mod


def visible(doc_N: Tensor, block_N: Tensor, lengths: Sequence[int], backend: Backend) -> Visible:
    """Prepare the rule for a pack.

    Args:
        doc_N: document numbers, int32.
        block_N: block numbers inside the document, int32.
        lengths: positions of each document in order; they add up to N.
        backend: see the module. "flex" is fastest when N is a multiple of its block of 128.
    """
    if backend == "flex":
        size = len(doc_N)
        rule = mask_rule(doc_N, block_N)
        on_gpu = doc_N.is_cuda
        blocks = create_block_mask(rule, None, None, size, size, device=doc_N.device, _compile=on_gpu)
        return Visible(backend, blocks=blocks)
    cuts = (len(doc_N),) if backend == "sdpa_dense" else tuple(size for size in lengths if size)
    parts = zip(doc_N.split(cuts), block_N.split(cuts), strict=True)
    return Visible(backend, cuts, tuple(sees(d[:, None], b[:, None], d, b) for d, b in parts))


def attend(q_BHNK: Tensor, k_BGNK: Tensor, v_BGNK: Tensor, seen: Visible) -> Tensor:
    """softmax(q k / sqrt(K)) v over what each position sees; query heads share key heads in order.

    Raises:
        UserError: the flex backend on CPU with gradients.
    """
    if seen.backend == "flex":
        if not q_BHNK.is_cuda and torch.is_grad_enabled() and q_BHNK.requires_grad:
            raise UserError(
                "FlexAttention has no backward pass on CPU", next="train on CPU with the attention backend sdpa_docs"
            )
        kernel = _compiled_flex() if q_BHNK.is_cuda else flex_attention
        return kernel(q_BHNK, k_BGNK, v_BGNK, block_mask=seen.blocks, enable_gqa=True)
    parts = zip(*(x.split(seen.lengths, dim=2) for x in (q_BHNK, k_BGNK, v_BGNK)), seen.masks, strict=True)
    return torch.cat([sdpa(q, k, v, mask) for q, k, v, mask in parts], dim=2)


def sdpa(q_BHNK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None) -> Tensor:
    """One dense attention call. On CPU in fp32 whatever the inputs: the bf16 backward there is three times slower."""
    if q_BHNK.is_cuda:
        return F.scaled_dot_product_attention(q_BHNK, k_BGSK, v_BGSK, attn_mask=mask, enable_gqa=True)
    with torch.autocast("cpu", enabled=False):
        q, k, v = q_BHNK.float(), k_BGSK.float(), v_BGSK.float()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).to(q_BHNK.dtype)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)
