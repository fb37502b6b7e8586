"""Draw images from the decoder: scale by scale, with a cache, guidance and draws that no neighbour can change.

A `Stream` is a batch of documents that all grow by the same image. Each step runs one block: `<boi>` for scale 1,
then the inputs of scale k. A new block sees everything before it and the whole of itself, so no mask is needed
beyond the one that hides the padding between prompts of unequal length.

Guidance runs a second stream whose prompt has no text: ids and positions are those of the null-prompt documents of
training (an empty prompt puts `<boi>` at 0), and its logits steer l = l_c + g_k (l_c - l_u), g_k rising linearly
from 0 at scale 1 to g at scale K (as in VAR). Every cell of every scale is drawn with its own uniform number, a hash
of (key, seed, scale, cell).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextloom.hashing import hash64
from nextloom.model.attention import attend, sdpa, visible
from nextloom.model.layout import Group, cells, check_grids, lay_out
from nextloom.model.rope import rope
from nextloom.model.transformer import Batch, NextFlow
from nextloom.tokenize.documents import Document, Grid, Picture, Text

Prompt = Sequence[int] | Document
"""Text ids, or segments when the prompt holds images."""


class Cache:
    """Keys and values of B documents; slots [0, prompt) hold the prompts, left-aligned, later slots the new blocks.

    Args:
        lengths: (B,) prompt lengths.
        room: number of positions to come.
    """

    def __init__(self, lengths: np.ndarray, room: int, device: torch.device) -> None:
        self.prompt = int(lengths.max())
        self.used = self.prompt
        self.size = self.prompt + room
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        slots = torch.arange(self.size, device=device)
        filled = torch.from_numpy(lengths).to(device)
        self.holds_BS = (slots < filled[:, None]) | (slots >= self.prompt)
        self.even = bool((lengths == self.prompt).all())

    def prefill(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, look, doc_N: Tensor, slot_N: Tensor) -> Tensor:
        """Attention over packed prompts, with their keys and values kept."""
        for store, x_GNK in ((self.keys, k[0]), (self.values, v[0])):
            self._room(store, layer, x_GNK)[doc_N, :, slot_N] = x_GNK.transpose(0, 1)
        return look(q, k, v)

    def extend(self, layer: int, q_BHNK: Tensor, k_BGNK: Tensor, v_BGNK: Tensor) -> Tensor:
        """Attention of a new block over the cache and itself; `advance` after the last layer."""
        end = self.used + k_BGNK.shape[2]
        keys, values = self._room(self.keys, layer, k_BGNK[0]), self._room(self.values, layer, v_BGNK[0])
        keys[:, :, self.used : end] = k_BGNK
        values[:, :, self.used : end] = v_BGNK
        mask = None if self.even else self.holds_BS[:, None, None, :end]
        return sdpa(q_BHNK, keys[:, :, :end], values[:, :, :end], mask)

    def advance(self, size: int) -> None:
        """Count the block that every layer has added."""
        self.used += size

    def _room(self, store: dict[int, Tensor], layer: int, like_GNK: Tensor) -> Tensor:
        if layer not in store:
            heads, _, width = like_GNK.shape
            store[layer] = like_GNK.new_zeros(len(self.holds_BS), heads, self.size, width)
        return store[layer]


class Stream:
    """B documents that grow by one image of the same grids each.

    Args:
        model: in any dtype; call under `torch.inference_mode` or `no_grad`.
        prompts: what stands before the image.
        grids: the K grids of the image, the first (1, 1).
    """

    def __init__(self, model: NextFlow, prompts: Sequence[Prompt], grids: Sequence[Grid]) -> None:
        check_grids(grids, model.config)
        self.model, self.config, self.grids = model, model.config, tuple(grids)
        self.device = model.lm_head.weight.device
        layout = lay_out([as_document(prompt) for prompt in prompts], self.config)
        lengths = np.array(layout.lengths)
        last = np.maximum(np.cumsum(lengths) - 1, 0)
        self.boi_position = np.where(lengths > 0, np.append(layout.block, 0)[last] + 1, 0)
        """(B,) running position of `<boi>` in each document."""
        self.cache = Cache(lengths, sum(h * w for h, w in self.grids), self.device)
        self.step_number = 0
        if lengths.any():
            batch = Batch.of(layout, self.device)
            slots = np.concatenate([np.arange(size) for size in lengths])
            keep = partial(
                self.cache.prefill,
                look=partial(attend, seen=visible(batch.doc, batch.block, batch.lengths, "sdpa_docs")),
                doc_N=batch.doc.long(),
                slot_N=torch.from_numpy(slots).to(self.device),
            )
            looks = [partial(keep, layer) for layer in range(self.config.layers)]
            model.decode(model.embed(batch), rope(batch.positions[None], self.config), looks)

    def positions(self, k: int) -> np.ndarray:
        """(B, 3, n_k) positions of the block that predicts scale k."""
        start = self.boi_position[:, None] + k - 1
        if k == 1:
            return np.repeat(start[:, None], 3, axis=1)
        spatial = cells(self.grids[k - 1], self.config.rope_range)
        return np.stack([np.concatenate([np.full((1, spatial.shape[1]), s), spatial]) for (s,) in start])

    def step(self, codes_BM: Tensor | None = None) -> Tensor:
        """Logits of the next scale, (B, n_k, codes) fp32.

        Args:
            codes_BM: (B, n_{k-1}) codes of the scale before; None for scale 1.
        """
        self.step_number += 1
        k, model, batch = self.step_number, self.model, len(self.boi_position)
        assert (codes_BM is None) == (k == 1), "only <boi> takes no codes"
        if codes_BM is None:
            x_BND = model.embed_tokens.weight[self.config.boi].expand(batch, 1, -1)
        else:
            group = Group(self.grids[k - 2], self.grids[k - 1], batch)
            height, width = group.target
            scale_M = torch.full((batch * height * width,), k, device=self.device)
            x_BND = model.vision(codes_BM.flatten(), [group], scale_M).unflatten(0, (batch, -1))
        count = torch.tensor([len(self.grids)], device=self.device)
        x_BND = x_BND.to(model.embed_tokens.weight.dtype) + model.length(count)
        turn = rope(torch.from_numpy(self.positions(k).astype(np.float32)).to(self.device), self.config)
        looks = [partial(self.cache.extend, layer) for layer in range(self.config.layers)]
        out_BND = model.decode(x_BND, turn, looks)
        self.cache.advance(out_BND.shape[1])
        first = self.config.code_offset
        return F.linear(out_BND, model.lm_head.weight[first : first + self.config.codes]).float()


def as_document(prompt: Prompt) -> Document:
    """A prompt as segments."""
    segments = [part for part in prompt if isinstance(part, Text | Picture)]
    if segments and len(segments) == len(prompt):
        return segments
    return [Text(np.asarray(prompt, np.int64))]


def null_prompt(prompt: Prompt) -> Document:
    """The prompt of the unconditional stream: images stay, text goes."""
    return [part for part in as_document(prompt) if isinstance(part, Picture)]


@torch.inference_mode()
def draw(
    model: NextFlow,
    prompts: Sequence[Prompt],
    grids: Sequence[Grid],
    *,
    guidance: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    keys: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Draw one image per prompt. The defaults sample the model's own distribution.

    Args:
        model: a decoder.
        prompts: text ids, or segments when the prompt holds images; may be empty.
        grids: the K grids of every image, the first (1, 1).
        guidance: g of classifier-free guidance at the last scale; 0 runs no second stream.
        top_k: keep the k likeliest codes of a cell; 0 for all.
        top_p: then keep the likeliest codes that hold this share of the mass, in (0, 1].
        temperature: divides the logits; 0 takes the likeliest code.
        seed: one seed, one set of images.
        keys: an integer per prompt that its draws depend on, by default its place in `prompts`.

    Returns:
        (n_1 + ... + n_K,) int64 codes per prompt, scale by scale, row-major.
    """
    if not 0 < top_p <= 1 or top_k < 0 or temperature < 0:
        raise ValueError(f"wanted 0 < top_p <= 1, top_k >= 0, temperature >= 0: {top_p=}, {top_k=}, {temperature=}")
    if not prompts:
        return []
    keys = range(len(prompts)) if keys is None else keys
    stream = Stream(model, prompts, grids)
    null = Stream(model, [null_prompt(prompt) for prompt in prompts], grids) if guidance else None
    drawn: list[Tensor] = []
    for k in range(1, len(grids) + 1):
        before = drawn[-1] if drawn else None
        logits_BNV = stream.step(before)
        if null is not None:
            ramp = guidance * (k - 1) / max(len(grids) - 1, 1)
            logits_BNV = guided(logits_BNV, null.step(before), ramp)
        uniform_BN = torch.from_numpy(uniforms(keys, seed, k, logits_BNV.shape[1])).to(logits_BNV.device)
        drawn.append(choose(logits_BNV, uniform_BN, top_k=top_k, top_p=top_p, temperature=temperature))
    return list(torch.cat(drawn, dim=1).cpu().numpy())


