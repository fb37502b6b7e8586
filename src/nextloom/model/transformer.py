"""The NextFlow decoder: Qwen2.5-VL's text model, with image codes as inputs and outputs.

Text, `<boi>` and `<eoi>` enter through the embedding table. The codes of scale k-1 enter as code vectors (semantic
part, pixel part), resized to the grid of scale k in code space, and pass the connector. One untied head predicts
text and codes alike. Vision inputs carry a learned embedding of their scale; `<boi>` and vision inputs carry an
embedding of the image's number of scales, which starts at zero.

Parameter names are Hugging Face's where the part is Qwen's. Every parameter takes part in every forward, with
zero-size inputs if need be, so that the shards of a distributed run always exchange the same gradients.

Legend: B batch (1 for a pack), N positions, D width, H query heads, G key heads, K head width, F inner width of the
MLP, V vocabulary, E code width, T input codes, M vision inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nextloom.model.attention import Backend, attend, visible
from nextloom.model.config import ModelConfig
from nextloom.model.layout import Group, Layout
from nextloom.model.loss import Losses, cross_entropy
from nextloom.model.rope import Rope, rope, rotate
from nextloom.tokenize.documents import Grid

LENGTH_DIM = 256
"""Width of the sinusoid of an image's number of scales."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q_BHNK, k_BGNK, v_BGNK) -> out_BHNK: over a pack, or over a cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A `Layout` as tensors on a device; same names, same shapes."""

    token_rows: Tensor
    """Positions of text, `<boi>` and `<eoi>`."""
    token_ids: Tensor
    """Their ids."""
    doc: Tensor
    block: Tensor
    positions: Tensor
    scales: Tensor
    lengths: tuple[int, ...]
    rows: Tensor
    targets: Tensor
    weights: Tensor
    target_scale: Tensor
    codes: Tensor
    groups: tuple[Group, ...]
    vision_rows: Tensor
    vision_scale: Tensor
    """(M,) scale of each vision input, in the order of `vision_rows`."""

    @classmethod
    def of(cls, layout: Layout, device: torch.device | str = "cpu") -> Self:
        """Copy a layout to `device`."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        token_rows = np.flatnonzero(layout.tokens >= 0)
        return cls(
            token_rows=tensor(token_rows),
            token_ids=tensor(layout.tokens[token_rows]),
            doc=tensor(layout.doc),
            block=tensor(layout.block),
            positions=tensor(layout.positions),
            scales=tensor(layout.scales),
            lengths=layout.lengths,
            rows=tensor(layout.rows),
            targets=tensor(layout.targets),
            weights=tensor(layout.weights),
            target_scale=tensor(layout.target_scale),
            codes=tensor(layout.codes),
            groups=layout.groups,
            vision_rows=tensor(layout.vision_rows),
            vision_scale=tensor(layout.scale[layout.vision_rows]),
        )


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, then back to the input's dtype, then the weight: the order of Hugging Face's Qwen."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with biases on q, k, v and three-axis rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)

    def forward(self, x_BND: Tensor, turn: Rope, look: Attend) -> Tensor:
        q_BHNK, k_BGNK, v_BGNK = (
            project(x_BND).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out_BHNK = look(rotate(q_BHNK, turn), rotate(k_BGNK, turn), v_BGNK)
        return self.o_proj(out_BHNK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BND)) * self.up_proj(x_BND))


class Layer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.rms_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.rms_eps)
        self.mlp = MLP(config)

    def forward(self, x_BND: Tensor, turn: Rope, look: Attend) -> Tensor:
        x_BND = x_BND + self.self_attn(self.input_layernorm(x_BND), turn, look)
        return x_BND + self.mlp(self.post_attention_layernorm(x_BND))


class Connector(nn.Module):
    """From code vectors to the width of the decoder: linear, GELU, linear."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rise = nn.Linear(config.code_dim, config.width)
        self.mix = nn.Linear(config.width, config.width)

    def forward(self, x_ME: Tensor) -> Tensor:
        return self.mix(F.gelu(self.rise(x_ME.to(self.rise.weight.dtype))))


