"""Cross entropy of the supervised rows, without ever holding more than a set number of logits.

With 184,960 ids the logits of a pack would be the largest tensor of a step. `F.linear_cross_entropy` walks the rows
in chunks and recomputes them in backward. Its automatic chunk size follows vocab / width and is far too small here
(18 times slower), so the size is explicit. A pack whose logits fit at once, as at toy vocabularies, is not chunked:
nothing is recomputed, and on CPU the head runs in bf16 under autocast, which the chunked op does not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions

HELD_LOGITS = 48 * 2**20
"""Logits held at a time: 192 MB in fp32, 272 rows of the real vocabulary."""


class Losses(NamedTuple):
    """What one pack contributes to the loss; S supervised rows, in the order of the layout.

    A tuple, because wrappers that shard a module look for its output tensors in tuples.
    """

    rows: Tensor
    """(S,) fp32 cross entropy of each row in nats, without weights; minus it is the log-probability of the target."""
    total: Tensor
    """() sum of weight * row. The loss of a step is the sum of totals over the sum of `supervised`, both global."""
    supervised: int
    """S; the scale weights of an image add up to its number of codes, so this is also the sum of the weights."""
    scale_sums: Tensor
    """(max_scales + 1,) sum of `rows` by scale of the target, detached; entry 0 is text."""
    scale_counts: Tensor
    """(max_scales + 1,) number of rows by scale of the target."""


def cross_entropy(
    hidden_ND: Tensor,
    head_VD: Tensor,
    rows_S: Tensor,
    targets_S: Tensor,
    weights_S: Tensor,
    scale_S: Tensor,
    max_scales: int,
    held: int = HELD_LOGITS,
) -> Losses:
    """Losses of the supervised rows of a pack.

    Args:
        hidden_ND: normalised output of the decoder.
        head_VD: rows of the head.
        rows_S: supervised positions; only these meet the head.
        targets_S: id that each of them predicts.
        weights_S: loss weights, fp32.
        scale_S: scale of the target, 0 for text.
        max_scales: size of the per-scale sums.
        held: logits held at a time.
    """
    hidden_SD, device = hidden_ND.index_select(0, rows_S), hidden_ND.device.type
    chunk = max(1, held // len(head_VD))
    if len(rows_S) <= chunk:
        losses_S = F.cross_entropy(F.linear(hidden_SD, head_VD).float(), targets_S, reduction="none")
    else:
        if torch.is_autocast_enabled(device):  # the chunked op is unknown to autocast
            hidden_SD = hidden_SD.to(torch.get_autocast_dtype(device))
        options = LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=None)
        losses_S = F.linear_cross_entropy(
            hidden_SD, head_VD.to(hidden_SD.dtype), targets_S, reduction="none", options=options
        ).float()
    zeros = torch.zeros(max_scales + 1, device=losses_S.device)
    return Losses(
        rows=losses_S,
        total=(weights_S * losses_S).sum(),  # a dot product would run in bf16 under autocast
        supervised=len(rows_S),
        scale_sums=zeros.index_add(0, scale_S, losses_S.detach()),
        scale_counts=zeros.index_add(0, scale_S, torch.ones_like(losses_S)),
    )
