"""A tokenizer's training as data: one of three stages over the one loop.

    pixel     the pixel branch alone: a VQGAN with the multi-scale quantiser (`semantic_dim: 0`)
    joint     both branches; from scratch, or from a stage-1 folder and a SigLIP2 folder
    decoder   a new pixel decoder of double capacity for a finished tokenizer, everything else frozen

Source: NextFlow (arXiv 2601.02204) 3.1; weights of the losses and optimiser settings after TokenFlow.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from nextloom.config import Model, RootPath
from nextloom.errors import did_you_mean
from nextloom.tokenize.tokenizer_config import PROFILES, CnnConfig, TokenizerConfig, toy
from nextloom.train.engine.training import Training


class InitFrom(Model):
    """Where first weights come from. The digests of these folders are part of the identity, their places are not."""

    pixel: RootPath | None = None
    """Stage `joint`: folder of a stage-1 tokenizer, for pixel encoder, pixel decoder and pixel codebook."""
    semantic: RootPath | None = None
    """Stage `joint`: folder of a published SigLIP2 (config.json, *.safetensors), for the semantic encoder and for the
    frozen teacher."""
    tokenizer: RootPath | None = None
    """Stage `decoder`: folder of the finished tokenizer."""


class Sampling(Model):
    """How often a picture is shown: in proportion to its weight, whole copies per epoch as near as they can be."""

    column: str = Field(pattern=r"^\w+\.\w+$")
    """A numeric or boolean value of the release, as `step.name`; every row must have one."""
    above: float | None = None
    """Rows above this value weigh `factor`, others 1; left out, the value itself (at least 0) is the weight."""
    factor: float = Field(2.0, gt=0)
    """Weight of the rows above `above`."""


class TokenizerRecipe(Training):
    """A tokenizer's training on the pictures of a release."""

    places: ClassVar[frozenset[str]] = Training.places | {"init_from", "lpips"}

    train: Literal["tokenizer"] = "tokenizer"
    stage: Literal["pixel", "joint", "decoder"] = "joint"
    """Which of the three stages; see the module."""
    init_from: InitFrom = InitFrom()
    """Where first weights come from; what is not named starts random, from the seed."""
    release: str
    """Name of the release whose rows are the pictures."""
    tokenizer: TokenizerConfig = Field(default_factory=toy)
    """The network, or the name of a profile; `toy` when left out. Stage `decoder` takes it from
    `init_from.tokenizer`."""
    decoder: CnnConfig | None = None
    """Stage `decoder`: the new pixel decoder; left out, the old one with twice the channels and twice the blocks."""
    scales: int = Field(6, ge=1, le=18)
    """Scales per picture; the picture's size is `patch` times the last grid."""
    batch: int = Field(16, ge=1)
    """Pictures per step over all workers; a multiple of their number."""
    sampling: Sampling | None = None
    """Weighs pictures by a column (faces, for one); left out, an epoch shows each once."""
    held: int = Field(0, ge=0)
    """Pictures kept out of training, chosen by a hash of their id, on which the model is judged; 0 judges it on (at
    most 256) training pictures."""
    lr: float = Field(2e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay, on matrices only; with 0 it is Adam."""
    drop: float = Field(0.5, ge=0, le=1)
    """Share of the scales after the first that each step leaves out."""
    drop_until: float = Field(1.0, ge=0, le=1)
    """Share of the steps that drop scales, from the first. At toy size all of them cost 0.7 dB against 0.1."""
    mse_weight: float = 1.0
    """Weight of the picture's mean squared error."""
    vq_weight: float = 1.0
    """Weight of the quantiser's loss. At toy size 0.25 uses more codes and trains faster."""
    semantic_weight: float = 1.0
    """Weight of 1 - cosine to the teacher."""
    lpips: RootPath | None = None
    """Folder with the weights of LPIPS (vgg16*.pth, vgg.pth); left out, that loss is off."""
    lpips_weight: float = Field(1.0, ge=0)
    """Weight of LPIPS, where `lpips` names its weights."""
    gan_weight: float = Field(0.0, ge=0)
    """Weight of the generator's loss against a PatchGAN; 0 builds none."""
    gan_from: int = Field(20_000, ge=0)
    """First step, from 0, with the two adversarial losses; before it the discriminator is not trained either."""
    gan_channels: int = Field(64, ge=8, multiple_of=8)
    """Width of the discriminator's first layer."""
    gan_layers: int = Field(3, ge=1)
    """Strided layers of the discriminator; 3 judge patches of 70 pixels."""

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _profile(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in PROFILES:
            raise ValueError(f"unknown profile {value!r}; {did_you_mean(value, PROFILES)}")
        return PROFILES[value]()

    @model_validator(mode="after")
    def _stage(self) -> Self:
        allowed = {"pixel": set(), "joint": {"pixel", "semantic"}, "decoder": {"tokenizer"}}[self.stage]
        for name in InitFrom.model_fields:
            if getattr(self.init_from, name) is not None and name not in allowed:
                takes = " and ".join(f"init_from.{n}" for n in sorted(allowed)) or "nothing"
                raise ValueError(f"stage {self.stage} takes {takes}, not init_from.{name}")
        if self.stage == "decoder":
            if self.init_from.tokenizer is None:
                raise ValueError("stage decoder needs init_from.tokenizer, the folder of a finished tokenizer")
            if self.tokenizer != toy():
                raise ValueError("stage decoder takes its network from init_from.tokenizer; leave tokenizer out")
        elif self.decoder is not None:
            raise ValueError(f"stage {self.stage} has no new decoder; decoder belongs to stage decoder")
        if self.stage == "pixel" and self.tokenizer.semantic_dim:
            raise ValueError(
                "stage pixel trains the pixel branch alone: tokenizer.semantic_dim must be 0, as in the profiles "
                "toy_vqgan and vqgan"
            )
        if self.stage == "joint" and not self.tokenizer.semantic_dim:
            raise ValueError("stage joint trains both branches; tokenizer.semantic_dim is 0, which is stage pixel")
        return self

    def reads(self) -> dict[str, str]:
        """As in `Training`."""
        start = {f"init_from.{name}": value for name, value in self.init_from.model_dump().items() if value}
        return {**super().reads(), **start, **({"lpips": self.lpips} if self.lpips else {})}

    def identity(self) -> dict[str, Any]:
        """As in `Training`; the network of stage `decoder` is told by the folder that it starts from."""
        return {k: v for k, v in super().identity().items() if self.stage != "decoder" or k != "tokenizer"}

    @property
    def needs_teacher(self) -> bool:
        """Whether the semantic loss is trained; in stage `decoder` it would have no gradient."""
        return self.stage == "joint"
