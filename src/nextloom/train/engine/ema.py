"""A moving average of the weights: what is saved and judged in place of the last step's.

    average <- d * average + (1 - d) * weights,   d = min(decay, (1 + n) / (10 + n)) after n steps

The second term lets a short training forget its random start. Trainable parameters only: frozen ones are their own
average. It is part of a checkpoint, so a resumed run ends with the same bits. The price: one more copy of the weights
in memory, on every worker, since all compute the same one instead of waiting for it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of a model's trainable parameters.

    Args:
        model: starts as its own average.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {n: p.detach().clone() for n, p in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the weights after `steps` steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for name, parameter in _trained(model):
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from saved values, which must name every trained parameter."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Generator[None, None, None]:
        """The model with averaged weights inside the block, and its own again after it."""
        own = {name: parameter.detach().clone() for name, parameter in _trained(model)}
        self.copy_to(model)
        try:
            yield
        finally:
            _copy(own, model)

    def copy_to(self, model: nn.Module) -> None:
        """Put the averaged weights into the model for good."""
        _copy(self.values, model)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, parameter in _trained(model):
        parameter.copy_(values[name])
