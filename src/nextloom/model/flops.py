"""What a forward pass costs: the paper's simplified count, and the true one. A multiply-add is 2 FLOPs.

The paper's layer (appendix A.2) has an MLP of inner width h and neither grouped queries, text nor head; it is here
to reproduce Eqs. 9-11. Its printed coefficients are those of 19 steps with 10 x 10 twice, and its printed totals
belong to h = 2048. Budgets, packing and utilisation use the true count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextloom.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class PaperFlops:
    """Cost of one layer as polynomials in the width h."""

    projections: int
    """Coefficient of h^2 in attention: 8 per query."""
    scores: int
    """Coefficient of h in attention: 4 per query and key."""
    mlp: int
    """Coefficient of h^2 in the MLP: 4 per query."""

    def at(self, width: int) -> int:
        """FLOPs of the layer at h = `width`."""
        return (self.projections + self.mlp) * width**2 + self.scores * width


def paper_flops(queries: Sequence[int], *, cached: bool) -> PaperFlops:
    """The paper's count of one layer over all steps of generating an image.

    Args:
        queries: positions computed in each step.
        cached: a step's keys are those of all steps up to it (scales), or its own alone (diffusion).
    """
    total = keys = pairs = 0
    for size in queries:
        keys = keys + size if cached else size
        total += size
        pairs += size * keys
    return PaperFlops(projections=8 * total, scores=4 * pairs, mlp=4 * total)


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of a forward pass by part."""

    linear: int
    """Projections and MLPs of the layers."""
    attention: int
    """Scores and weighted sums over the visible pairs."""
    head: int
    """Logits of the supervised positions."""

    @property
    def total(self) -> int:
        """All parts."""
        return self.linear + self.attention + self.head

    def train(self, *, recompute: bool) -> int:
        """Forward and backward (twice the forward); recomputing the layers adds one more forward of them."""
        return (3 + recompute) * (self.linear + self.attention) + 3 * self.head


def layer_weights(config: ModelConfig) -> int:
    """Weights of one layer that every position is multiplied with."""
    heads = 2 * config.heads + 2 * config.kv_heads
    return config.width * (heads * config.head_dim + 3 * config.mlp)


def forward_flops(config: ModelConfig, tokens: int, pairs: int, supervised: int) -> Flops:
    """Cost of a forward pass. The connector (0.2 % at 7B), norms and elementwise work are left out.

    Args:
        config: the decoder.
        tokens: positions.
        pairs: visible query-key pairs, as `nextloom.tokenize.documents.cost` counts them.
        supervised: positions that meet the head.
    """
    return Flops(
        linear=2 * tokens * config.layers * layer_weights(config),
        attention=4 * config.heads * config.head_dim * config.layers * pairs,
        head=2 * supervised * config.width * config.vocab,
    )


def cost_model(config: ModelConfig, *, recompute: bool = True) -> tuple[int, int]:
    """(a, b): training FLOPs per position, every one taken as supervised, and per visible pair."""
    per_token = forward_flops(config, tokens=1, pairs=0, supervised=1).train(recompute=recompute)
    per_pair = forward_flops(config, tokens=0, pairs=1, supervised=0).train(recompute=recompute)
    return per_token, per_pair
