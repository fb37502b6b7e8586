"""Generation: the cache against the whole forward, guidance against its definition, draws against their batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nextloom.model.config import ModelConfig
from nextloom.model.generate import Stream, choose, draw, guided, uniforms
from nextloom.model.layout import lay_out
from nextloom.model.transformer import Batch, NextFlow
from nextloom.tokenize.documents import Document, Picture, Text

CONFIG = ModelConfig(
    text_vocab=60,
    codes=30,
    semantic_dim=6,
    pixel_dim=4,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp=96,
    pad_vocab=32,
)
GRIDS = ((1, 1), (1, 2), (2, 3), (3, 5))
COUNT = 1 + 2 + 6 + 15
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [], [6, 5, 3, 5, 8, 9, 7]]
FIRST = CONFIG.code_offset


@pytest.fixture(scope="module")
def model() -> NextFlow:
    torch.manual_seed(0)
    model = NextFlow(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.15).add_(1.0 if name.endswith("norm.weight") else 0.0)
    return model


def whole_forward(model: NextFlow, prompt: Document, codes: np.ndarray, grids=GRIDS) -> torch.Tensor:
    """(sum n_k, codes) logits of an image after `prompt`, by one forward of the training document."""
    layout = lay_out([[*prompt, Picture(grids, codes, codes)]], CONFIG)
    rows = layout.rows[layout.targets >= FIRST][-len(codes) :]
    with torch.inference_mode():
        return model.logits(Batch.of(layout))[rows, FIRST : FIRST + CONFIG.codes]


def split(codes: np.ndarray, grids=GRIDS) -> list[np.ndarray]:
    return np.split(codes, np.cumsum([h * w for h, w in grids])[:-1])


def uncached_greedy(model: NextFlow, prompt: list[int], guidance: float) -> np.ndarray:
    """Scale by scale, each from a whole forward of everything so far; later scales are not visible yet."""
    codes, start = np.zeros(COUNT, np.int64), 0
    for k, (h, w) in enumerate(GRIDS):
        conditional = whole_forward(model, [Text(np.array(prompt, int))], codes)
        null = whole_forward(model, [], codes)
        g = guidance * k / (len(GRIDS) - 1)
        logits = (1 + g) * conditional - g * null
        codes[start : start + h * w] = logits[start : start + h * w].argmax(-1)
        start += h * w
    return codes


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_cached_generation_equals_uncached(model, guidance) -> None:
    drawn = draw(model, PROMPTS, GRIDS, guidance=guidance, temperature=0)
    for prompt, codes in zip(PROMPTS, drawn, strict=True):
        assert codes.tolist() == uncached_greedy(model, prompt, guidance).tolist()
    assert len({tuple(codes) for codes in drawn}) == len(PROMPTS)  # the prompt matters


@torch.inference_mode()
def test_stream_logits_equal_the_training_forward(model) -> None:
    codes = np.random.default_rng(0).integers(0, CONFIG.codes, (len(PROMPTS), COUNT))
    scales = [torch.from_numpy(np.stack(parts)) for parts in zip(*(split(row) for row in codes), strict=True)]
    stream = Stream(model, PROMPTS, GRIDS)
    got = torch.cat([stream.step(before) for before in (None, *scales[:-1])], dim=1)
    for row, (prompt, image) in enumerate(zip(PROMPTS, codes, strict=True)):
        assert (got[row] - whole_forward(model, [Text(np.array(prompt, int))], image)).abs().max() < 1e-5


@torch.inference_mode()
def test_prompt_with_an_image_is_a_condition(model) -> None:
    draws = np.random.default_rng(1)
    source = [Picture(GRIDS[:3], *draws.integers(0, CONFIG.codes, (2, 9)), loss=False) for _ in range(2)]
    prompts = [[source[0], Text(np.array([1, 2, 3]))], [Text(np.array([4])), source[1]]]
    stream = Stream(model, prompts, GRIDS[:2])
    codes = draws.integers(0, CONFIG.codes, (2, 3))
    got = torch.cat([stream.step(), stream.step(torch.from_numpy(codes[:, :1]))], dim=1)
    for row, prompt in enumerate(prompts):
        want = whole_forward(model, prompt, codes[row], GRIDS[:2])
        assert (got[row] - want).abs().max() < 1e-5


@torch.inference_mode()
def test_null_stream_is_a_null_prompt_document(model) -> None:
    image = np.zeros(COUNT, int)
    layout = lay_out([[Picture(GRIDS, image, image)]], CONFIG)
    stream = Stream(model, [[]], GRIDS)
    positions = np.concatenate([stream.positions(k)[0] for k in range(1, 5)], axis=1)
    assert layout.tokens[0] == CONFIG.boi
    assert np.abs(positions - layout.positions[:, :-1]).max() < 1e-5
    assert positions[:, 0].tolist() == [0, 0, 0]


def test_no_guidance_is_the_conditional_stream_alone(model) -> None:
    conditional = torch.randn(2, 3, 5)
    assert torch.equal(guided(conditional, torch.randn(2, 3, 5), 0.0), conditional)
    plain = draw(model, PROMPTS, GRIDS, seed=1)
    strong = draw(model, PROMPTS, GRIDS, seed=1, guidance=4.0)
    assert [a.tolist() for a in plain] != [b.tolist() for b in strong]
    # the ramp starts at zero: scale 1 is drawn from the conditional stream whatever the guidance
    assert [a[0] for a in plain] == [b[0] for b in strong]


@torch.inference_mode()
def test_empty_prompt_has_equal_logits_for_every_guidance(model) -> None:
    streams = [Stream(model, [[], []], GRIDS) for _ in range(2)]
    codes = None
    for _ in GRIDS:
        conditional, null = (stream.step(codes) for stream in streams)
        for strength in (0.0, 1.5, 7.0):
            assert torch.equal(guided(conditional, null, strength), conditional)
        codes = conditional.argmax(-1)
    images = [draw(model, [[]], GRIDS, guidance=g, seed=3)[0].tolist() for g in (0.0, 2.0, 7.0)]
    assert images[0] == images[1] == images[2]


def test_a_sample_does_not_depend_on_its_batch(model) -> None:
    options = {"guidance": 2.0, "top_k": 12, "top_p": 0.9, "seed": 5}
    together = draw(model, PROMPTS, GRIDS, keys=[10, 11, 12, 13], **options)
    assert {codes.shape for codes in together} == {(COUNT,)}
    for row in range(len(PROMPTS)):
        alone = draw(model, [PROMPTS[row]], GRIDS, keys=[10 + row], **options)
        assert alone[0].tolist() == together[row].tolist()
    twice = draw(model, [PROMPTS[0]] * 2, GRIDS, keys=[10, 99], **options)
    assert twice[0].tolist() == together[0].tolist() != twice[1].tolist()
    assert draw(model, [], GRIDS) == []


def test_greedy_is_temperature_zero_and_top_one(model) -> None:
    cold = draw(model, PROMPTS, GRIDS, temperature=0, seed=1)
    top = draw(model, PROMPTS, GRIDS, top_k=1, seed=2)
    assert [a.tolist() for a in cold] == [b.tolist() for b in top]


def test_draws_follow_the_distribution_and_its_cuts() -> None:
    logits = torch.tensor([0.1, 2.0, 1.0, -1.0, 1.5]).expand(1, 40_000, 5)
    uniform = torch.from_numpy(uniforms([7], 0, 1, 40_000))

    def frequencies(**options) -> list[float]:
        codes = choose(logits, uniform, **{"top_k": 0, "top_p": 1.0, "temperature": 1.0, **options})
        return (torch.bincount(codes[0], minlength=5) / 40_000).tolist()

    probs = logits[0, 0].softmax(0)
    assert frequencies() == pytest.approx(probs.tolist(), abs=0.01)
    assert frequencies(temperature=2.0) == pytest.approx((logits[0, 0] / 2).softmax(0).tolist(), abs=0.01)
    two = (probs[[1, 4]] / probs[[1, 4]].sum()).tolist()
    assert frequencies(top_k=2) == pytest.approx([0, two[0], 0, 0, two[1]], abs=0.01)
    assert frequencies(top_p=0.6) == pytest.approx([0, two[0], 0, 0, two[1]], abs=0.01)  # 0.46 is short of 0.6
    assert frequencies(top_p=0.4) == [0, 1, 0, 0, 0]


def test_uniforms_are_a_function_of_key_seed_scale_and_cell() -> None:
    numbers = uniforms([5, -6, 2**63], seed=1, scale=3, count=1000)
    assert numbers[1].tolist() == uniforms([-6], seed=1, scale=3, count=1000)[0].tolist()
    assert numbers[0, :10].tolist() == uniforms([5], seed=1, scale=3, count=10)[0].tolist()
    assert numbers.min() > 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02
    others = [uniforms([5], seed=2, scale=3, count=1000), uniforms([5], seed=1, scale=4, count=1000), numbers[1:2]]
    assert all(abs(np.corrcoef(numbers[0], other[0])[0, 1]) < 0.1 for other in others)


def test_what_is_learnt_is_drawn_and_drawing_does_not_stop_the_learning() -> None:
    """Training and drawing agree on ids, positions, blocks and resizing: an overfitted image comes back."""
    torch.manual_seed(0)
    model = NextFlow(CONFIG)
    images = np.random.default_rng(3).integers(0, CONFIG.codes, (2, COUNT))
    captions = [[1, 2, 3], [4, 5]]
    documents = [
        [Text(np.array(caption), loss=False), Picture(GRIDS, image, image)]
        for caption, image in zip(captions, images, strict=True)
    ]
    batch = Batch.of(lay_out(documents, CONFIG, alpha=0.9))
    before = draw(model, captions, GRIDS, temperature=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        losses = model(batch)
        (losses.total / losses.supervised).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = draw(model, captions, GRIDS, temperature=0)
    assert [codes.tolist() for codes in before] != images.tolist()
    assert [codes.tolist() for codes in after] == images.tolist()


def test_impossible_options_are_refused(model) -> None:
    with pytest.raises(ValueError, match="top_p=0"):
        draw(model, PROMPTS, GRIDS, top_p=0)
    with pytest.raises(ValueError, match=r"the first of them \(1, 1\)"):
        draw(model, PROMPTS, GRIDS[1:])
