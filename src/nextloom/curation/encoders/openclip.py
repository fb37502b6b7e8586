"""Encoder `open_clip`: CLIP checkpoints as OpenCLIP reads them, in three forms.

- OpenAI's own file (`ViT-L-14.pt`, a TorchScript archive, of which nothing is run): the architecture is in its weights;
- a file of weights (`.safetensors`, `.pt`, `.bin`) with `arch`, OpenCLIP's name for it: `ViT-L-14-quickgelu` for
  OpenAI's weights, `ViT-L-14` for those that were trained with plain GELU; a wrong one loads and is quietly worse.
  Pictures are normalised with OpenAI's mean, which a bare file cannot contradict;
- a folder with `open_clip_config.json`, which says all that itself.

Price paid: architectures whose tokenizer comes from a model hub (SigLIP among them) are refused here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nextloom.curation.encoders.encoder import Encoder, Side, one_thread, refuse_strip
from nextloom.curation.encoders.published import check_numbers, check_weights, reading, values_in, weights_in
from nextloom.errors import UserError, did_you_mean
from nextloom.model_files import WEIGHTS_ONLY, read_json

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
    with reading(weights):
        return _load(weights, arch, device)


def _load(weights: str, arch: str | None, device: str) -> tuple[Any, dict[str, Any]]:
    import open_clip

    folder = Path(weights).is_dir()
    stated = folder or is_torchscript(weights)
    if stated and arch:
        raise UserError(f"{weights} says its architecture itself", next="leave arch out")
    if folder:
        config = _described(Path(weights))
        wanted = {"require_pretrained": True, "weights_only": WEIGHTS_ONLY}
        return open_clip.create_model(f"local-dir:{weights}", device=device, **wanted), config
    if stated:
        return _openai(weights, device), {}
    if arch is None or arch not in open_clip.list_models():
        hint = did_you_mean(arch, open_clip.list_models()) if arch else "for OpenAI's L/14: arch: ViT-L-14-quickgelu"
        raise UserError(f"{weights} needs an architecture of OpenCLIP, and arch is {arch!r}", next=hint)
    config = open_clip.get_model_config(arch) or {}
    _refuse_hub(arch, config)
    check_weights(weights)
    return open_clip.create_model(arch, pretrained=weights, device=device, weights_only=WEIGHTS_ONLY), config


def _openai(weights: str, device: str) -> Any:
    """The network whose weights are in OpenAI's archive, of which nothing is run."""
    import open_clip
    from open_clip.openai import build_model_from_openai_state_dict

    from nextloom.curation.encoders.torchscript import read_weights

    network = build_model_from_openai_state_dict(read_weights(weights), cast_dtype=None).to(device).float()
    visual: Any = network.visual
    visual.image_mean, visual.image_std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return network


def _described(folder: Path) -> dict[str, Any]:
    """OpenCLIP's description in a folder, with its weights looked at."""
    import open_clip
    import torch

    config = read_json(folder / CONFIG).get("model_cfg")
    if not isinstance(config, dict):
        raise UserError(f"{CONFIG} has no model_cfg", where=str(folder), next="bring the file as it was published")
    _refuse_hub(CONFIG, config)
    check_numbers(folder / CONFIG, config)
    for file in weights_in(folder):
        check_weights(file)
    with torch.device("meta"):
        network = open_clip.create_model(f"local-dir:{folder}", load_weights=False, device="meta")
    described, there = sum(p.numel() for p in network.parameters()), values_in(folder)
    if described > there:
        raise UserError(f"{folder} lacks weights: {CONFIG} describes {described:,}, its files hold {there:,}")
    return config


def _refuse_hub(name: str, config: dict[str, Any]) -> None:
    parts = [config.get(part) for part in ("text_cfg", "vision_cfg")]
    text, vision = (part if isinstance(part, dict) else {} for part in parts)
    if any(key in text for key in HUB):
        raise UserError(f"{name}: its tokenizer comes from a model hub", next="use model: siglip2 or model: clip")
    if set(str(vision.get("timm_model_name", ""))) & set(":/"):
        raise UserError(f"{name}: its picture network comes from a model hub", next="use model: siglip2 or model: clip")


def is_torchscript(path: str) -> bool:
    """True for an archive of TorchScript code, as OpenAI published its weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
