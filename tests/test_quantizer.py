"""The quantiser against a restatement of its definition, its self-correction, and its bit rule."""

import pytest
import torch
from torch.nn import functional as F

from nextloom.tokenize.quantizer import Correction, Quantizer, best, blocks, drop_scales, nearest
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule

SQUARE, WIDE = schedule(FINAL_GRIDS[20], 6), schedule(FINAL_GRIDS[3], 6)
SEMANTIC, PIXEL, WEIGHT, BETA = 6, 4, 0.7, 0.4


def make(codes=64, seed=0):
    torch.manual_seed(seed)
    quantizer = Quantizer(codes, SEMANTIC, PIXEL, pixel_weight=WEIGHT, beta=BETA)
    with torch.no_grad():  # used row-normalised, so their lengths must not matter
        quantizer.semantic.mul_(torch.rand(codes, 1) + 0.5)
        quantizer.pixel.mul_(torch.rand(codes, 1) * 3 + 0.5)
    return quantizer


def features(count, grids, seed=1):
    torch.manual_seed(seed)
    return 2 * torch.randn(count, SEMANTIC + PIXEL, *grids[-1])


def distances(rest, semantic, pixel):
    """(cells, V) distances of the normalised remainder at one grid, by the definition."""
    u = rest.flatten(1).t()
    us, up = (F.normalize(part, dim=1) for part in u.split([SEMANTIC, PIXEL], dim=1))
    return (us[:, None] - semantic).square().sum(-1) + WEIGHT * (up[:, None] - pixel).square().sum(-1)


def restated(z, grids, quantizer, inputs=None):
    """The definition with plain distance matrices; follows `inputs` where given.

    Returns:
        targets (N,), features like z (D, H, W), and (K,) mean squared distance of each scale's codes to what they code.
    """
    semantic, pixel = F.normalize(quantizer.semantic, dim=1), F.normalize(quantizer.pixel, dim=1)
    rest, total, targets, errors, at = z.clone(), torch.zeros_like(z), [], [], 0
    for h, w in grids:
        pooled = F.interpolate(rest[None], size=(h, w), mode="area")[0]
        target = distances(pooled, semantic, pixel).argmin(1)
        used = target if inputs is None else inputs[at : at + h * w]
        q = torch.cat([semantic[used], pixel[used]], dim=1).t().reshape(1, -1, h, w)
        u = torch.cat([part / part.norm(dim=0) for part in pooled.split([SEMANTIC, PIXEL])])
        errors.append((u - q[0]).square().mean())
        spread = F.interpolate(q, size=z.shape[-2:], mode="bicubic", align_corners=False)[0]
        rest, total, at = rest - spread, total + spread, at + h * w
        targets.append(target)
    return torch.cat(targets), total, torch.stack(errors)


@pytest.mark.parametrize("grids", [SQUARE, WIDE], ids=["square", "wide"])
def test_equals_an_independent_restatement(grids):
    quantizer, z = make(), features(5, grids)
    inputs, targets = quantizer.encode(z, grids)
    with torch.no_grad():
        expected = [restated(picture, grids, quantizer) for picture in z]
        trained = quantizer(z, grids)
        assert torch.equal(targets, torch.stack([e[0] for e in expected]))
        assert torch.equal(inputs, targets)
        assert torch.equal(trained.indices, targets)
        total = torch.stack([e[1] for e in expected])
        torch.testing.assert_close(quantizer.features(targets, grids), total, atol=1e-5, rtol=0)
        torch.testing.assert_close(trained.features, total, atol=1e-5, rtol=0)
        errors = torch.stack([e[2] for e in expected]).mean(dim=0)  # a scale's mean is over pictures, cells, dimensions
        torch.testing.assert_close(trained.loss, (1 + BETA) * errors.sum() / 6)


@pytest.mark.parametrize("grids", [SQUARE, WIDE], ids=["square", "wide"])
def test_every_stored_target_is_the_nearest_code_of_the_remainder_its_inputs_left(grids):
    quantizer, z = make(), features(4, grids)
    inputs, targets = quantizer.encode(z, grids, Correction(p=0.6, top_k=10, tau=1.0, seed=3), keys=list("abcd"))
    clean, _ = quantizer.encode(z, grids)
    with torch.no_grad():
        rebuilt = torch.stack([restated(z[i], grids, quantizer, inputs[i])[0] for i in range(4)])
    assert torch.equal(targets, rebuilt)
    assert 0.3 < (inputs != targets).float().mean() < 0.6
    assert (clean != targets).float().mean() > 0.2  # clean targets must never be paired with drawn inputs


@pytest.mark.parametrize("correction", [Correction(p=0.0), Correction(p=1.0, top_k=1)], ids=["p=0", "top_k=1"])
def test_no_chance_of_another_code_is_the_clean_encoding(correction):
    quantizer, z = make(), features(3, SQUARE)
    clean, _ = quantizer.encode(z, SQUARE)
    inputs, targets = quantizer.encode(z, SQUARE, correction, keys=list("abc"))
    assert torch.equal(inputs, clean)
    assert torch.equal(targets, clean)