def guided(conditional: Tensor, unconditional: Tensor, strength: float) -> Tensor:
    """(1 + g) l_c - g l_u, written so that equal streams give equal logits exactly."""
    return conditional + strength * (conditional - unconditional)


def choose(logits_BNV: Tensor, uniform_BN: Tensor, *, top_k: int, top_p: float, temperature: float) -> Tensor:
    """(B, N) int64 codes, one per cell, by inverting the cumulative distribution at `uniform_BN` in (0, 1)."""
    if temperature == 0 or top_k == 1:
        return logits_BNV.argmax(-1)
    probs, ids = (logits_BNV / temperature).softmax(-1), None
    if 0 < top_k < probs.shape[-1]:
        probs, ids = probs.topk(top_k)
        probs = probs / probs.sum(-1, keepdim=True)
    elif top_p < 1:
        probs, ids = probs.sort(dim=-1, descending=True)
    if top_p < 1:
        probs = probs.where(probs.cumsum(-1) - probs < top_p, 0.0)
    mass = probs.cumsum(-1)
    place = torch.searchsorted(mass, (uniform_BN * mass[..., -1])[..., None], right=True)
    return (place if ids is None else ids.gather(-1, place)).squeeze(-1)


def uniforms(keys: Sequence[int], seed: int, scale: int, count: int) -> np.ndarray:
    """(B, count) float32 in (0, 1), a function of (key, seed, scale, cell) alone.

    22 bits, in the middle of their cells: the largest, times any fp32 number, stays below that number.
    """
    bits = np.stack([hash64(np.arange(count), "draw", key, seed, scale) for key in keys]) >> np.uint64(42)
    return ((bits.astype(np.float64) + 0.5) / 2**22).astype(np.float32)
