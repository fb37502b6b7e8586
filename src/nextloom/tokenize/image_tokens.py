"""Pictures to index columns: the step that pre-extracts what the model will train on.

    tokens: {op: image_tokens, rows: keep, tokenizer: runs/tokenizer, level: 256}

Each picture gets the schedule whose shape is nearest, is resized to the tokenizer's patch times the last grid, and
is encoded once with self-correction. The column keeps both sides: `target`, what the model must predict, and
`input`, what it reads. Indices are little-endian unsigned 16-bit; `tokenizer_config.unpack_indices` reads them.
Token counts depend on the schedule alone, so a pack plan survives an update of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr, model_validator

from nextloom import pixels
from nextloom.config import RootPath
from nextloom.gpu import cuda
from nextloom.op import Annotate, Execution, Row
from nextloom.tokenize.documents import Grid
from nextloom.tokenize.schedule import FINAL_GRIDS, LEVELS, STEPS, bucket, schedule, tokens
from nextloom.tokenize.tokenizer_config import digest, pack_indices


class TokenExecution(Execution):
    """Where pictures are encoded; none of it is identity."""

    device: Literal["auto", "cpu"] = "auto"
    """`auto`: cuda in workers with `num_gpus`. `cpu`: the CPU in these too, for tests of where work is placed."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture brought to the size of its schedule's last grid."""

    schedule: int
    """Id in `schedule.FINAL_GRIDS`."""
    grids: tuple[Grid, ...]
    box: tuple[float, float, float, float]
    """left, top, right, bottom in pixels of the upright picture."""
    x: np.ndarray
    """(3, patch * H, patch * W) float32, from `pixels.to_model`."""


class ImageTokens(Annotate):
    """Multi-scale codes of every picture, with self-correction.

    A picture beyond 4:1 becomes an error row. A picture's draws follow from its key and the seed, and its codes are
    equal bit by bit whatever shares its batch or process (on one kind of processor). So pictures are encoded one at a
    time, on a GPU too; `execution.num_cpus` threads decode and resize ahead of it.
    """

    name: ClassVar[str] = "image_tokens"
    code_version: ClassVar[int] = 2
    needs: ClassVar[Literal["nothing", "bytes", "pixels"]] = "pixels"
    weights: ClassVar[Mapping[str, str]] = {"tokenizer": "nextloom train RECIPE"}

    execution: TokenExecution = TokenExecution()
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
    draws: int = Field(1, ge=1, le=64)
    """Independent draws per picture, for as many epochs: epoch e trains on draw e modulo `draws`."""
    clean: bool = False
    """Also store the plain encoding, for pictures that serve as conditions."""

    _tokenizer: Any = PrivateAttr(None)
    _digest: str = PrivateAttr("")

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
        """What a row holds.

        schedule, scales: id in `schedule.FINAL_GRIDS`, and how many scales; n_tokens: codes of one draw
        draws, target, input: number of draws, and their indices one after the other, each scale by scale, row-major
        clean: the plain encoding, or null
        left, top, crop_width, crop_height: the box of the upright picture that was encoded, in its pixels
        resampling: how that box was brought to patch * grid; tokenizer: digest; extractor: version of the code
        """
        return pa.schema(
            [
                *((name, pa.int32()) for name in ("schedule", "scales", "n_tokens", "draws")),
                *((name, pa.binary()) for name in ("target", "input", "clean")),
                *((name, pa.float64()) for name in ("left", "top", "crop_width", "crop_height")),
                *((name, pa.string()) for name in ("resampling", "tokenizer", "extractor")),
            ]
        )

    def setup(self) -> None:
        """Load the tokenizer.

        Raises:
            UserError: a GPU is asked for, and there is none where this worker runs.
        """
        from nextloom.tokenize.tokenizer import Tokenizer

        on_gpu = self.execution.num_gpus > 0 and self.execution.device == "auto"
        self._tokenizer = Tokenizer.load(self.tokenizer).to(cuda("execution.num_gpus") if on_gpu else "cpu")
        self._digest = digest(self.tokenizer)

    def prepare(self, row: Row) -> Prepared:
        """The picture as the networks take it.

        Raises:
            ValueError: it is longer than 4:1.
        """
        assert row.pixels is not None
        height, width = row.pixels.shape[:2]
        chosen = bucket(height, width, self.count)
        grids = schedule(FINAL_GRIDS[chosen], self.count)
        side = tuple(cells * self._tokenizer.config.patch for cells in grids[-1])
        box = pixels.crop_box(height, width, *side)
        return Prepared(chosen, grids, box, pixels.to_model(row.pixels, *side))

    def measure(self, row: Row) -> dict[str, Any]:
        """Codes of one picture.

        Raises:
            ValueError: as `prepare`, where no worker has called it.
        """
        ready = row.prepared or self.prepare(row)
        left, top, right, bottom = ready.box
        pairs, clean = self.encode(ready.x, ready.grids, row.key)
        return {
            "schedule": ready.schedule,
            "scales": self.count,
            "n_tokens": tokens(ready.grids),
            "draws": self.draws,
            "target": b"".join(self._pack(targets) for _, targets in pairs),
            "input": b"".join(self._pack(inputs) for inputs, _ in pairs),
            "clean": None if clean is None else self._pack(clean),
            "left": left,
            "top": top,
            "crop_width": right - left,
            "crop_height": bottom - top,
            "resampling": pixels.RESAMPLING,
            "tokenizer": self._digest,
            "extractor": self.version(),
        }

    def encode(self, x: np.ndarray, grids: Sequence[Grid], key: str) -> tuple[list[tuple[Any, Any]], Any]:
        """Codes of one model input, the networks run once.

        Args:
            x: (3, patch * H, patch * W) float32, from `pixels.to_model`.
            grids: the schedule.
            key: of the row.

        Returns:
            (inputs, targets) of each draw, and the plain encoding or None; each (1, N) int64.
        """
        import torch

        from nextloom.tokenize.quantizer import Correction

        z = self._tokenizer.features(torch.from_numpy(x)[None].to(self._tokenizer.codebook().device))
        quantizer = self._tokenizer.quantizer
        settings = (Correction(self.p, self.top_k, self.tau, self.seed, draw) for draw in range(self.draws))
        pairs = [quantizer.encode(z, grids, setting, [key]) for setting in settings]
        return pairs, quantizer.encode(z, grids)[0] if self.clean else None

    def targets_of(self, rgb: np.ndarray, grids: Sequence[Grid], inputs: np.ndarray) -> np.ndarray:
        """(N,) targets that belong to stored inputs (N,) of a picture (height, width, 3)."""
        import torch

        side = tuple(cells * self._tokenizer.config.patch for cells in grids[-1])
        x = torch.from_numpy(pixels.to_model(rgb, *side))[None].to(self._tokenizer.codebook().device)
        codes = torch.from_numpy(inputs).to(x.device)
        return self._tokenizer.quantizer.targets_of(self._tokenizer.features(x), grids, codes).cpu().numpy()

    def _pack(self, indices: Any) -> bytes:
        return pack_indices(indices[0].cpu().numpy(), self._tokenizer.config.codes)
