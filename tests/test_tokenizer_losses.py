"""Measures and losses of a tokenizer's training against published code, and which pictures a step shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch.nn import functional as F

from nextloom.errors import UserError
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.train.pictures.ssim import ssim
from nextloom.train.tokenizer.lpips import Lpips
from nextloom.train.tokenizer.patch_gan import Adversarial, PatchGan
from nextloom.train.tokenizer.sampling import Order
from test_training import TOKENIZER
from toy_stages import as_input, noise, published_lpips, write_lpips


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(40, 56), (11, 11), (7, 90)])
def test_ssim_agrees_with_scikit_image(shape):
    a = noise(*(4 * side for side in shape))[: shape[0], : shape[1]].copy()
    b = np.clip(a.astype(int) + np.random.default_rng(1).integers(-40, 41, a.shape), 0, 255).astype(np.uint8)
    uniform = structural_similarity(a, b, channel_axis=-1, data_range=255)
    assert ssim(a, b, "uniform") == pytest.approx(uniform, abs=1e-9)
    if min(shape) >= 11:
        gaussian = structural_similarity(
            a, b, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(a, b) == pytest.approx(gaussian, abs=1e-9)
        assert gaussian != pytest.approx(uniform, abs=1e-3), "the two windows are not one"
    assert ssim(a, a, "uniform") == pytest.approx(1.0)


def test_ssim_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="10 x 30 pixels are fewer than the 11 x 11"):
        ssim(noise(12, 32)[:10, :30], noise(12, 32)[:10, :30])
    with pytest.raises(ValueError, match="of one shape"):
        ssim(noise(12, 32), noise(32, 12))
    with pytest.raises(ValueError, match="uint8"):
        ssim(noise(12, 32) / 255, noise(12, 32) / 255)


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory) -> Path:
    return write_lpips(tmp_path_factory.mktemp("lpips"))


def test_lpips_and_its_gradient_agree_with_the_published_package(lpips_folder):
    theirs = published_lpips(lpips_folder)
    ours = Lpips.load(lpips_folder)
    a = torch.cat([as_input(noise(48, 64, seed)) for seed in (1, 2)])
    b = torch.cat([as_input(noise(48, 64, seed)) for seed in (3, 4)])
    mine, published = a.clone().requires_grad_(), a.clone().requires_grad_()
    found, wanted = ours(mine, b), theirs(published, b).flatten()
    assert wanted.min() > 1e-4, "the distances must be large enough to tell"
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    found.sum().backward(), wanted.sum().backward()
    torch.testing.assert_close(mine.grad, published.grad, rtol=1e-4, atol=1e-9)
    assert not any(p.requires_grad for p in ours.parameters())


def test_lpips_of_equal_and_of_flat_pictures_has_a_finite_gradient(lpips_folder):
    ours = Lpips.load(lpips_folder)
    x = torch.full((1, 3, 32, 32), 1.0, requires_grad=True)
    distance = ours(x, torch.ones(1, 3, 32, 32))
    distance.sum().backward()
    assert distance.item() == 0 and x.grad.isfinite().all()


def test_lpips_weights_that_are_absent_or_of_another_network_are_refused(lpips_folder, tmp_path):
    with pytest.raises(UserError, match=r"there is neither(.|\n)*vgg16-397923af\.pth(.|\n)*lpips==0\.1\.4"):
        Lpips.load(tmp_path)
    (tmp_path / "vgg.pth").write_bytes((lpips_folder / "vgg.pth").read_bytes())
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "vgg16-x.pth")
    with pytest.raises(UserError, match=r"no features\.0\.weight of the right shape"):
        Lpips.load(tmp_path)


def test_the_discriminator_has_the_published_shape():
    gan = PatchGan()
    convolutions = [m for m in gan.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == [
        (3, 64, 2),
        (64, 128, 2),
        (128, 256, 2),
        (256, 512, 1),
        (512, 1, 1),
    ]
    assert gan(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 6, 10)
    field, jump = 1, 1
    for c in convolutions:
        field, jump = field + 3 * jump, jump * c.stride[0]
    assert field == 70


def test_one_backward_gives_the_gradients_of_two_optimisers():
    torch.manual_seed(0)
    model = Adversarial(Tokenizer(TOKENIZER), PatchGan(8, 2))
    x, grids = torch.cat([as_input(noise(32, 32, seed)) for seed in (1, 2)]), schedule(FINAL_GRIDS[20], 4)
    drawn = model(x, grids).picture
    generator, judged, _ = model.losses(x, drawn)
    (F.mse_loss(drawn, x) + 0.5 * generator + judged).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    drawn = model(x, grids).picture  # as published: one loss and one backward for each, restated
    (F.mse_loss(drawn, x) - 0.5 * model.discriminator(drawn).mean()).backward()
    first = {n: p.grad.clone() for n, p in model.tokenizer.named_parameters(prefix="tokenizer") if p.grad is not None}
    model.zero_grad()
    with torch.no_grad():
        drawn = model(x, grids).picture
    real, fake = model.discriminator(x), model.discriminator(drawn)
    (0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())).backward()
    second = {n: p.grad.clone() for n, p in model.discriminator.named_parameters(prefix="discriminator")}
    assert together.keys() == first.keys() | second.keys()
    for name, gradient in {**first, **second}.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    assert all(gradient.norm() > 0 for gradient in second.values())


def epoch(order: Order, number: int) -> list[int]:
    return [n for step in range(order.per_epoch) for n in order.at(number * order.per_epoch + step)[1]]


def test_without_weights_an_epoch_shows_every_picture_once_per_batch_place():
    order = Order({3: range(10), 7: range(10, 16)}, 4, seed=1)
    assert order.per_epoch == 3 + 2
    shown = np.bincount(epoch(order, 0), minlength=16)
    assert shown.min() == 1 and shown.sum() == 20 and shown.max() == 2, "two batches are filled up"
    assert epoch(order, 1) != epoch(order, 0) and epoch(Order({3: range(10), 7: range(10, 16)}, 4, 1), 1) == epoch(
        order, 1
    )


def test_weights_decide_how_often_a_picture_is_shown():
    rng = np.random.default_rng(0)
    weights = np.where(rng.random(60) < 0.3, 3.0, 1.0)
    weights[5], weights[6] = 0.0, 0.25
    buckets = {1: range(40), 2: range(40, 60)}
    order = Order(buckets, 4, seed=2, weights=weights)
    expected = {}
    for row, numbers in buckets.items():
        mine = weights[numbers]
        shown = max(1, round(60 * mine.sum() / weights.sum()))
        expected |= {n: shown * weights[n] / mine.sum() for n in numbers}
        assert sum(1 for s in range(order.per_epoch) if order.at(s)[0] == row) == -(-shown // 4)
    totals = np.zeros(60)
    for number in range(40):
        drawn = {row: order._draw(number, row) for row in buckets}  # before batches are filled up
        counts = np.bincount(np.concatenate(list(drawn.values())), minlength=60)
        for n in range(60):
            assert abs(counts[n] - expected[n]) < 1, (n, counts[n], expected[n])
        totals += counts
        assert set(epoch(order, number)) == {n for n in range(60) if counts[n]}
    assert totals[5] == 0 and 0 < totals[6] < 40
    means = np.array([expected[n] for n in range(60)])
    assert np.abs(totals / 40 - means).max() < 0.25


def test_equal_weights_show_every_picture_once():
    order = Order({1: range(13)}, 13, seed=3, weights=np.full(13, 2.5))
    for number in range(5):
        assert sorted(epoch(order, number)) == list(range(13))
