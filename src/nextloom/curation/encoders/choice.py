"""Which encoder an op uses: the fields that `embed` and `zero_shot` share, and what follows from them.

Two ops with equal fields work in one space, and that is compared when a recipe is read; the weights' digest is
their identity. Planning opens no model: it looks whether the files are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from nextloom.config import RootPath
from nextloom.curation.encoders import parts
from nextloom.curation.encoders.encoder import Encoder, Side
from nextloom.errors import UserError
from nextloom.gpu import cuda
from nextloom.io import digest_path
from nextloom.op import Annotate, digest

SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".pth")
"""Of the files in a folder that make a model; READMEs and download caches do not."""
PROCESSOR = "preprocessor_config.json or processor_config.json"
NEEDED = {
    "siglip2": ("config.json", PROCESSOR, "tokenizer.json"),
    "clip": ("config.json", PROCESSOR),
    "open_clip": ("open_clip_config.json",),
}
"""Model -> files that its folder must have beside the weights."""
EXAMPLES = {
    "siglip2": "google/siglip2-so400m-patch16-naflex",
    "clip": "openai/clip-vit-large-patch14",
    "open_clip": "timm/vit_large_patch14_clip_224.openai",
}


class WithEncoder(Annotate):
    """Base of the ops that encode; not an op itself."""

    weights: ClassVar[Mapping[str, str]] = {"checkpoint": "put the files of the model there"}

    model: Literal["parts", "siglip2", "clip", "open_clip"] = "parts"
    """`parts` needs no weights but the `samples` extra; `siglip2` (fixed or NaFlex) and `clip` read a folder of
    Hugging Face's layout, `open_clip` a file or folder of OpenCLIP's."""
    checkpoint: RootPath | None = Field(None, alias="weights")
    """Folder or file of the weights; written `weights` in a recipe."""
    arch: str | None = None
    """With `open_clip` and a bare file of weights: OpenCLIP's name of the architecture, `ViT-L-14-quickgelu`."""

    @model_validator(mode="after")
    def _fits(self) -> WithEncoder:
        if self.model == "parts" and self.checkpoint:
            raise ValueError("model: parts has its weights in packages; for these, say model: siglip2, clip, open_clip")
        if self.model != "parts" and not self.checkpoint:
            raise ValueError(f"model: {self.model} needs weights: the folder or file they are in")
        if self.arch and self.model != "open_clip":
            raise ValueError("arch is for model: open_clip; a Hugging Face folder says its architecture itself")
        return self

    def identity(self) -> dict[str, Any]:
        """As in `Op`; the weights of `parts` have a name here, so that they get a digest too."""
        return {**super().identity(), "checkpoint": self.checkpoint or "parts"}

    def digest_weights(self, field: str) -> str:
        """Digest of the files that make the model.

        Raises:
            UserError: they, or the packages of `parts`, are absent or incomplete; it says how to get them.
        """
        if self.model == "parts":
            return parts.weights_digest()
        path = Path(self.checkpoint or "")
        if path.is_file() and self.model == "open_clip":
            return digest_path(str(path))
        files = sorted(p for p in path.glob("*") if p.is_file() and p.suffix in SUFFIXES)
        get = f"hf download {EXAMPLES[self.model]} --local-dir {path}"
        if not files:
            raise UserError(f"no weights for model: {self.model} at {path}", next=get)
        here = {file.name for file in files}
        absent = [need for need in NEEDED[self.model] if not here & set(need.split(" or "))]
        if absent:
            raise UserError(f"{path} is no folder for model: {self.model}: it has no {absent[0]}", next=get)
        return digest([[file.name, digest_path(str(file))] for file in files])

    def space(self) -> str:
        """The space that its vectors live in, as fields say it."""
        return " ".join(filter(None, (self.model, self.checkpoint, self.arch)))

    def device(self) -> str:
        """cuda where `execution.num_gpus` asks for one."""
        return cuda("execution.num_gpus") if self.execution.num_gpus else "cpu"

    def load(self, side: Side) -> Encoder:
        """The encoder, with one side of it in memory."""
        if self.model == "parts":
            return parts.Parts(side, self.device())
        assert self.checkpoint is not None
        if self.model == "open_clip":
            from nextloom.curation.encoders.openclip import OpenClip

            return OpenClip(self.checkpoint, self.arch, side, self.device())
        from nextloom.curation.encoders.hugging_face import HuggingFace

        return HuggingFace(self.checkpoint, self.model, side, self.device())
