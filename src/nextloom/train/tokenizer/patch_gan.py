"""The discriminator of a tokenizer's training, and a module that holds both, so that one optimiser trains them.

PatchGAN says of every patch (70 pixels at 3 layers) whether it is real. Hinge losses:

    generator       -mean D(x')                                          with D's weights held fixed
    discriminator   (mean relu(1 - D(x)) + mean relu(1 + D(x'))) / 2     with x' held fixed

Neither loss has a gradient in the other's weights, so their sum, differentiated once, gives the gradients of two
optimisers that step at the same time. Gradients are clipped apart (`rivals`), as two optimisers would.

Normalisation is per picture (GroupNorm) where the published network has BatchNorm: statistics over a batch would make
the loss depend on how a step is shared among workers, and the weights on running averages.

Shapes: pictures (B, 3, h, w), logits (B, 1, about h / 8, about w / 8).
Source: Isola et al., pix2pix (arXiv 1611.07004); hinge losses and settings as VQGAN and TokenFlow use them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nextloom.tokenize.documents import Grid
from nextloom.tokenize.tokenizer import Tokenizer, Trained

SLOPE = 0.2
DEVIATION = 0.02
"""Of the first weights."""


class PatchGan(nn.Sequential):
    """The discriminator.

    Args:
        channels: width of the first layer (ndf).
        layers: strided convolutions; each halves the sides and doubles the width, up to 8 times the first.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        width = channels
        for number in range(1, layers + 1):
            wanted, stride = channels * min(2**number, 8), 2 if number < layers else 1
            parts.append(nn.Conv2d(width, wanted, 4, stride, 1, bias=False))
            parts += [nn.GroupNorm(min(32, wanted // 4), wanted), nn.LeakyReLU(SLOPE)]
            width = wanted
        super().__init__(*parts, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, DEVIATION)


class Adversarial(nn.Module):
    """A tokenizer and its discriminator; called like the tokenizer."""

    def __init__(self, tokenizer: Tokenizer, discriminator: PatchGan) -> None:
        super().__init__()
        self.tokenizer, self.discriminator = tokenizer, discriminator

    @property
    def rivals(self) -> list[nn.Module]:
        """Parts whose gradients are clipped apart."""
        return [self.tokenizer, self.discriminator]

    def forward(self, x: Tensor, grids: Sequence[Grid]) -> Trained:
        """As `Tokenizer.forward`."""
        return self.tokenizer(x, grids)

    def losses(self, x: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Generator's and discriminator's loss, means over patches, and the mean logits of both kinds.

        Args:
            x: real pictures.
            drawn: their reconstructions, not clipped, with their gradient.
        """
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        deceived = functional_call(self.discriminator, fixed, (drawn,)).float()
        real, fake = self.discriminator(x).float(), self.discriminator(drawn.detach()).float()
        judged = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        return -deceived.mean(), judged, {"logits_real": real.mean(), "logits_fake": fake.mean()}


def tokenizer_of(model: nn.Module) -> Tokenizer:
    """The tokenizer in a model of `TokenizerTask.build`."""
    inner = model.tokenizer if isinstance(model, Adversarial) else model
    assert isinstance(inner, Tokenizer)
    return inner
