"""The multi-scale residual quantiser with two codebooks and one index.

Each scale averages what is left of the features down to its grid, normalises the semantic and the pixel part
on their own, picks one code for both, and takes that code, spread over the final grid, out of the remainder:

    u_k = norm(area(r_k, (h_k, w_k)))      i_k = argmin_v |u_s - E_s[v]|^2 + w |u_p - E_p[v]|^2
    f  += bicubic(E[i_k], (H, W))          r_k+1 = r_k - bicubic(E[i_k], (H, W))

All vectors have unit norm per part, so the argmin is the argmax of u_s.E_s + w u_p.E_p: thin matrix products,
block by block, whose scores are looked at while they are in the cache and never kept. Everything runs in float32
with autocast off. No phi convolutions, no moving averages, no restarts: codebooks learn from the gradient of L_vq
alone.

Bit rule of `encode`: float32 as written (no autocast, no TF32), one picture at a time, on one CPU thread, from a
contiguous copy. The last bits of a matrix product depend on its shape, its thread count and its alignment; with all
three fixed, a picture's indices do not depend on its batch, its neighbours or its process. Another processor type or
a GPU may differ where two codes tie to about 1e-6. The price is that nothing is amortised over a batch; parallelism
is over workers.

Source: NextFlow (arXiv 2601.02204), TokenFlow's shared-mapping quantiser; self-correction after Infinity.

Shapes: B pictures, D = semantic + pixel dimensions, (H, W) final grid, N = sum of n_k codes, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextloom.arithmetic import float32_as_written
from nextloom.hashing import hash64, uniform
from nextloom.tokenize.documents import Grid

ROWS, CODES = 256, 1024
"""Scores held at once while codes are searched (float32: 1 MB, what a core's cache holds)."""


FLOAT32 = "they stay float32 (load the tokenizer again), and autocast is what makes the networks faster"


@dataclass(frozen=True, slots=True)
class Correction:
    """Self-correction: with probability `p` per token the input is drawn among the `top_k` nearest codes.

    The draw is softmax(-distance / tau), from a hash of (key, seed, draw, scale, position). The remainder goes on
    from the drawn code, so the targets of later scales repair it. `draw` numbers independent draws of one picture.
    """

    p: float = 0.6
    top_k: int = 10
    tau: float = 1.0
    seed: int = 0
    draw: int = 0

    def names(self, key: str) -> tuple[str | int, ...]:
        """The hash stream of a picture's draw."""
        return (key, self.seed, f"draw {self.draw}") if self.draw else (key, self.seed)


@dataclass(frozen=True, slots=True)
class Quantized:
    """What training needs: `features` (B, D, H, W) straight-through, scalar `loss`, `indices` (B, N)."""

    features: Tensor
    loss: Tensor
    indices: Tensor


class Quantizer(nn.Module):
    """Two codebooks, stored unnormalised and used row-normalised.

    Args:
        codes: V.
        semantic_dim, pixel_dim: dimensions of the two parts.
        pixel_weight: w, weight of the pixel distance.
        beta: weight of the commitment term.
    """

    def __init__(self, codes: int, semantic_dim: int, pixel_dim: int, pixel_weight: float = 1.0, beta: float = 0.25):
        super().__init__()
        self.split = (semantic_dim, pixel_dim)
        self.pixel_weight, self.beta = pixel_weight, beta
        self.semantic = nn.Parameter(_unit(torch.empty(codes, semantic_dim).uniform_(-1 / codes, 1 / codes)))
        self.pixel = nn.Parameter(_unit(torch.empty(codes, pixel_dim).uniform_(-1 / codes, 1 / codes)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """As `nn.Module` moves and casts parameters; refuses any other type than float32 before one is changed."""
        refuse_cast(self, fn)
        return super()._apply(fn, recurse)

    def codebook(self) -> Tensor:
        """(V, D) float32: both parts, each row-normalised, side by side.

        Raises:
            TypeError: the codes were rounded to another type, which would choose other indices without a word.
        """
        for part in (self.semantic, self.pixel):
            if part.dtype != torch.float32:
                raise TypeError(f"codes are {part.dtype}; {FLOAT32}")
        return torch.cat([_unit(self.semantic.float()), _unit(self.pixel.float())], dim=1)

    def lookup(self, indices: Tensor) -> Tensor:
        """(..., D) code vectors of indices (...)."""
        return F.embedding(indices, self.codebook())

    def forward(self, z: Tensor, grids: Sequence[Grid]) -> Quantized:
        """Quantise features for training.

        Args:
            z: (B, D, H, W) features, not normalised.
            grids: the scales to use; scales may be missing (see `drop_scales`), and (H, W) is always z's own.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            size, table = (z.shape[-2], z.shape[-1]), self.codebook()
            ranked = self._ranked(table)
            rest, features, loss, found = z, torch.zeros_like(z), z.new_zeros(()), []
            for grid in grids:
                u = self._normalise(F.adaptive_avg_pool2d(rest, grid))
                index = nearest(_rows(u.detach()), ranked)
                q = _picture(F.embedding(index, table), len(z), grid)
                features = features + _up(u + (q - u).detach(), size)
                rest = rest - _up(q.detach(), size)
                loss = loss + F.mse_loss(q, u.detach()) + self.beta * F.mse_loss(u, q.detach())
                found.append(index.view(len(z), -1))
            return Quantized(features, loss / len(grids), torch.cat(found, dim=1))

    @torch.no_grad()
    def encode(
        self,
        z: Tensor,
        grids: Sequence[Grid],
        correction: Correction | None = None,
        keys: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Codes of pictures, equal bit by bit whatever shares their batch.

        Args:
            z: (B, D, H, W) features; (H, W) equals `grids[-1]`.
            grids: the whole schedule.
            correction: draws inputs when given; then `keys` names each picture.
            keys: one stable key per picture.

        Returns:
            inputs, targets: (B, N) int64 each, scale by scale, row-major. A target is the nearest code of the
            remainder that the earlier *inputs* left. Without correction both are the plain encoding.

        Raises:
            ValueError: features that are not finite; their codes would look like any other.
        """
        assert tuple(z.shape[-2:]) == tuple(grids[-1]), f"features {tuple(z.shape[-2:])}, last grid {grids[-1]}"
        assert correction is None or (keys is not None and len(keys) == len(z)), "correction needs a key per picture"
        if not z.isfinite().all():
            raise ValueError("the encoder's features are not finite")
        with bit_rule(z.device):
            table = self.codebook()
            ranked = self._ranked(table)
            pairs = []
            for i, picture in enumerate(z):
                alone = picture.detach().float().clone(memory_format=torch.contiguous_format)[None]
                pairs.append(self._encode_one(alone, grids, (table, ranked), correction, keys[i] if keys else ""))
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])

    @torch.no_grad()
    def targets_of(self, z: Tensor, grids: Sequence[Grid], inputs: Tensor) -> Tensor:
        """(N,) nearest codes of what given inputs leave: the targets that were stored beside them.

        Args:
            z: (1, D, H, W) features of one picture.
            grids: the whole schedule.
            inputs: (N,) int64 codes that each scale goes on from.
        """
        with bit_rule(z.device):
            table, rest, found = self.codebook(), z.detach().float().contiguous(), []
            ranked = self._ranked(table)
            for grid, chosen in zip(grids, inputs.split([h * w for h, w in grids]), strict=True):
                found.append(nearest(_rows(self._normalise(F.adaptive_avg_pool2d(rest, grid))), ranked))
                rest = rest - _up(_picture(F.embedding(chosen, table), 1, grid), grids[-1])
            return torch.cat(found)

    def features(self, indices: Tensor, grids: Sequence[Grid], size: Grid | None = None) -> Tensor:
        """(B, D, H, W) sum of the codes over the final grid.

        Args:
            indices: (B, N), scale by scale, row-major.
            grids: the scales present; fewer than the schedule's give the coarse picture.
            size: (H, W) when it is not `grids[-1]`.
        """
        table, size = self.codebook(), size or grids[-1]
        total = table.new_zeros(len(indices), table.shape[1], *size)
        parts = indices.split([h * w for h, w in grids], dim=1)
        for grid, part in zip(grids, parts, strict=True):
            total = total + _up(_picture(F.embedding(part.reshape(-1), table), len(indices), grid), size)
        return total

    def _encode_one(
        self,
        rest: Tensor,
        grids: Sequence[Grid],
        tables: tuple[Tensor, Blocks],
        correction: Correction | None,
        key: str,
    ) -> tuple[Tensor, Tensor]:
        table, ranked = tables
        inputs, targets = [], []
        for scale, grid in enumerate(grids):
            u = _rows(self._normalise(F.adaptive_avg_pool2d(rest, grid)))
            target = chosen = nearest(u, ranked)
            if correction is not None:
                chosen = _draw(u, ranked, correction, key, scale)
            rest = rest - _up(_picture(F.embedding(chosen, table), 1, grid), grids[-1])
            inputs.append(chosen)
            targets.append(target)
        return torch.cat(inputs), torch.cat(targets)

    def _normalise(self, x: Tensor) -> Tensor:
        semantic, pixel = x.split(self.split, dim=1)
        return torch.cat([_unit(semantic), _unit(pixel)], dim=1)

    def _ranked(self, table: Tensor) -> Blocks:
        """Transposed codebook whose product with u ranks the codes: pixel part times w."""
        semantic, pixel = table.detach().split(self.split, dim=1)
        return blocks(torch.cat([semantic, self.pixel_weight * pixel], dim=1).t())


def refuse_cast(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Refuse a change of `module` (`.bfloat16()`, `.half()`, `.to(...)`) after which codes would not be the same.

    Raises:
        TypeError: `fn` makes another type of a float32 parameter.
    """
    for parameter in module.parameters():
        dtype = fn(parameter.detach()[:0]).dtype
        if parameter.dtype == torch.float32 != dtype:
            raise TypeError(f"{dtype} weights would give other codes; {FLOAT32}")


Blocks = list[Tensor]
"""A transposed codebook (D, V) in blocks of `CODES` columns."""


def blocks(codebook: Tensor) -> Blocks:
    """A transposed codebook (D, V), cut for `nearest` and `best`."""
    return [block.contiguous() for block in codebook.split(CODES, dim=1)]


def nearest(u: Tensor, ranked: Blocks) -> Tensor:
    """(n,) index of the best code for each row of u (n, D); of equal codes the lowest."""
    found = []
    for part in u.split(ROWS):
        score, index = (part @ ranked[0]).max(dim=1)
        for number, block in enumerate(ranked[1:], 1):
            here, at = (part @ block).max(dim=1)
            better = here > score
            score = torch.where(better, here, score)
            index = torch.where(better, at + number * CODES, index)
        found.append(index)
    return torch.cat(found)


def best(u: Tensor, ranked: Blocks, count: int) -> tuple[Tensor, Tensor]:
    """Scores and indices (n, count) of the best codes, best first; of equal codes the lowest index first."""
    found = []
    for part in u.split(ROWS):
        keys = torch.cat([_block_best(part @ block, n * CODES, count) for n, block in enumerate(ranked)], dim=1)
        top = keys.topk(min(count, keys.shape[1]), dim=1).values
        index = LAST - (top & LAST)
        bits = (top >> 32).to(torch.int32)
        scores = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
        found.append((scores, index))
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


LAST = 0xFFFFFFFF


def _block_best(scores: Tensor, first: int, count: int) -> Tensor:
    """Sortable keys (n, at most count) of the best codes of a block whose first code is `first`."""
    count = min(count, scores.shape[1])
    values, index = scores.topk(count, dim=1)
    if ((scores >= values[:, -1:]).sum(dim=1) > count).any():  # equal codes at the edge: topk takes any of them
        index = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        return _keys(scores, index + first).topk(count, dim=1).values
    return _keys(values, index + first)


def _keys(scores: Tensor, index: Tensor) -> Tensor:
    """int64 in the order of the scores, and of equal scores with the lowest index first."""
    bits = (scores + 0.0).view(torch.int32).long()  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    return (ordered << 32) + (LAST - index)


def _draw(u: Tensor, ranked: Blocks, correction: Correction, key: str, scale: int) -> Tensor:
    scores, index = best(u, ranked, correction.top_k)
    nearer = 2 * (scores - scores[:, :1]).double().cpu().numpy()  # a distance is 2 + 2w - 2 * score
    cumulated = np.exp(nearer / correction.tau).cumsum(axis=1)
    counter = (np.uint64(scale) << np.uint64(33)) + 2 * np.arange(len(u), dtype=np.uint64)
    threshold = uniform(counter + np.uint64(1), *correction.names(key))[:, None] * cumulated[:, -1:]
    picked = np.minimum((cumulated <= threshold).sum(axis=1), index.shape[1] - 1)
    drawn = index.gather(1, torch.from_numpy(picked)[:, None].to(index.device))[:, 0]
    corrected = torch.from_numpy(uniform(counter, *correction.names(key)) < correction.p).to(index.device)
    return torch.where(corrected, drawn, index[:, 0])


def drop_scales(grids: Sequence[Grid], ratio: float, names: Sequence[str | int]) -> list[Grid]:
    """`grids` without floor(ratio * (K - 1)) of the scales after the first, chosen by the hash stream `names`."""
    order = np.argsort(hash64(np.arange(1, len(grids)), *names), kind="stable") + 1
    dropped = set(order[: int(ratio * (len(grids) - 1))].tolist())
    return [grid for k, grid in enumerate(grids) if k not in dropped]


@contextmanager
def bit_rule(device: torch.device) -> Generator[None, None, None]:
    """Arithmetic of stored codes: float32 as written, on one CPU thread.

    Autocast is off, and so is TF32, which cuDNN's convolutions use unless told otherwise: its 10 bits would move codes
    that lie 1e-3 apart.
    """
    with float32_as_written(), torch.autocast(device.type, enabled=False), one_thread():
        yield


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Torch on one CPU thread inside the block: part of the bit rule."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


def _rows(x: Tensor) -> Tensor:
    """(B * h * w, D) from (B, D, h, w)."""
    return x.flatten(2).transpose(1, 2).reshape(-1, x.shape[1])


def _picture(rows: Tensor, count: int, grid: Grid) -> Tensor:
    """(B, D, h, w) from (B * h * w, D)."""
    return rows.view(count, *grid, -1).permute(0, 3, 1, 2)


def _up(x: Tensor, size: Grid) -> Tensor:
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=size, mode="bicubic")