def test_indices_do_not_depend_on_batch_or_order():
    quantizer, z = make(codes=512), features(37, SQUARE)
    keys, correction = [f"row{i}" for i in range(37)], Correction(seed=5)
    inputs, targets = quantizer.encode(z, SQUARE, correction, keys)
    order = torch.randperm(37)
    shuffled = quantizer.encode(z[order], SQUARE, correction, [keys[i] for i in order])
    assert torch.equal(shuffled[0], inputs[order])
    assert torch.equal(shuffled[1], targets[order])
    for i in (0, 17, 36):
        alone = quantizer.encode(z[i : i + 1], SQUARE, correction, keys[i : i + 1])
        assert torch.equal(alone[0][0], inputs[i])
        assert torch.equal(alone[1][0], targets[i])
    again, _ = quantizer.encode(z, SQUARE, Correction(seed=6), keys)
    assert not torch.equal(again, inputs)


def test_inputs_are_drawn_with_the_stated_probabilities():
    quantizer = make(codes=16)
    z = features(1, [(40, 40)])
    grids, correction = [(40, 40)], Correction(p=1.0, top_k=4, tau=0.5)
    with torch.no_grad():
        d = distances(z[0], F.normalize(quantizer.semantic, dim=1), F.normalize(quantizer.pixel, dim=1))
    near = d.topk(4, dim=1, largest=False)
    expected = (-near.values / 0.5).softmax(dim=1).mean(dim=0)
    inputs, _ = quantizer.encode(z, grids, correction, ["k"])
    place = (near.indices == inputs[0][:, None]).float()
    assert place.sum() == 1600  # always one of the four nearest
    torch.testing.assert_close(place.mean(dim=0), expected, atol=0.03, rtol=0)


def test_equal_codes_resolve_to_the_lowest_index():
    u = F.normalize(torch.randn(50, 8), dim=1)
    table = F.normalize(torch.randn(20, 8), dim=1)
    ranked = blocks(torch.cat([table, table]).t())
    assert torch.equal(nearest(u, ranked), (u @ table.t()).argmax(1))
    scores, index = best(u, ranked, 4)
    assert torch.equal(index[:, 0], nearest(u, ranked))
    assert torch.equal(index[:, 1], index[:, 0] + 20)
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    same = blocks(table[:1].expand(3000, 8).t())  # more equal codes than are wanted, over three blocks
    assert torch.equal(nearest(u, same), torch.zeros(50, dtype=torch.long))
    assert torch.equal(best(u, same, 4)[1], torch.arange(4).expand(50, 4))


def test_large_codebooks_are_searched_in_blocks():
    u = F.normalize(torch.randn(300, 8), dim=1)
    codes = F.normalize(torch.randn(32_768, 8), dim=1)
    ranked, scores = blocks(codes.t()), u.double() @ codes.double().t()
    order = scores.argsort(dim=1, descending=True)[:, :10]
    found, index = best(u, ranked, 10)
    assert torch.equal(index[:, 0], nearest(u, ranked))
    differs = index != order
    gap = (scores.gather(1, index) - scores.gather(1, order)).abs()
    assert not (differs & (gap > 1e-6)).any(), "another code only where two tie to float32"
    assert differs.float().mean() < 0.01
    assert torch.allclose(found.double(), scores.gather(1, index), atol=1e-6)


def test_gradients_are_straight_through_and_the_loss_is_l_vq():
    quantizer, grids = make(), [(1, 1)]
    z = features(3, grids).requires_grad_()
    out = quantizer(z, grids)
    u = torch.cat([F.normalize(part, dim=1) for part in z.split([SEMANTIC, PIXEL], dim=1)], dim=1)
    q = quantizer.lookup(out.indices)[:, 0, :, None, None]
    torch.testing.assert_close(out.loss, (1 + BETA) * (q - u).square().mean())
    (got,) = torch.autograd.grad(out.features.sum(), z, retain_graph=True)
    (expected,) = torch.autograd.grad(u.sum(), z)
    torch.testing.assert_close(got, expected)
    out.loss.backward()
    assert quantizer.pixel.grad is not None
    assert quantizer.pixel.grad.abs().sum() > 0


def test_scale_dropout_keeps_the_first_scale_and_half_of_the_rest():
    seen = {}
    for step in range(200):
        kept = drop_scales(SQUARE, 0.5, ("scales", 0, step))
        assert kept == drop_scales(SQUARE, 0.5, ("scales", 0, step))
        assert kept[0] == (1, 1)
        assert kept == sorted(kept)
        assert len(kept) == 6 - 2
        for grid in kept[1:]:
            seen[grid] = seen.get(grid, 0) + 1
    assert set(seen) == set(SQUARE[1:])
    assert max(seen.values()) < 1.4 * min(seen.values())
    assert drop_scales(SQUARE, 0.0, ("scales", 1)) == list(SQUARE)


def test_autocast_does_not_reach_the_quantiser():
    quantizer, z = make(), features(2, SQUARE)
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantizer(z, SQUARE)
    assert inside.features.dtype == torch.float32
    assert torch.equal(inside.indices, quantizer(z, SQUARE).indices)


def test_features_that_are_not_finite_are_refused():
    z = features(1, SQUARE)
    z[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        make().encode(z, SQUARE)
