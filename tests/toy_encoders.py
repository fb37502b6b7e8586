"""Tiny CLIP and SigLIP 2 checkpoints with random weights of the true layout, saved as the libraries save them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nextloom import pixels

PROSE = ["a photo of a cat", "an espresso in a cup of coffee", "the rocket on a launch pad", "a palace in China"] * 4
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**VISION, "vocab_size": 400}


@lru_cache
def photo(name: str) -> np.ndarray:
    """Pixels of a photograph that ships with scikit-image or scikit-learn, such as chelsea.png."""
    import skimage
    import sklearn

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets/images")
    path = next(folder / name for folder in folders if (folder / name).is_file())
    return pixels.decode(path.read_bytes())


def gemma_like(folder: Path) -> Tokenizer:
    """A BPE tokenizer with Gemma's special tokens whose file adds a BOS, as Gemma's own does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Replace("▁", " ")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.train_from_iterator(PROSE, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def save_fixed(folder: Path, size: int = 48) -> str:
    """The fixed SigLIP 2: of transformers' classes for SigLIP."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(1)
    vision = {**VISION, "image_size": size, "patch_size": 16}
    model = SiglipModel(SiglipConfig(text_config={**TEXT, "max_position_embeddings": 64}, vision_config=vision))
    _shake(model)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": size, "width": size}, resample=2).save_pretrained(folder)
    gemma_like(folder)
    return str(folder)


def save_naflex(folder: Path, patches: int = 20) -> str:
    """SigLIP 2 NaFlex."""
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model

    torch.manual_seed(2)
    vision = {**VISION, "num_patches": 16, "patch_size": 16}
    model = Siglip2Model(Siglip2Config(text_config={**TEXT, "max_position_embeddings": 64}, vision_config=vision))
    _shake(model)
    model.save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=16, max_num_patches=patches).save_pretrained(folder)
    gemma_like(folder)
    return str(folder)


def save_clip(folder: Path, size: int = 64) -> str:
    """CLIP as transformers saves it, with a byte-level BPE of its format."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(3)
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    tokenizer.save(str(folder / "trained.json"))
    data = json.loads((folder / "trained.json").read_text())["model"]
    (folder / "trained.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(data["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in data["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')
    vision = {**VISION, "image_size": size, "patch_size": 16}
    text = {**TEXT, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    _shake(model)
    model.save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor.save_pretrained(folder)
    return str(folder)


OPEN_CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
"""The layout of OpenAI's CLIP, which fixes the width of a head at 64."""


def open_clip_network() -> torch.nn.Module:
    """A random CLIP of OpenCLIP's."""
    import open_clip

    torch.manual_seed(4)
    return open_clip.CLIP(**json.loads(json.dumps(OPEN_CLIP))).eval()


class _Archive(torch.nn.Module):
    """The parts of a CLIP under the names that OpenAI's archives have them."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        for name, child in network.named_children():
            setattr(self, name, child)
        for name, parameter in network.named_parameters(recurse=False):
            setattr(self, name, parameter)
        for name, value in (("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return x * self.logit_scale


def save_openai_archive(network: torch.nn.Module, path: Path) -> None:
    """`network` as a TorchScript archive, the form of OpenAI's files."""
    torch.jit.trace(_Archive(network), torch.zeros(1)).save(str(path))


def _shake(model: torch.nn.Module) -> None:
    """Larger random weights: as initialised, every picture would land in nearly the same place."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
        model.logit_scale.fill_(2.0)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-1.5)
