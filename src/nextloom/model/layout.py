"""From the documents of one pack to the arrays that the model reads: ids, blocks, positions, targets.

An image of K scales is laid out as

    <boi> | inputs of scale 2 | ... | inputs of scale K | <eoi>
    c_1     c_2                     c_K                   next text token       <- what each position predicts

The inputs of scale k are the code vectors of scale k-1 (the residual alone, not the running sum), resized to the
grid of scale k: the single code of scale 1 is an input of scale 2, and the codes of scale K are never an input.
Inside an image a position predicts the code at that position; text is the usual next-token shift.

Every text token, `<boi>` and `<eoi>` is a block of its own and every input scale is one block. Position q sees
position k when both are in one document and block_k <= block_q. The running position of the rotary embedding
advances by one per block, so block number and running position are the same counter.

Price paid: an image in the context is seen without its finest scale.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nextloom.model.config import ModelConfig
from nextloom.tokenize.documents import Document, Grid, Picture, Text, picture_blocks


@dataclass(frozen=True, slots=True)
class Group:
    """`count` images' code maps that are resized together, from grid `source` to grid `target`."""

    source: Grid
    target: Grid
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """One pack of N positions, S of them supervised; all arrays are numpy."""

    tokens: np.ndarray
    """(N,) int64: id of a text token, `<boi>` or `<eoi>`; -1 at vision inputs and padding."""
    doc: np.ndarray
    """(N,) int32: number of the document in the pack; -1 for padding."""
    block: np.ndarray
    """(N,) int32: number of the block in its document, from 0; padding counts on its own."""
    positions: np.ndarray
    """(3, N) float32: (p_s, p_x, p_y), the axes time, row, column of the rotary embedding; fractional for vision."""
    scale: np.ndarray
    """(N,) int64: k = 2..K at the inputs of scale k, 0 elsewhere."""
    scales: np.ndarray
    """(N,) int64: K at `<boi>` and the vision inputs of an image of K scales, 0 elsewhere."""
    lengths: tuple[int, ...]
    """Positions of each document, in order; padding, if any, is one more."""
    rows: np.ndarray
    """(S,) int64: the supervised positions, ascending."""
    targets: np.ndarray
    """(S,) int64: the id that each of them predicts."""
    weights: np.ndarray
    """(S,) float32: 1 for text, the scale weights of `scale_weights` for codes."""
    target_scale: np.ndarray
    """(S,) int64: k = 1..K where the target is a code of scale k, 0 where it is text or `<boi>`."""
    codes: np.ndarray
    """(T,) int64: input codes of scale k-1 for every input scale k, in the order of `groups`, row-major."""
    groups: tuple[Group, ...]
    """How `codes` is cut into maps of equal (source grid, target grid)."""
    vision_rows: np.ndarray
    """(M,) int64: the position of every resized cell, in the order of `groups`."""


def scale_weights(grids: Sequence[Grid], alpha: float) -> np.ndarray:
    """(K,) float64 loss weight of a code of each scale (NextFlow section 3.3, normalised per image).

    k_s = (h_s w_s)^-alpha, times a constant so that the weights of an image's codes add up to their number.
    """
    sizes = np.array([h * w for h, w in grids], dtype=np.float64)
    raw = sizes**-alpha
    return raw * (sizes.sum() / (sizes @ raw))


def check_grids(grids: Sequence[Grid], config: ModelConfig) -> None:
    """Raise `ValueError` unless these are 1 to `max_scales` scales that begin with (1, 1)."""
    if not grids or tuple(grids[0]) != (1, 1) or len(grids) > config.max_scales:
        raise ValueError(f"an image has 1 to {config.max_scales} scales, the first of them (1, 1); got {grids}")


def cells(grid: Grid, rope_range: float) -> np.ndarray:
    """(2, h*w) float64: p_x and p_y of the cells, row-major: C / sqrt(h w) * (index + 1/2) (NextFlow Eq. 1)."""
    height, width = grid
    index = np.stack(np.divmod(np.arange(height * width), width))
    return rope_range / np.sqrt(height * width) * (index + 0.5)