class NextFlow(nn.Module):
    """Decoder over packs of text and images.

    Args:
        config: shapes and positions.
        backend: attention inside a pack; see `nextloom.model.attention`.
        recompute: keep only the layers' inputs and compute the rest again in backward.
    """

    def __init__(self, config: ModelConfig, *, backend: Backend = "sdpa_docs", recompute: bool = False) -> None:
        super().__init__()
        self.config, self.backend, self.recompute = config, backend, recompute
        self.embed_tokens = nn.Embedding(config.code_offset, config.width)
        self.code_embed = nn.Embedding(config.codes, config.code_dim)
        self.connector = Connector(config)
        self.scale_embed = nn.Embedding(config.max_scales, config.width)
        self.length_proj = nn.Linear(LENGTH_DIM, config.width, bias=False)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.layers)])
        self.norm = RMSNorm(config.width, config.rms_eps)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill every parameter from torch's global generator; for a model built on the meta device, call again.

        N(0, 0.02), residual outputs divided by sqrt(2 layers) as in GPT-2, code vectors of unit parts, connector as
        `nn.Linear` has it, scale length at zero.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias") or name.startswith("length_proj"):
                parameter.zero_()
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.layers))
            else:
                parameter.normal_(std=0.02)
        self.connector.rise.reset_parameters()
        self.connector.mix.reset_parameters()
        codes = self.code_embed.weight
        codes.normal_()
        for part in codes.split((self.config.semantic_dim, self.config.pixel_dim), dim=1):
            part.div_(part.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def init_codes(self, codebook: Tensor) -> None:
        """Start the code vectors from the tokenizer's codebook.

        Args:
            codebook: (codes, semantic_dim + pixel_dim), each part of each row of unit norm.

        Raises:
            ValueError: another shape, or rows that are not normalised.
        """
        config = self.config
        if codebook.shape != self.code_embed.weight.shape:
            raise ValueError(f"codebook {tuple(codebook.shape)}, expected {tuple(self.code_embed.weight.shape)}")
        for part in codebook.float().split((config.semantic_dim, config.pixel_dim), dim=1):
            lengths = part.norm(dim=1)
            if part.shape[1] and not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3):
                raise ValueError("codebook parts are used row-normalised; these rows are not of unit norm")
        self.code_embed.weight.copy_(codebook)

    def embed(self, batch: Batch) -> Tensor:
        """(1, N, D) inputs of a pack; zero at padding."""
        text = F.embedding(batch.token_ids, self.embed_tokens.weight)
        vision = self.vision(batch.codes, batch.groups, batch.vision_scale)
        x_ND = text.new_zeros(len(batch.doc), self.config.width)
        x_ND.index_copy_(0, batch.token_rows, text)
        x_ND.index_copy_(0, batch.vision_rows, vision.to(text.dtype))
        return (x_ND + self.length(batch.scales).to(text.dtype))[None]

    def vision(self, codes_T: Tensor, groups: Sequence[Group], scale_M: Tensor) -> Tensor:
        """(M, D) inputs of the next scales: code vectors resized group by group, connector, scale embedding."""
        codes_TE = F.embedding(codes_T, self.code_embed.weight).float()
        sizes = [g.count * math.prod(g.source) for g in groups]
        maps = zip(codes_TE.split(sizes) if groups else (), groups, strict=True)
        resized = [resize(map_TE.unflatten(0, (g.count, -1)), g.source, g.target).flatten(0, 1) for map_TE, g in maps]
        vision_ME = torch.cat([codes_TE[:0], *resized])
        return self.connector(vision_ME) + F.embedding(scale_M - 1, self.scale_embed.weight)

    def length(self, scales_N: Tensor) -> Tensor:
        """(N, D) embedding of the image's number of scales; exactly zero where `scales_N` is 0."""
        weight = self.length_proj.weight
        table = _sinusoids(self.config.max_scales, weight.device)
        return F.embedding(scales_N, self.length_proj(table.to(weight.dtype)))

    def decode(self, x_BND: Tensor, turn: Rope, looks: Sequence[Attend]) -> Tensor:
        """Layers and final norm; `looks` gives the attention of each layer."""
        for layer, look in zip(self.layers, looks, strict=True):
            if self.recompute and torch.is_grad_enabled():
                x_BND = checkpoint(layer, x_BND, turn, look, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BND = layer(x_BND, turn, look)
        return self.norm(x_BND)

    def hidden(self, batch: Batch) -> Tensor:
        """(N, D) normalised output of a pack, before the head.

        Raises:
            ValueError: positions that a mixed-precision wrapper has rounded.
        """
        if batch.positions.dtype != torch.float32:
            raise ValueError(
                f"positions came as {batch.positions.dtype}, which rounds them; "
                "shard with MixedPrecisionPolicy(..., cast_forward_inputs=False)"
            )
        look = partial(attend, seen=visible(batch.doc, batch.block, batch.lengths, self.backend))
        turn = rope(batch.positions[None], self.config)
        return self.decode(self.embed(batch), turn, [look] * len(self.layers))[0]

    def logits(self, batch: Batch) -> Tensor:
        """(N, V) all logits, padding rows of the head included; for small packs."""
        return self.lm_head(self.hidden(batch))

    def forward(self, batch: Batch) -> Losses:
        """Losses of a pack. The head is applied inside, so that sharded weights are gathered when it runs."""
        return cross_entropy(
            self.hidden(batch),
            self.lm_head.weight,
            batch.rows,
            batch.targets,
            batch.weights,
            batch.target_scale,
            self.config.max_scales,
        )


def resize(map_BSE: Tensor, source: Grid, target: Grid) -> Tensor:
    """Bicubic resize of B row-major maps from `source` to `target` cells, as `F.interpolate` has it.

    Written as one small matrix per axis: no transpose to channels-first, and a deterministic backward on GPU.
    """
    if source == target:
        return map_BSE
    rows, columns = (_bicubic(a, b, map_BSE.device) for a, b in zip(source, target, strict=True))
    with torch.autocast(map_BSE.device.type, enabled=False):
        map_BHWE = map_BSE.unflatten(1, source)
        return torch.einsum("Hh,bhwe,Ww->bHWe", rows, map_BHWE, columns).flatten(1, 2)


@lru_cache(maxsize=4096)
@torch.inference_mode(False)  # what the first caller caches must serve in training too
def _bicubic(source: int, target: int, device: torch.device) -> Tensor:
    """(target, source) fp32 matrix of torch's bicubic interpolation (a = -0.75, half-pixel centres) on one axis."""
    impulses = torch.eye(source, device=device).view(source, 1, source, 1)
    return F.interpolate(impulses, (target, 1), mode="bicubic").view(source, target).T.contiguous()


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _sinusoids(max_scales: int, device: torch.device) -> Tensor:
    """(max_scales + 1, LENGTH_DIM) sine and cosine of K at geometric frequencies; row 0, for no image, is zero."""
    half = LENGTH_DIM // 2
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=device) / half)
    angle = torch.arange(max_scales + 1, device=device)[:, None] * frequency
    table = torch.cat((angle.sin(), angle.cos()), dim=1)
    table[0] = 0.0
    return table
