"""Pictures to index columns: the step that pre-extracts what the model will train on.

Each picture gets the schedule whose shape is nearest, is resized to the tokenizer's patch times the last grid, and
is encoded once with self-correction. The column keeps both sides: `target`, what the model must predict, and
`input`, what it reads. Indices are little-endian unsigned 16-bit; `tokenizer_config.unpack_indices` reads them.
Token counts depend on the schedule alone, so a pack plan survives an update of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, PrivateAttr, model_validator

from nextloom import pixels
from nextloom.config import RootPath
from nextloom.op import Annotate, Row
from nextloom.tokenize.schedule import FINAL_GRIDS, LEVELS, STEPS, bucket, schedule, tokens
from nextloom.tokenize.tokenizer_config import digest, pack_indices


class ImageTokens(Annotate):
    """Multi-scale codes of every picture, with self-correction.

    A picture beyond 4:1 becomes an error row. A picture's draws follow from its key and the seed, and its codes are
    equal bit by bit whatever shares its batch or process (on one kind of processor).
    """

    name: ClassVar[str] = "image_tokens"
    code_version: ClassVar[int] = 1
    needs: ClassVar[Literal["nothing", "bytes", "pixels"]] = "pixels"
    weights: ClassVar[Mapping[str, str]] = {"tokenizer": "nextloom train RECIPE"}

    tokenizer: RootPath
    """Folder of a trained tokenizer."""
    scales: int | None = Field(None, ge=1, le=len(STEPS))
    """Scales per picture; give this or `level`."""
    level: Literal[64, 128, 256, 512, 1024] | None = None
    """Nominal resolution, as a name for a number of scales (256 is 12)."""
    p: float = Field(0.6, ge=0, le=1)
    """Probability that a token's input is drawn among its nearest codes instead of being the nearest."""
    top_k: int = Field(10, ge=1)
    """How many nearest codes are drawn from."""
    tau: float = Field(1.0, gt=0)
    """Temperature of the draw, on squared distances between unit vectors; below 0.1 it changes nothing."""
    seed: int = 0
    """Of the draws, together with each row's key."""
    clean: bool = False
    """Also store the plain encoding, for pictures that serve as conditions."""

    _tokenizer: Any = PrivateAttr(None)

    @model_validator(mode="after")
    def _one_of(self) -> ImageTokens:
        if (self.scales is None) == (self.level is None):
            raise ValueError("give either scales (1 to 18) or level (64, 128, 256, 512, 1024)")
        return self

    @property
    def count(self) -> int:
        """Number of scales, however it was given."""
        return self.scales or LEVELS[self.level or 0]

    def identity(self) -> dict[str, Any]:
        """As in `Op`, with `level` written as its number of scales."""
        return {**super().identity(), "scales": self.count, "level": None}

    def digest_weights(self, field: str) -> str:
        """Digest of the tokenizer's two files; FileNotFoundError when one is not there."""
        return digest(getattr(self, field))

    def version(self) -> str:
        """`code_version`, with that of decoding and of resizing."""
        return f"{super().version()}+{pixels.RESIZE_VERSION}"

    def columns(self) -> pa.Schema:
        """`target`, `input`, `clean`: indices, scale by scale, row-major; `schedule`: id in `schedule.FINAL_GRIDS`."""
        return pa.schema(
            [
                ("schedule", pa.int32()),
                ("scales", pa.int32()),
                ("n_tokens", pa.int32()),
                ("target", pa.binary()),
                ("input", pa.binary()),
                ("clean", pa.binary()),
            ]
        )

    def setup(self) -> None:
        """Load the tokenizer."""
        from nextloom.tokenize.tokenizer import Tokenizer

        self._tokenizer = Tokenizer.load(self.tokenizer).to("cuda" if self.execution.num_gpus else "cpu")

    def measure(self, row: Row) -> dict[str, Any]:
        """Codes of one picture.

        Raises:
            ValueError: it is longer than 4:1.
        """
        import torch

        from nextloom.tokenize.quantizer import Correction

        assert row.pixels is not None
        chosen = bucket(row.pixels.shape[0], row.pixels.shape[1], self.count)
        grids = schedule(FINAL_GRIDS[chosen], self.count)
        (height, width), patch = grids[-1], self._tokenizer.config.patch
        x = torch.from_numpy(pixels.to_model(row.pixels, height * patch, width * patch))[None]
        x = x.to(self._tokenizer.codebook().device)
        correction = Correction(p=self.p, top_k=self.top_k, tau=self.tau, seed=self.seed)
        inputs, targets = self._tokenizer.tokenize(x, grids, correction, [row.key])
        clean = self._tokenizer.tokenize(x, grids)[0] if self.clean else None
        return {
            "schedule": chosen,
            "scales": self.count,
            "n_tokens": tokens(grids),
            "target": self._pack(targets),
            "input": self._pack(inputs),
            "clean": None if clean is None else self._pack(clean),
        }

    def _pack(self, indices: Any) -> bytes:
        return pack_indices(indices[0].cpu().numpy(), self._tokenizer.config.codes)