def lay_out(
    documents: Sequence[Document], config: ModelConfig, alpha: float = 0.0, pad_to: int | None = None
) -> Layout:
    """Lay out one pack.

    A text token is supervised when its segment is learnt and a token comes before it. A code is supervised when its
    image is learnt. `<boi>` is supervised when its image and the segment before it are both learnt: a prompt that
    is not learnt is followed by an image that was asked for, so there is nothing to predict.

    Args:
        documents: at least one position in all; empty segments are allowed.
        config: vocabulary and position range.
        alpha: exponent of the scale weights, 0 for uniform.
        pad_to: number of positions to pad to.

    Raises:
        ValueError: ids, codes or grids that the config does not allow, or more positions than `pad_to`.
    """
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    maps: dict[tuple[Grid, Grid], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def add(**arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            parts[name].append(array)

    def add_tokens(number: int, tokens: np.ndarray, block: np.ndarray) -> None:
        none = np.zeros(len(tokens))
        add(tokens=tokens, doc=none + number, block=block, spatial=np.stack([block, block]), scale=none, scales=none)

    start, lengths = 0, []
    for number, document in enumerate(documents):
        first, block, learnt = start, 0, False
        for segment in document:
            if isinstance(segment, Text):
                ids = _text_ids(segment, config)
                size = blocks = len(ids)
                if not size:
                    continue
                add_tokens(number, ids, block + np.arange(size))
                if segment.loss:
                    wanted = ids[int(start == first) :]  # nothing predicts the first token of a document
                    add(rows=np.arange(size - len(wanted), size) + start - 1, targets=wanted)
                    add(weights=np.ones(len(wanted)), target_scale=np.zeros(len(wanted)))
            else:
                _check(segment, config)
                picture = _picture(tuple(segment.grids), config.rope_range, alpha)
                size, blocks = len(picture.block), len(segment.grids) + 1
                here, ends = block + picture.block, picture.scale == 0
                tokens = np.where(ends, config.eoi, -1)
                tokens[0] = config.boi
                add(tokens=tokens, doc=np.full(size, number), block=here, scale=picture.scale)
                add(spatial=np.where(ends, here, picture.spatial), scales=picture.scales)
                cuts = picture.cuts
                for k in range(1, len(segment.grids)):
                    maps[segment.grids[k - 1], segment.grids[k]].append(
                        (segment.inputs[cuts[k - 1] : cuts[k]], np.arange(cuts[k], cuts[k + 1]) + start)
                    )
                if segment.loss and learnt:
                    add(rows=np.array([start - 1]), targets=np.array([config.boi]))
                    add(weights=np.ones(1), target_scale=np.zeros(1))
                if segment.loss:
                    add(rows=np.arange(cuts[-1]) + start, targets=segment.targets.astype(np.int64) + config.code_offset)
                    add(weights=picture.weights, target_scale=picture.code_scale)
            start, block, learnt = start + size, block + blocks, segment.loss
        lengths.append(start - first)
    if pad_to is not None and start > pad_to:
        raise ValueError(f"the documents take {start:,} positions, more than pad_to={pad_to:,}")
    if pad_to is not None and start < pad_to:
        lengths.append(pad_to - start)
        add_tokens(-1, np.full(lengths[-1], -1), np.arange(lengths[-1]))

    def join(name: str, kind: type, empty: tuple[int, ...] = (0,)) -> np.ndarray:
        return np.concatenate(parts[name] or [np.zeros(empty)], axis=-1).astype(kind)

    resized = [member for members in maps.values() for member in members]
    add(codes=np.concatenate([np.zeros(0), *(codes for codes, _ in resized)]))
    add(vision_rows=np.concatenate([np.zeros(0), *(rows for _, rows in resized)]))
    return Layout(
        tokens=join("tokens", np.int64),
        doc=join("doc", np.int32),
        block=join("block", np.int32),
        positions=np.concatenate([join("block", np.float32)[None], join("spatial", np.float32, (2, 0))]),
        scale=join("scale", np.int64),
        scales=join("scales", np.int64),
        lengths=tuple(lengths),
        rows=join("rows", np.int64),
        targets=join("targets", np.int64),
        weights=join("weights", np.float32),
        target_scale=join("target_scale", np.int64),
        codes=join("codes", np.int64),
        groups=tuple(Group(source, target, len(members)) for (source, target), members in maps.items()),
        vision_rows=join("vision_rows", np.int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """What does not depend on where an image stands: n positions, `<boi>` and `<eoi>` included, and its codes."""

    block: np.ndarray  # (n,) 0 at <boi>, k-1 at scale k, K at <eoi>
    scale: np.ndarray  # (n,) k at vision inputs, 0 at <boi> and <eoi>
    scales: np.ndarray  # (n,) K, but 0 at <eoi>
    spatial: np.ndarray  # (2, n) p_x and p_y at vision inputs, 0 at <boi> and <eoi>
    cuts: tuple[int, ...]  # (K + 1,) where scale k begins among the codes and, <boi> taking the place of scale 1, here
    code_scale: np.ndarray  # (sum n_k,) k of every code
    weights: np.ndarray  # (sum n_k,) loss weight of every code


@lru_cache(maxsize=1024)
def _picture(grids: tuple[Grid, ...], rope_range: float, alpha: float) -> _Picture:
    count, sizes = len(grids), picture_blocks(grids)
    codes = [h * w for h, w in grids]
    block = np.repeat(np.arange(count + 1), sizes)
    end = np.zeros((2, 1))
    return _Picture(
        block=block,
        scale=np.repeat([0, *range(2, count + 1), 0], sizes),
        scales=np.where(block < count, count, 0),
        spatial=np.concatenate([end, *(cells(grid, rope_range) for grid in grids[1:]), end], axis=1),
        cuts=tuple(np.cumsum([0, *codes]).tolist()),
        code_scale=np.repeat(np.arange(1, count + 1), codes),
        weights=np.repeat(scale_weights(grids, alpha), codes),
    )


def _text_ids(text: Text, config: ModelConfig) -> np.ndarray:
    ids = np.asarray(text.ids).astype(np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= config.text_vocab):
        raise ValueError(f"text ids span {ids.min()}..{ids.max()}, the vocabulary is 0..{config.text_vocab - 1}")
    return ids


def _check(picture: Picture, config: ModelConfig) -> None:
    check_grids(picture.grids, config)
    total = sum(h * w for h, w in picture.grids)
    for name, codes in (("inputs", picture.inputs), ("targets", picture.targets)):
        if codes.shape != (total,):
            raise ValueError(f"{name}: {codes.shape} codes, the grids hold {total}")
        if codes.min() < 0 or codes.max() >= config.codes:
            raise ValueError(f"{name}: codes span {codes.min()}..{codes.max()}, the codebook is 0..{config.codes - 1}")
