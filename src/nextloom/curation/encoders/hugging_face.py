"""Encoders `siglip2` and `clip`: a folder as Hugging Face's transformers saves it.

Pictures go through the folder's own image processor (its size, crop, mean and resampling), Pillow's variant of it;
the fixed SigLIP 2 squashes a picture to a square, NaFlex keeps its shape and pads the patches, CLIP crops the centre
(transformers rounds the corner down where OpenAI's code rounds to even, so crops may be a pixel apart; for an exact
OpenAI CLIP use `open_clip`). Texts: CLIP's own tokenizer, 77 tokens; SigLIP 2 as its authors trained and evaluate it
(big_vision): lower case, no punctuation, `_` a space, no BOS, an EOS that survives truncation, padded to 64 and not
masked. That is done here from `tokenizer.json`, since what transformers' tokenizer classes do of it depends on its
version and on a setting in the folder. Price paid: the whole checkpoint is read even though one side is kept.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nextloom.curation.encoders.encoder import Encoder, Side, one_thread, refuse_strip
from nextloom.curation.encoders.published import check_folder, reading, values_in
from nextloom.errors import UserError
from nextloom.model_files import DATA_ONLY, MOST_VOCABULARY, WEIGHTS_ONLY, read_json

KINDS = {"siglip2": ("siglip", "siglip2"), "clip": ("clip",)}
"""`model` -> what config.json may say: the fixed SigLIP 2 is of transformers' class for SigLIP, NaFlex is not."""
NOT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonical(text: str) -> str:
    """`text` as SigLIP 2's evaluation writes it: `_` to space, no ASCII punctuation, lower case, single spaces."""
    return " ".join(text.replace("_", " ").translate(NOT_PUNCTUATION).lower().split())


class HuggingFace(Encoder):
    """A CLIP or SigLIP 2 checkpoint.

    Raises:
        UserError: the folder holds another kind of model, or weights that do not fill it.
    """

    def __init__(self, folder: str, model: Literal["siglip2", "clip"], side: Side, device: str) -> None:
        with reading(folder):
            self._load(folder, model, side, device)

    def _load(self, folder: str, model: Literal["siglip2", "clip"], side: Side, device: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging

        one_thread(device)
        logging.disable_progress_bar()
        self._folder, self._device = folder, device
        check_folder(folder)
        self._config = AutoConfig.from_pretrained(folder, **DATA_ONLY)
        self._kind = self._config.model_type
        if self._kind not in KINDS[model]:
            raise UserError(f"{folder} holds a model of type {self._kind!r}, not {' or '.join(KINDS[model])}")
        with torch.device("meta"):
            described = sum(
                p.numel() for p in AutoModel.from_config(self._config, trust_remote_code=False).parameters()
            )
        if described > (there := values_in(folder)):
            lacks = f"{folder} lacks {described - there} weights of this model"
            raise UserError(f"{lacks}: config.json describes {described:,}, its files hold {there:,}")
        network: Any
        network, report = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            weights_only=WEIGHTS_ONLY,
            **DATA_ONLY,
        )
        absent = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
        if absent:
            raise UserError(f"{folder} lacks {len(absent)} weights of this model, such as {absent[0]}")
        network.requires_grad_(False)
        self.logit_scale = float(network.logit_scale.exp())
        self.logit_bias = float(network.logit_bias) if hasattr(network, "logit_bias") else None
        if side == "image":
            network.text_model = None
            self._load_processor()
        else:
            network.vision_model = None
            self._tokenize = self._siglip_tokenizer() if model == "siglip2" else self._clip_tokenizer()
        self._network = network.eval().to(device)

    def _load_processor(self) -> None:
        from transformers import AutoImageProcessor

        self._processor: Any = AutoImageProcessor.from_pretrained(self._folder, backend="pil", **DATA_ONLY)

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """CLIP: the projection of its class token; SigLIP: the output of its pooling head."""
        import torch
        from PIL import Image

        if self._kind == "clip":
            for rgb in pictures:
                refuse_strip(rgb)
        # As Pillow images: of an array of 3 x 50 x 3 the processor would have to guess which axis is colour.
        inputs = self._processor(images=[Image.fromarray(rgb) for rgb in pictures], return_tensors="pt")
        with torch.inference_mode():
            out = self._network.get_image_features(**inputs.to(self._device))
        return out.pooler_output.float().cpu().numpy()

    def text(self, text: str) -> np.ndarray:
        """The text's place in the same space."""
        import torch

        with torch.inference_mode():
            out = self._network.get_text_features(**self._tokenize(text))
        return out.pooler_output[0].float().cpu().numpy()

    def _clip_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(self._folder, **DATA_ONLY)
        length = self._config.text_config.max_position_embeddings

        def tokenize(text: str) -> Any:
            fit = {"padding": "max_length", "truncation": True, "max_length": length}
            return tokenizer(text, return_tensors="pt", **fit).to(self._device)

        return tokenize

    def _siglip_tokenizer(self) -> Any:
        import torch
        from tokenizers import Tokenizer

        path = Path(self._folder) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"no tokenizer at {path}: texts cannot be encoded", next="copy the model's tokenizer.json")
        read_json(path, most=MOST_VOCABULARY)
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        pad, eos = tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<eos>")
        if pad is None or eos is None:
            raise UserError(f"{path} is not SigLIP 2's tokenizer (no <pad> or <eos>); SigLIP 1 has other text rules")
        length = self._config.text_config.max_position_embeddings

        def tokenize(text: str) -> Any:
            ids = [*tokenizer.encode(canonical(text), add_special_tokens=False).ids[: length - 1], eos]
            ids += [pad] * (length - len(ids))
            return {"input_ids": torch.tensor([ids], device=self._device)}

        return tokenize
