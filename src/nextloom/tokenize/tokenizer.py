"""The dual-codebook tokenizer: pictures to one index per cell and scale, and back.

Two encoders read the same picture at the same grid. The pixel branch is a VQGAN; the semantic branch (a SigLIP2
tower, at toy size a CNN) is trained to keep a frozen teacher's features. The quantiser picks one index for both
parts, the pixel decoder draws from the pixel part alone, and the semantic decoder restores the teacher's features
from the semantic part. Nothing assumes a shape: a picture has `patch` times the last grid of its schedule, and a
batch holds pictures of one grid.

Shapes: x (B, 3, patch * H, patch * W) in [-1, 1]; z (B, D, H, W); codes (B, N), N = sum over scales of h_k * w_k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nextloom.model_files import load_tensors
from nextloom.op import canonical
from nextloom.tokenize.cnn import Decoder, Encoder
from nextloom.tokenize.documents import Grid
from nextloom.tokenize.quantizer import Correction, Quantizer, bit_rule, refuse_cast
from nextloom.tokenize.semantic import semantic_decoder, two_layers
from nextloom.tokenize.siglip import SiglipTower
from nextloom.tokenize.siglip_config import SiglipConfig
from nextloom.tokenize.tokenizer_config import CONFIG_FILE, WEIGHTS_FILE, TokenizerConfig, read_config


@dataclass(frozen=True, slots=True)
class Trained:
    """One training pass: `picture` like x, `semantic` (B, teacher_dim, H, W), scalar `vq` loss, `indices` (B, n).

    A single-branch tokenizer has no `semantic`.
    """

    picture: Tensor
    semantic: Tensor | None
    vq: Tensor
    indices: Tensor


class Tokenizer(nn.Module):
    """A tokenizer with random weights; `Tokenizer.load` brings a trained one."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.pixel_decoder.z_channels
        self.pixel_encoder = Encoder(config.pixel_encoder)
        self.to_pixel = nn.Conv2d(config.pixel_encoder.z_channels, config.pixel_dim, 1)
        self.semantic_encoder, self.to_semantic = _semantic_encoder(config) if config.semantic_dim else (None, None)
        self.quantizer = Quantizer(
            config.codes, config.semantic_dim, config.pixel_dim, config.pixel_weight, config.beta
        )
        self.from_pixel = nn.Conv2d(config.pixel_dim, width, 1)
        self.pixel_decoder = Decoder(config.pixel_decoder)
        self.semantic_decoder = semantic_decoder(config) if config.semantic_dim else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Tokenizer:
        """As `nn.Module` moves and casts parameters; refuses any other type than float32 before one is changed."""
        refuse_cast(self, fn)
        return super()._apply(fn, recurse)

    def encode(self, x: Tensor) -> Tensor:
        """Features z (B, D, H, W), semantic part first, not normalised, float32."""
        if self.semantic_encoder is None or self.to_semantic is None:
            return self.to_pixel(self.pixel_encoder(x)).float()
        semantic = self.to_semantic(self.semantic_encoder(x))
        pixel = self.to_pixel(self.pixel_encoder(x))
        return torch.cat([semantic, pixel], dim=1).float()

    def forward(self, x: Tensor, grids: Sequence[Grid]) -> Trained:
        """The training pass over the scales in `grids` (a schedule, or one with scales dropped)."""
        found = self.quantizer(self.encode(x), grids)
        picture, semantic = self.decode(found.features)
        return Trained(picture, semantic, found.loss, found.indices)

    def decode(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pictures (not clipped) and teacher features (None with one branch) from accumulated codes (B, D, H, W)."""
        semantic, pixel = features.split(self.quantizer.split, dim=1)
        restored = None if self.semantic_decoder is None else self.semantic_decoder(semantic)
        return self.pixel_decoder(self.from_pixel(pixel)), restored

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """`encode` by the bit rule of `quantizer`: one picture at a time on one thread in float32."""
        with bit_rule(x.device):
            alone = (picture[None].float().clone(memory_format=torch.contiguous_format) for picture in x)
            return torch.cat([self.encode(picture) for picture in alone])

    def tokenize(
        self,
        x: Tensor,
        grids: Sequence[Grid],
        correction: Correction | None = None,
        keys: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Input and target codes (B, N) int64 of pictures; equal without `correction`.

        A picture's codes depend on nothing but its pixels, its key and the weights.

        Args:
            x: (B, 3, patch * H, patch * W) float32 in [-1, 1], from `pixels.to_model`.
            grids: the schedule, (H, W) last.
            correction, keys: self-correction and one stable key per picture.
        """
        return self.quantizer.encode(self.features(x), grids, correction, keys)

    @torch.no_grad()
    def decode_codes(self, codes: Tensor, grids: Sequence[Grid], size: Grid | None = None) -> Tensor:
        """Pictures (B, 3, patch * H, patch * W) clipped to [-1, 1] from codes (B, N).

        Args:
            codes: indices, scale by scale, row-major.
            grids: the scales present in `codes`; a prefix of a schedule gives the coarse picture.
            size: (H, W) when it is not `grids[-1]`.
        """
        features = self.quantizer.features(codes.long(), grids, size)
        return self.decode(features)[0].clamp(-1, 1)

    def codebook(self) -> Tensor:
        """(V, D) float32, each part row-normalised: what a language model reads for an index."""
        return self.quantizer.codebook()

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`; equal weights give equal bytes."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG_FILE).write_text(canonical(self.config.model_dump(mode="json")) + "\n")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, path / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer in a folder, in evaluation mode and frozen.

        Raises:
            UserError: configuration or weights are absent, damaged or do not fit each other.
        """
        config = read_config(folder)
        with torch.device("meta"):
            model = cls(config)
        wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        found = load_tensors(Path(folder) / WEIGHTS_FILE, wanted, next="train it again: nextloom train RECIPE")
        model.to_empty(device="cpu")  # no time for random weights, and every tensor aligned as the bit rule wants it
        model.load_state_dict(found)
        return model.requires_grad_(False).eval()


def _semantic_encoder(config: TokenizerConfig) -> tuple[nn.Module, nn.Module]:
    """The semantic encoder, and what brings its features to code dimensions."""
    wanted = config.semantic_encoder
    if isinstance(wanted, SiglipConfig):
        return SiglipTower(wanted), two_layers(wanted.width, config.semantic_dim)
    return Encoder(wanted), two_layers(wanted.z_channels, config.semantic_dim)
