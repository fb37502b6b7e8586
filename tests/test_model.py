"""Decoder: equal to Hugging Face's Qwen2.5-VL on text and on packs with images, and blind where it must be.

Past 400 lines because the two models are built and compared part by part in one place.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding, Qwen2_5_VLTextModel

from nextloom.errors import UserError
from nextloom.model.attention import attend, mask_rule, sees, visible
from nextloom.model.config import ModelConfig
from nextloom.model.flops import cost_model, forward_flops, layer_weights, paper_flops
from nextloom.model.hf import load_hf, to_hf
from nextloom.model.layout import Group, lay_out
from nextloom.model.loss import cross_entropy
from nextloom.model.rope import pair_axes, rope
from nextloom.model.transformer import Batch, NextFlow, resize
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
    sections=(2, 3, 3),
    pad_vocab=32,
)
SQUARE = ((1, 1), (2, 2), (3, 3))
WIDE = ((1, 1), (1, 3), (2, 4))
SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)


def picture(grids=SQUARE, seed: int = 0, loss: bool = True) -> Picture:
    draw = np.random.default_rng(seed)
    count = sum(h * w for h, w in grids)
    return Picture(grids, draw.integers(0, CONFIG.codes, count), draw.integers(0, CONFIG.codes, count), loss=loss)


def text(count: int, seed: int = 0, loss: bool = True) -> Text:
    return Text(np.random.default_rng(seed).integers(0, CONFIG.text_vocab, count), loss=loss)


def randomised(config: ModelConfig = CONFIG, **options) -> NextFlow:
    """A model in which no parameter is at a default that would hide a mistake."""
    torch.manual_seed(0)
    model = NextFlow(config, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if parameter.dim() == 1 else 0.15
            parameter.normal_(std=scale).add_(1.0 if name.endswith("norm.weight") else 0.0)
    return model


def batch_of(*documents: Document, alpha: float = 0.0) -> Batch:
    return Batch.of(lay_out(documents, CONFIG, alpha))


def swap(codes: np.ndarray, at: int) -> np.ndarray:
    out = codes.copy()
    out[at] = (out[at] + 1) % CONFIG.codes
    return out


PACK = ([text(5), picture(), text(3, 1)], [picture(WIDE, 1)], [text(9, 2)], [text(2, 3), picture(WIDE, 4)])


# Hugging Face as an oracle ----------------------------------------------------------------------------------


def qwen(config: ModelConfig) -> Qwen2_5_VLTextModel:
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=config.text_vocab,
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=4096,
            rms_norm_eps=config.rms_eps,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_section": list(config.sections),
            },
            use_sliding_window=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()


def with_weights_of(model: NextFlow) -> Qwen2_5_VLTextModel:
    theirs = qwen(model.config)
    state = to_hf(model, prefix="")
    state.pop("lm_head.weight")
    theirs.load_state_dict(state)
    return theirs


@torch.no_grad()
def test_text_equals_qwen() -> None:
    model = randomised()
    batch = batch_of([text(50)])
    theirs = with_weights_of(model)(input_ids=batch.token_ids[None]).last_hidden_state[0]
    assert (model.hidden(batch) - theirs).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("axes", ["sections", "interleaved"])
def test_pack_with_images_equals_qwen(axes, monkeypatch) -> None:
    model = randomised(CONFIG.model_copy(update={"rope_axes": axes}))
    if axes == "interleaved":

        def recompose(self, freq):  # (3, B, N, pairs): pair i from axis i mod 3
            half = torch.stack([freq[i % 3, ..., i] for i in range(freq.shape[-1])], dim=-1)
            return torch.cat((half, half), dim=-1)

        monkeypatch.setattr(Qwen2_5_VLRotaryEmbedding, "recomposition_frequencies", recompose)
    batch = batch_of(*PACK)
    mask = sees(batch.doc[:, None], batch.block[:, None], batch.doc, batch.block)
    theirs = with_weights_of(model)(
        inputs_embeds=model.embed(batch), position_ids=batch.positions[:, None], attention_mask=mask[None, None]
    ).last_hidden_state[0]
    assert (model.hidden(batch) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("prefix", ["model.language_model.", "model.", ""])
def test_hugging_face_round_trip(prefix) -> None:
    ours, fresh = randomised(), NextFlow(CONFIG)
    checkpoint = {"visual.blocks.0.norm1.weight": torch.zeros(3), **to_hf(ours, prefix)}
    load_hf(fresh, checkpoint)
    batch, rows = batch_of([text(20)]), CONFIG.text_vocab
    assert torch.equal(ours.hidden(batch), fresh.hidden(batch))
    assert torch.equal(ours.logits(batch)[:, :rows], fresh.logits(batch)[:, :rows])
    back = to_hf(fresh, prefix)
    assert {name: True for name in back} == {name: torch.equal(back[name], checkpoint[name]) for name in back}
    with_weights = {f"{prefix}{name}" for name in qwen(CONFIG).state_dict()}
    assert set(back) == with_weights | {"lm_head.weight"}


def test_checkpoint_of_another_size_is_refused() -> None:
    narrow = NextFlow(CONFIG.model_copy(update={"mlp": 64}))
    with pytest.raises(UserError, match="the model wants"):
        load_hf(narrow, to_hf(NextFlow(CONFIG)))


# What depends on what ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 2])
def test_a_changed_code_reaches_its_block_and_no_earlier_one(scale) -> None:
    model = randomised()
    shown = picture()
    at = {1: 0, 2: 3}[scale]  # a code of this scale is an input of the next
    changed = dataclasses.replace(shown, inputs=swap(shown.inputs, at))
    before, after = (model.logits(batch_of([text(4), p, text(3, 1)])) for p in (shown, changed))
    layout = lay_out([[text(4), shown, text(3, 1)]], CONFIG)
    first = np.flatnonzero(layout.scale == scale + 1)
    assert torch.equal(before[: first[0]], after[: first[0]])
    assert (before[first[0] :] != after[first[0] :]).any(dim=1).all()


@torch.no_grad()
def test_targets_and_the_last_scale_change_no_logit() -> None:
    model = randomised()
    shown = picture()
    logits = model.logits(batch_of([text(4), shown]))
    for changed in (
        dataclasses.replace(shown, targets=swap(shown.targets, 7)),
        dataclasses.replace(shown, inputs=swap(shown.inputs, 9)),
    ):
        assert torch.equal(model.logits(batch_of([text(4), changed])), logits)


@torch.no_grad()
def test_packed_documents_do_not_see_each_other() -> None:
    model = randomised()
    other = [picture(WIDE, 9)]
    before, after = (model.logits(batch_of(PACK[0], member, *PACK[2:])) for member in (PACK[1], other))
    doc = torch.from_numpy(lay_out(PACK, CONFIG).doc)
    assert torch.equal(before[doc != 1], after[doc != 1])
    assert not torch.equal(before[doc == 1], after[doc == 1])
    alone = model.logits(batch_of(PACK[3]))
    assert (alone - before[doc == 3]).abs().max() < 1e-5


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model = randomised()
    batch = batch_of(*PACK)
    padded = Batch.of(lay_out(PACK, CONFIG, pad_to=len(batch.doc) + 7))
    difference = model.logits(padded)[: len(batch.doc)] - model.logits(batch)
    assert difference.abs().max() < 1e-5
    assert model.logits(padded).isfinite().all()


@torch.no_grad()
def test_number_of_scales_reaches_boi_and_vision_but_no_text() -> None:
    model = randomised()
    batch = batch_of(PACK[0])
    inputs = model.embed(batch)[0]
    model.length_proj.weight.zero_()
    moved = (model.embed(batch)[0] != inputs).any(dim=1)
    assert moved.tolist() == (batch.scales > 0).tolist()
    assert moved.sum() == 1 + 4 + 9


def test_every_parameter_has_a_gradient_even_without_pictures() -> None:
    model = randomised()
    for documents in ([[text(9)]], [[picture()]]):
        model.zero_grad(set_to_none=True)
        model(batch_of(*documents)).total.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_recompute_gives_the_same_loss_and_gradients() -> None:
    results = []
    for recompute in (False, True):
        model = randomised(recompute=recompute)
        losses = model(batch_of(*PACK, alpha=0.9))
        losses.total.backward()
        results.append((losses.total.detach(), *(p.grad for p in model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("held", [10**6, 5 * CONFIG.vocab])
def test_bf16_autocast_stays_close_to_fp32(held, monkeypatch) -> None:
    monkeypatch.setattr("nextloom.model.transformer.cross_entropy", partial(cross_entropy, held=held))
    torch.manual_seed(0)
    model, batch = NextFlow(CONFIG), batch_of(*PACK)
    exact = model(batch).total.item()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    losses.total.backward()
    assert losses.rows.dtype == torch.float32
    assert losses.total.item() == pytest.approx(exact, rel=2e-3)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_rounded_positions_are_refused() -> None:
    batch = batch_of([picture()])
    with pytest.raises(ValueError, match="cast_forward_inputs=False"):
        NextFlow(CONFIG)(dataclasses.replace(batch, positions=batch.positions.bfloat16()))


def test_losses_cover_what_the_layout_supervises() -> None:
    model, batch = randomised(), batch_of(*PACK, alpha=0.9)
    losses = model(batch)
    logits = model.logits(batch)
    reference = F.cross_entropy(logits[batch.rows], batch.targets, reduction="none")
    assert (losses.rows - reference).abs().max() < 1e-5
    assert losses.total.item() == pytest.approx((batch.weights @ reference).item(), rel=1e-5)
    assert losses.supervised == len(batch.rows) == losses.scale_counts.sum()


# Parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [((1, 1), (2, 2)), ((1, 3), (2, 4)), ((4, 5), (7, 6)), ((3, 3), (3, 3))])
def test_resize_is_torchs_bicubic(source, target) -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, source[0] * source[1], 5)
    images = maps.unflatten(1, source).permute(0, 3, 1, 2)
    want = F.interpolate(images, target, mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    assert (resize(maps, source, target) - want).abs().max() < 1e-5


@torch.no_grad()
def test_vision_inputs_are_codes_resized_then_connected() -> None:
    model = randomised()
    codes = torch.randint(0, CONFIG.codes, (2, 3), generator=torch.Generator().manual_seed(0))
    got = model.vision(codes.flatten(), [Group((1, 3), (2, 4), 2)], torch.full((16,), 3)).unflatten(0, (2, 8))
    images = model.code_embed.weight[codes].unflatten(1, (1, 3)).permute(0, 3, 1, 2)
    resized = F.interpolate(images, (2, 4), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    assert (got - (model.connector(resized) + model.scale_embed.weight[2])).abs().max() < 1e-5


def test_code_vectors_start_from_the_codebook_or_refuse_it() -> None:
    model = NextFlow(CONFIG)
    raw = torch.randn(CONFIG.codes, CONFIG.code_dim, generator=torch.Generator().manual_seed(1))
    unit = torch.cat([F.normalize(part, dim=1) for part in raw.split((6, 4), dim=1)], dim=1)
    model.init_codes(unit)
    assert torch.equal(model.code_embed.weight, unit)
    with pytest.raises(ValueError, match="not of unit norm"):
        model.init_codes(raw)
    with pytest.raises(ValueError, match=r"expected \(30, 10\)"):
        model.init_codes(unit[:, :8])


def test_rope_of_text_does_not_depend_on_the_axes() -> None:
    sections = CONFIG.model_copy(update={"rope_axes": "sections"})
    text_positions = torch.arange(300.0).expand(1, 3, -1)
    mixed = batch_of(*PACK).positions[None]
    for positions, equal in ((text_positions, True), (mixed, False)):
        (cos, sin), (cos_s, sin_s) = rope(positions, CONFIG), rope(positions, sections)
        assert torch.equal(cos, cos_s) is torch.equal(sin, sin_s) is equal
    assert pair_axes(CONFIG) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert pair_axes(sections) == [0, 0, 1, 1, 1, 2, 2, 2]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_backends_equal_each_other() -> None:
    layout = lay_out(PACK, CONFIG, pad_to=80)
    doc, block = torch.from_numpy(layout.doc), torch.from_numpy(layout.block)
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 80, 16), torch.randn(1, 2, 80, 16), torch.randn(1, 2, 80, 16)
    seen = {name: visible(doc, block, layout.lengths, name) for name in ("sdpa_docs", "sdpa_dense", "flex")}
    docs, dense, flex = (attend(q, k, v, seen[name]) for name in seen)
    assert (docs - dense).abs().max() < 1e-5
    assert (flex - dense).abs().max() < 1e-5
    at = torch.arange(80)
    rule = mask_rule(doc, block)(torch.tensor(0), torch.tensor(0), at[:, None], at)
    assert torch.equal(rule, seen["sdpa_dense"].masks[0])


def test_flex_on_cpu_is_refused_when_gradients_are_wanted() -> None:
    with pytest.raises(UserError, match="sdpa_docs"):
        randomised(backend="flex")(batch_of(*PACK))


# FLOPs ------------------------------------------------------------------------------------------------------


def test_paper_flops_of_eq_9_to_11() -> None:
    diffusion = paper_flops([4096] * 18, cached=False)
    assert (diffusion.projections + diffusion.mlp, diffusion.scores) == (884_736, 1_207_959_552)
    printed = paper_flops([s * s for s in (*SIDES[:9], 10, *SIDES[9:])], cached=True)
    assert (printed.projections + printed.mlp, printed.scores) == (122_208, 256_215_912)
    true = paper_flops([s * s for s in SIDES], cached=True)
    assert (true.projections + true.mlp, true.scores) == (121_008, 252_142_312)
    assert diffusion.at(2048) == pytest.approx(6.18e12, rel=1e-3)
    assert printed.at(2048) == pytest.approx(1.04e12, rel=4e-3)
    ratio = {(cost, h): diffusion.at(h) / cost.at(h) for cost in (printed, true) for h in (2048, 4096)}
    expected = {(printed, 2048): 5.96, (printed, 4096): 6.38, (true, 2048): 6.04, (true, 4096): 6.46}
    assert ratio == pytest.approx(expected, abs=0.005)
    parts = {cost: (diffusion.mlp / cost.mlp, diffusion.scores / cost.scores) for cost in (printed, true)}
    assert parts[printed] == pytest.approx((7.24, 4.71), abs=0.005)
    assert parts[true] == pytest.approx((7.31, 4.79), abs=0.005)


@pytest.mark.parametrize(
    ("count", "tokens", "pairs", "forward", "train", "recomputed"),
    [
        (12, 1_001, 572_781, (13.06, 0.23, 1.33), 43.9, 57.2),
        (16, 3_785, 8_312_397, (49.40, 3.34, 5.01), 173.2, 226.0),
        (18, 10_185, 64_059_213, (132.92, 25.71, 13.49), 516.4, 675.0),
    ],
)
def test_true_flops_of_a_7b_sample(count, tokens, pairs, forward, train, recomputed) -> None:
    config = ModelConfig.qwen2_5_7b()
    grids = tuple((s, s) for s in SIDES[:count])
    image = np.zeros(sum(h * w for h, w in grids), int)
    layout = lay_out([[Text(np.zeros(100, int)), Picture(grids, image, image)]], config)
    sizes = np.bincount(layout.block)
    assert (len(layout.doc), int(sizes @ sizes.cumsum())) == (tokens, pairs)
    flops = forward_flops(config, tokens, pairs, tokens)
    tera = [part / 1e12 for part in (flops.linear, flops.attention, flops.head)]
    assert tera == pytest.approx(forward, abs=0.02)
    assert flops.train(recompute=False) / 1e12 == pytest.approx(train, abs=0.15)
    assert flops.train(recompute=True) / 1e12 == pytest.approx(recomputed, abs=0.15)
    a, b = cost_model(config)
    assert a * tokens + b * pairs == flops.train(recompute=True)


def test_published_weights_per_layer_and_flops_per_pair() -> None:
    config = ModelConfig.qwen2_5_7b()
    assert layer_weights(config) == 233_046_016
    assert forward_flops(config, 0, 1, 0).attention == 401_408
    head = forward_flops(config, 0, 0, 1).head
    assert head == pytest.approx(1.325e9, rel=1e-3)


@torch.no_grad()
def test_flops_equal_what_torch_counts() -> None:
    model = randomised(backend="sdpa_dense")
    batch = batch_of(*PACK)
    size, dense = len(batch.doc), visible(batch.doc, batch.block, batch.lengths, "sdpa_dense")
    x, turn = model.embed(batch), rope(batch.positions[None], CONFIG)

    def look(q, k, v):
        return attend(q, k, v, dense)

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.lm_head(model.decode(x, turn, [look] * CONFIG.layers))
    assert counted.get_total_flops() == forward_flops(CONFIG, size, size * size, size).total
