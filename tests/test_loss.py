"""Loss: the chunked head against full logits, scale weights against reference values, what is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nextloom.model.layout import scale_weights
from nextloom.model.loss import cross_entropy

SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64)


@pytest.mark.parametrize(
    ("count", "first", "last", "share_of_nine"),
    [(12, 52.38, 0.356, None), (16, 148.33, 0.290, 0.487), (18, 344.12, 0.193, 0.413)],
)
def test_scale_weights_of_square_images(count, first, last, share_of_nine) -> None:
    grids = [(side, side) for side in SIDES[:count]]
    sizes = np.array([h * w for h, w in grids])
    weights = scale_weights(grids, 0.9)
    assert weights[0] == pytest.approx(first, abs=0.005)
    assert weights[-1] == pytest.approx(last, abs=0.0005)
    assert weights @ sizes == pytest.approx(sizes.sum())
    assert (scale_weights(grids, 0.0) == 1).all()
    if share_of_nine:
        assert (weights[:9] @ sizes[:9]) / sizes.sum() == pytest.approx(share_of_nine, abs=0.0005)


def problem() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    scale = torch.tensor([0, 1, 2, 2, 2, 3, 3, 0, 0])
    return {
        "hidden_ND": torch.randn(12, 16, requires_grad=True),
        "head_VD": (0.2 * torch.randn(40, 16)).requires_grad_(),
        "rows_S": torch.tensor([0, 1, 2, 4, 5, 6, 7, 9, 11]),
        "targets_S": torch.randint(0, 40, (9,)),
        "weights_S": torch.rand(9) * 5,
        "scale_S": scale,
    }


def test_chunked_head_equals_full_logits_in_loss_and_gradients() -> None:
    got, want = problem(), problem()
    losses = cross_entropy(**got, max_scales=4, held=3 * 40)  # three rows at a time
    losses.total.backward()
    logits = want["hidden_ND"] @ want["head_VD"].T
    reference = F.cross_entropy(logits[want["rows_S"]], want["targets_S"], reduction="none")
    (want["weights_S"] * reference).sum().backward()
    assert losses.rows.detach() == pytest.approx(reference.detach(), abs=1e-6)
    for name in ("hidden_ND", "head_VD"):
        assert (got[name].grad - want[name].grad).abs().max() < 2e-6
    unsupervised = [3, 8, 10]
    assert (got["hidden_ND"].grad[unsupervised] == 0).all()


def test_unchunked_head_equals_chunked() -> None:
    whole, cut = (cross_entropy(**problem(), max_scales=4, held=held) for held in (10**6, 40))
    assert (whole.rows - cut.rows).abs().max() < 1e-6
    assert whole.total.item() == pytest.approx(cut.total.item(), rel=1e-6)


def test_sums_by_scale_and_linearity_in_the_weights() -> None:
    data = problem()
    losses = cross_entropy(**data, max_scales=4)
    assert losses.supervised == 9
    assert losses.scale_counts.tolist() == [3, 1, 3, 2, 0]
    for k in range(5):
        assert losses.scale_sums[k] == pytest.approx(losses.rows[data["scale_S"] == k].sum().item(), abs=1e-5)
    doubled = cross_entropy(**{**data, "weights_S": 2 * data["weights_S"]}, max_scales=4)
    assert doubled.total.item() == pytest.approx(2 * losses.total.item(), rel=1e-6)


def test_a_pack_without_supervision_gives_zero_loss_and_zero_gradients() -> None:
    data = problem()
    for name in ("rows_S", "targets_S", "weights_S", "scale_S"):
        data[name] = data[name][:0]
    losses = cross_entropy(**data, max_scales=4)
    losses.total.backward()
    assert losses.total.item() == 0
    assert (data["head_VD"].grad == 0).all() and (data["hidden_ND"].grad == 0).all()
