"""Encoder `open_clip`: CLIP checkpoints as OpenCLIP reads them, in three forms.

- OpenAI's own file (`ViT-L-14.pt`, a TorchScript archive): the architecture is in its weights;
- a file of weights (`.safetensors`, `.pt`, `.bin`) with `arch`, OpenCLIP's name for it: `ViT-L-14-quickgelu` for
  OpenAI's weights, `ViT-L-14` for those that were trained with plain GELU; a wrong one loads and is quietly worse.
  Pictures are normalised with OpenAI's mean, which a bare file cannot contradict;
- a folder with `open_clip_config.json`, which says all that itself.

Price paid: architectures whose tokenizer comes from a model hub (SigLIP among them) are refused here.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nextloom.curation.encoders.encoder import Encoder, Side, one_thread, refuse_strip
from nextloom.errors import UserError, did_you_mean

CONFIG = "open_clip_config.json"
HUB = ("hf_tokenizer_name", "hf_model_name")


class OpenClip(Encoder):
    """A CLIP checkpoint.

    Args:
        weights: file or folder.
        arch: OpenCLIP's name of the architecture; None where the weights say it.
        side: what to keep.
        device: cpu or cuda.

    Raises:
        UserError: `arch` is missing, unknown, or given although the weights say it; or its text side needs a hub.
    """

    def __init__(self, weights: str, arch: str | None, side: Side, device: str) -> None:
        from open_clip import SimpleTokenizer
        from open_clip.transform import PreprocessCfg, image_transform_v2

        one_thread(device)
        self._device = device
        network, config = _read(weights, arch, device)
        network.requires_grad_(False)
        self.logit_scale = float(network.logit_scale.exp())
        self.logit_bias = None if getattr(network, "logit_bias", None) is None else float(network.logit_bias)
        size = {"size": network.visual.image_size}  # of OpenAI's archives, which say no more
        preprocess = PreprocessCfg(**getattr(network.visual, "preprocess_cfg", size))
        self._transform: Any = image_transform_v2(preprocess, is_train=False)
        self._tokenizer = SimpleTokenizer(context_length=config.get("text_cfg", {}).get("context_length", 77))
        if side == "text":
            network.visual = None
        elif hasattr(network, "transformer"):
            network.transformer = network.token_embedding = None
        self._network = network.eval()

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The projected embedding."""
        import torch
        from PIL import Image

        for rgb in pictures:
            refuse_strip(rgb)
        x = torch.stack([self._transform(Image.fromarray(rgb)) for rgb in pictures]).to(self._device)
        with torch.inference_mode():
            return self._network.encode_image(x).float().cpu().numpy()

    def text(self, text: str) -> np.ndarray:
        """The text's place in the same space."""
        import torch

        with torch.inference_mode():
            return self._network.encode_text(self._tokenizer([text]).to(self._device))[0].float().cpu().numpy()


def _read(weights: str, arch: str | None, device: str) -> tuple[Any, dict[str, Any]]:
    """The network, and OpenCLIP's description of its architecture ({} where the weights are all there is)."""
    import open_clip

    folder = Path(weights).is_dir()
    stated = folder or is_torchscript(weights)
    if stated and arch:
        raise UserError(f"{weights} says its architecture itself", next="leave arch out")
    if folder:
        config = json.loads((Path(weights) / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        _refuse_hub(CONFIG, config)
        return open_clip.create_model(f"local-dir:{weights}", device=device, require_pretrained=True), config
    if stated:
        return open_clip.load_openai_model(weights, precision="fp32", device=device), {}
    if arch is None or arch not in open_clip.list_models():
        hint = did_you_mean(arch, open_clip.list_models()) if arch else "for OpenAI's L/14: arch: ViT-L-14-quickgelu"
        raise UserError(f"{weights} needs an architecture of OpenCLIP, and arch is {arch!r}", next=hint)
    config = open_clip.get_model_config(arch) or {}
    _refuse_hub(arch, config)
    return open_clip.create_model(arch, pretrained=weights, device=device), config


def _refuse_hub(name: str, config: dict[str, Any]) -> None:
    if any(key in config.get("text_cfg", {}) for key in HUB):
        raise UserError(f"{name}: its tokenizer comes from a model hub", next="use model: siglip2 or model: clip")


def is_torchscript(path: str) -> bool:
    """True for an archive of TorchScript code, as OpenAI published its weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
