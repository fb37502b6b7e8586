"""SigLIP2's NaFlex vision tower as an image encoder: one feature per patch, whatever the grid.

The network is transformers' own, without what is not used: the feature is the state before the last block
(`hidden_states[-2]`), so neither that block, the final norm nor the pooling head is built, and no weight is left
without a gradient. Pictures in [-1, 1] are what the published processor makes of pixels (mean and deviation 0.5), so a
picture of whole patches goes in as it is; all pictures of a batch have one grid, so nothing is padded or masked and
the learned positions are resized once. The price: transformers is imported to build a tower, about 2 s.

Shapes: x (B, 3, patch * H, patch * W), features (B, width, H, W).
Source: SigLIP 2 (arXiv 2502.14786); the penultimate state after TokenFlow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextloom.errors import UserError
from nextloom.model_files import DATA_ONLY, layout
from nextloom.tokenize.siglip_config import NAMES, SiglipConfig, bring, read_siglip


class SiglipTower(nn.Module):
    """A tower with random weights; `SiglipTower.published` brings trained ones."""

    def __init__(self, config: SiglipConfig) -> None:
        from transformers import Siglip2VisionModel

        super().__init__()
        self.patch = config.patch
        model: Any = Siglip2VisionModel(_library_config(config))
        model.post_layernorm = nn.Identity()
        self.model = model

    @classmethod
    def published(cls, folder: str, where: str = "init_from.semantic") -> SiglipTower:
        """The tower of a published folder (`config.json`, `*.safetensors`, of a whole SigLIP2 or its tower), float32.

        Raises:
            UserError: the folder holds another kind of model, or weights that do not fill the tower.
        """
        from transformers import Siglip2VisionModel
        from transformers.utils import logging

        config = read_siglip(folder, where)
        for file in sorted(Path(folder).glob("*.safetensors")):
            try:
                layout(file)
            except UserError as error:
                raise UserError(f"{file}: {error.what}", where=where, next=bring(folder)) from None
        with torch.device("meta"):
            tower = cls(config)
        level = logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # it would list the text tower and the head, which nobody asked for
        try:
            loaded: Any = Siglip2VisionModel.from_pretrained(
                folder,
                config=_library_config(config),
                use_safetensors=True,
                attn_implementation="sdpa",
                **DATA_ONLY,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"no weights of SigLIP2 in {folder}: {error}", where=where, next=bring(folder)) from None
        finally:
            logging.set_verbosity(level)
        model, report = loaded
        absent = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
        absent = [key for key in absent if "post_layernorm" not in key]
        if absent:
            raise UserError(
                f"{folder} lacks {len(absent)} weights of its tower or has them in another shape, such as {absent[0]}",
                where=where,
                next=bring(folder),
            )
        model.post_layernorm = nn.Identity()
        tower.model = model.train(tower.training)
        return tower

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width, H, W), not normalised."""
        patches = patchify(x, self.patch)
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        # On the CPU, one row for all: resizing the positions then neither waits for a GPU nor is done per picture.
        shape = torch.tensor([grid], device="cpu")
        state = self.model(patches, None, shape).last_hidden_state
        return state.transpose(1, 2).unflatten(2, grid)


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, H * W, patch * patch * 3) patches of x: row-major, inside a patch by row, column, channel."""
    cells = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, 3, H, patch, W, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _library_config(config: SiglipConfig) -> Any:
    from transformers import Siglip2VisionConfig

    fields = {theirs: getattr(config, name) for name, theirs in NAMES.items()}
    fields["num_hidden_layers"] = config.layers - 1
    return Siglip2VisionConfig(**fields, vision_use_head=False)
