"""Layout: the order, positions, visibility and supervision of a pack, against definitions written out by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from nextloom.model.attention import sees
from nextloom.model.config import ModelConfig
from nextloom.model.layout import Layout, lay_out, scale_weights
from nextloom.tokenize.documents import Document, Picture, Text, cost, picture_blocks

CONFIG = ModelConfig(
    text_vocab=50, codes=20, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp=32, rope_range=64.0
)
SQUARE = ((1, 1), (2, 2), (3, 3))
WIDE = ((1, 1), (1, 3), (2, 3))


def picture(grids=SQUARE, seed: int = 0, loss: bool = True, corrected: bool = False) -> Picture:
    draw = np.random.default_rng(seed)
    count = sum(h * w for h, w in grids)
    targets = draw.integers(0, CONFIG.codes, count)
    return Picture(grids, draw.integers(0, CONFIG.codes, count) if corrected else targets, targets, loss=loss)


def text(*ids: int, loss: bool = True) -> Text:
    return Text(np.array(ids, np.uint16), loss=loss)


def brute_force_mask(documents: list[Document], pad_to: int) -> np.ndarray:
    """Who sees whom, position by position, from the words of the specification."""
    owner = []  # (document, segment, part) of each position; parts of text are its tokens
    for d, document in enumerate(documents):
        for s, segment in enumerate(document):
            if isinstance(segment, Text):
                owner += [(d, s, i) for i in range(len(segment.ids))]
            else:
                owner += [(d, s, 0)]
                for k, (h, w) in enumerate(segment.grids[1:], start=1):
                    owner += [(d, s, k)] * (h * w)
                owner += [(d, s, len(segment.grids))]
    owner += [(-1, 0, i) for i in range(pad_to - len(owner))]
    mask = np.zeros((pad_to, pad_to), bool)
    for q in range(pad_to):
        for k in range(pad_to):
            (doc_q, *place_q), (doc_k, *place_k) = owner[q], owner[k]
            same_part = place_q == place_k
            mask[q, k] = doc_q == doc_k and (same_part or k < q)
    return mask


def dense(layout: Layout) -> np.ndarray:
    doc, block = torch.from_numpy(layout.doc), torch.from_numpy(layout.block)
    return sees(doc[:, None], block[:, None], doc, block).numpy()


PACK = [
    [text(1, 2, 3), picture(), text(4, 5), picture(WIDE, 1), picture(SQUARE[:2], 2)],
    [picture(WIDE, 3)],
    [text(7, 8), text(9)],
    [picture(SQUARE[:1], 4), text(1)],
]


def test_visible_rule_equals_the_brute_force_mask_and_the_packers_count() -> None:
    layout = lay_out(PACK, CONFIG, pad_to=70)
    expected = brute_force_mask(PACK, 70)
    assert (dense(layout) == expected).all()
    tokens = pairs = 0
    for document in PACK:
        blocks = [
            size
            for segment in document
            for size in ([1] * len(segment.ids) if isinstance(segment, Text) else picture_blocks(segment.grids))
        ]
        tokens, pairs = tokens + cost(blocks)[0], pairs + cost(blocks)[1]
    real = layout.doc >= 0
    assert (real.sum(), expected[real].sum()) == (tokens, pairs)
    assert layout.lengths == (*(int((layout.doc == d).sum()) for d in range(4)), 70 - tokens)


def test_positions_of_figure_5() -> None:
    layout = lay_out([[picture(), text(1, 2, 3, 4, 5), picture()]], CONFIG)
    one = [0] + [1] * 4 + [2] * 9 + [3]
    assert layout.positions[0].tolist() == one + [4, 5, 6, 7, 8] + [9 + t for t in one]
    assert (layout.positions[0] == layout.block).all()
    inside = layout.scale > 0
    assert (layout.positions[:, ~inside] == layout.positions[0, ~inside]).all()
    fractions = {
        k: sorted({Fraction(float(x) / 64).limit_denominator(100) for x in layout.positions[1, layout.scale == k]})
        for k in (2, 3)
    }
    assert fractions == {2: [Fraction(1, 4), Fraction(3, 4)], 3: [Fraction(1, 6), Fraction(1, 2), Fraction(5, 6)]}


def test_cell_of_a_2x3_grid_stands_at_eq_1() -> None:
    layout = lay_out([[text(1, 2), picture(WIDE)]], CONFIG)
    at = np.flatnonzero(layout.scale == 3)[1]  # cell (0, 1)
    step = 64 / math.sqrt(6)
    assert layout.positions[:, at] == pytest.approx([2 + 2, step * 0.5, step * 1.5], rel=1e-6)


def test_tokens_targets_and_inputs_of_one_document() -> None:
    shown = picture(WIDE, 5, corrected=True)
    layout = lay_out([[text(1, 2), shown, text(3)]], CONFIG, alpha=0.9)
    boi, eoi, first = CONFIG.boi, CONFIG.eoi, CONFIG.code_offset
    assert layout.tokens.tolist() == [1, 2, boi] + [-1] * 9 + [eoi, 3]
    assert layout.scales.tolist() == [0, 0] + [3] * 10 + [0, 0]
    assert layout.rows.tolist() == [0, 1, *range(2, 12), 12]
    assert layout.targets.tolist() == [2, boi, *(first + shown.targets), 3]
    assert layout.target_scale.tolist() == [0, 0, 1] + [2] * 3 + [3] * 6 + [0]
    assert layout.codes.tolist() == shown.inputs[:4].tolist()  # the finest scale is never an input
    assert [(g.source, g.target, g.count) for g in layout.groups] == [((1, 1), (1, 3), 1), ((1, 3), (2, 3), 1)]
    assert layout.vision_rows.tolist() == list(range(3, 12))
    by_scale = scale_weights(WIDE, 0.9)
    assert layout.weights[2:12] == pytest.approx(np.repeat(by_scale, [1, 3, 6]), rel=1e-6)
    assert layout.weights.sum() == pytest.approx(len(layout.rows), rel=1e-6)


def test_equal_resizes_are_grouped_across_images_and_schedules() -> None:
    layout = lay_out([[picture()], [picture(SQUARE[:2], 1), picture(WIDE, 2)]], CONFIG)
    groups = {(g.source, g.target): g.count for g in layout.groups}
    assert groups == {((1, 1), (2, 2)): 2, ((2, 2), (3, 3)): 1, ((1, 1), (1, 3)): 1, ((1, 3), (2, 3)): 1}
    assert sorted(layout.vision_rows) == np.flatnonzero(layout.scale).tolist()


@pytest.mark.parametrize(
    ("document", "text_targets", "code_targets", "boi_targets"),
    [
        pytest.param([text(1, 2, loss=False), picture()], 0, 14, 0, id="text to image"),
        pytest.param([picture(loss=False), text(1, 2)], 2, 0, 0, id="captioning"),
        pytest.param([text(1, 2, loss=False), picture(loss=False), picture()], 0, 14, 0, id="editing"),
        pytest.param([text(1, 2), picture(), text(3), picture()], 2, 28, 2, id="interleaved"),
        pytest.param([text(1), text(2, 3, loss=False), text(4)], 1, 0, 0, id="dialogue"),
        pytest.param([picture()], 0, 14, 0, id="null prompt"),
    ],
)
def test_loss_flags_decide_what_is_supervised(document, text_targets, code_targets, boi_targets) -> None:
    targets = lay_out([document], CONFIG).targets
    assert (targets < CONFIG.text_vocab).sum() == text_targets
    assert (targets == CONFIG.boi).sum() == boi_targets
    assert (targets >= CONFIG.code_offset).sum() == code_targets
    assert CONFIG.eoi not in targets


def test_a_null_prompt_document_begins_with_boi_at_zero() -> None:
    layout = lay_out([[Text(np.zeros(0, np.int64)), picture()]], CONFIG)
    assert layout.tokens[0] == CONFIG.boi
    assert layout.positions[:, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([text(50)], "text ids span 50..50"),
        ([Picture(SQUARE, np.zeros(14, int), np.full(14, 20))], "targets: codes span 20..20"),
        ([Picture(SQUARE, np.zeros(13, int), np.zeros(14, int))], r"inputs: \(13,\) codes, the grids hold 14"),
        ([Picture(((2, 2),), np.zeros(4, int), np.zeros(4, int))], r"the first of them \(1, 1\)"),
        ([text(*range(40))], "take 40 positions, more than pad_to=30"),
    ],
)
def test_what_the_config_does_not_allow_is_refused(document, said) -> None:
    with pytest.raises(ValueError, match=said):
        lay_out([document], CONFIG, pad_to=30)


def test_ids_of_the_published_size() -> None:
    config = ModelConfig.qwen2_5_7b()
    assert (config.boi, config.eoi, config.code_offset) == (152064, 152065, 152066)
    assert (config.code_offset + config.codes, config.vocab) == (184834, 184960)
    with pytest.raises(ValueError, match="sections"):
        ModelConfig(**{**CONFIG.model_dump(), "rope_axes": "sections"})
