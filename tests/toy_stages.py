"""What tests of a tokenizer's training share: pictures, small recipes of the three stages, files of LPIPS."""

from __future__ import annotations

from pathlib import Path

import lpips as reference
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import vgg16
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from nextloom import pixels
from nextloom.train import recipe as recipes
from nextloom.train.tokenizer.recipe import TokenizerRecipe
from nextloom.train.tokenizer.task import TokenizerTask
from test_training import TOKENIZER

SINGLE = TOKENIZER.model_copy(update={"semantic_dim": 0})


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A uint8 picture of smooth noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def as_input(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.to_model(rgb, *rgb.shape[:2]))[None]


def tokenizer_recipe(root: Path, output: str, *, network_=TOKENIZER, **fields) -> TokenizerRecipe:
    """A recipe over `test_training.world(root)`."""
    data = {"train": "tokenizer", "output": output, "dataset": "toys", "release": "tokens", "scales": 4, "batch": 4}
    execution = {"workers": 0, "threads": 1, "checkpoint_every": 2, **fields.pop("execution", {})}
    data |= {"steps": 4, "warmup": 1, "precision": "fp32", **fields, "execution": execution}
    if network_ is not None:
        data["tokenizer"] = network_.model_dump(mode="json")
    return recipes.build(data, root=str(root))


def stages(root: Path) -> dict[str, TokenizerRecipe]:
    """The three stages, four steps each."""
    start = {"tokenizer": "joint"}
    return {
        "pixel": tokenizer_recipe(root, "pixel", network_=SINGLE, stage="pixel"),
        "joint": tokenizer_recipe(root, "joint", init_from={"pixel": "pixel"}),
        "decoder": tokenizer_recipe(
            root, "decoder", network_=None, stage="decoder", init_from=start, ema=0.9, drop=0.0
        ),
    }


def weights(wanted: TokenizerRecipe) -> dict[str, torch.Tensor]:
    """Of the finished model."""
    return load_file(Path(wanted.output) / "model.safetensors")


def task_of(wanted: TokenizerRecipe, count: int = 8) -> TokenizerTask:
    """A task over square noise."""
    return TokenizerTask(wanted, [noise(32, 32, seed) for seed in range(count)])


def write_lpips(folder: Path) -> Path:
    """Files of the published layout: torchvision's names with random weights, and the package's own heads."""
    torch.manual_seed(0)
    state = vgg16(weights=None).features.state_dict()
    torch.save({f"features.{name}": value for name, value in state.items()}, folder / "vgg16-397923af.pth")
    heads = Path(reference.__file__).parent / "weights/v0.1/vgg.pth"
    (folder / "vgg.pth").write_bytes(heads.read_bytes())
    return folder


def published_lpips(folder: Path) -> torch.nn.Module:
    """The package's own network with the weights in `folder`."""
    theirs = reference.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    trunk = torch.load(folder / "vgg16-397923af.pth", weights_only=True)
    theirs.net.load_state_dict({n: trunk[f"features.{n.partition('.')[2]}"] for n in theirs.net.state_dict()})
    return theirs


def write_siglip(folder: Path) -> torch.nn.Module:
    """A tiny SigLIP2 vision tower with random weights in the published layout; the network that was written."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    network = Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=8, num_patches=16)).eval()
    network.save_pretrained(folder)
    return network
