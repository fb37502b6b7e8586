"""The tokenizer at full size: SigLIP2 as encoder and teacher, the transformer decoder, profiles, weights, refusals.

SigLIP2 is compared with transformers' own image processor and model on photographs, the transformer with timm's blocks;
networks of full size live on the meta device, where shapes and counts are exact and no weight takes memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

from nextloom import pixels
from nextloom.errors import UserError
from nextloom.tokenize.quantizer import bit_rule
from nextloom.tokenize.schedule import FINAL_GRIDS, schedule
from nextloom.tokenize.semantic import Vit
from nextloom.tokenize.siglip import SiglipTower, patchify
from nextloom.tokenize.siglip_config import FIXED, LIBRARY, NAMES, SiglipConfig, read_siglip, siglip_digest
from nextloom.tokenize.teacher import make_teacher
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import PROFILES, CnnConfig, TokenizerConfig, VitConfig, full, full_double
from nextloom.train.tokenizer.inputs import doubled
from toy_encoders import VISION, photo, save_fixed, save_naflex
from toy_tokenizers import SMALL, SMALL_CNN, random_tokenizer

TOWER = SiglipConfig(width=32, layers=2, heads=2, mlp=48, patch=16, positions=16)
"""As `save_naflex` writes it."""
PATCH_16 = SMALL_CNN.model_copy(update={"unshuffle": 16})
SMALL_FULL = TokenizerConfig(
    codes=64,
    semantic_dim=4,
    pixel_dim=8,
    pixel_encoder=PATCH_16,
    pixel_decoder=PATCH_16,
    semantic_encoder=TOWER,
    semantic_decoder=VitConfig(width=24, depth=2, heads=3, side=4),
    teacher="siglip2",
    teacher_dim=32,
)
"""The parts of the full profile, tiny."""


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A whole SigLIP2 (text tower too) as transformers saves it."""
    return save_naflex(tmp_path_factory.mktemp("siglip"))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(config: TokenizerConfig) -> Tokenizer:
    with torch.device("meta"):
        return Tokenizer(config)


def cropped(name: str, height: int, width: int) -> np.ndarray:
    return photo(name)[40 : 40 + height, 60 : 60 + width]


@pytest.mark.parametrize(("name", "height", "width"), [("chelsea.png", 64, 96), ("astronaut.png", 128, 32)])
def test_encoder_and_teacher_equal_the_published_processor_and_model_on_photographs(folder, name, height, width):
    rgb = cropped(name, height, width)
    cells = height * width // 256
    processor = Siglip2ImageProcessor(patch_size=16, max_num_patches=cells)
    inputs = processor(images=[Image.fromarray(rgb)], return_tensors="pt")
    assert inputs["spatial_shapes"].tolist() == [[height // 16, width // 16]], "the processor must not resize"
    theirs = Siglip2VisionModel.from_pretrained(folder).eval()
    x = torch.from_numpy(pixels.to_model(rgb, height, width))[None]
    torch.testing.assert_close(patchify(x, 16), inputs["pixel_values"], atol=1e-5, rtol=0)
    with torch.no_grad():
        states = theirs(**inputs, output_hidden_states=True).hidden_states
        assert len(states) == VISION["num_hidden_layers"] + 1
        expected = states[-2][0].T.reshape(1, 32, height // 16, width // 16)
        assert (states[-1] - states[-2]).abs().max() > 0.1, "the last block would be seen"
        found = SiglipTower.published(folder).eval()(x)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    taught = make_teacher(SMALL_FULL, folder)(x, (height // 16, width // 16))
    torch.testing.assert_close(taught, expected, atol=2e-5, rtol=1e-4)


def test_pictures_of_a_batch_do_not_touch_each_other(folder):
    tower = SiglipTower.published(folder).eval()
    x = torch.from_numpy(np.stack([pixels.to_model(cropped(n, 48, 80), 48, 80) for n in ("coffee.png", "rocket.jpg")]))
    with torch.no_grad():
        torch.testing.assert_close(tower(x), torch.cat([tower(one[None]) for one in x]), atol=2e-5, rtol=1e-4)


def test_the_teacher_stays_frozen_and_reads_other_sizes_at_sixteen_pixels_a_cell(folder):
    teacher = make_teacher(SMALL_FULL, folder).train()
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    x = torch.from_numpy(pixels.to_model(cropped("chelsea.png", 48, 96), 24, 48))[None]
    large = F.interpolate(x, size=(48, 96), mode="bicubic", antialias=True)
    found = teacher(x, (3, 6))
    torch.testing.assert_close(found, teacher(large, (3, 6)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(x, (3, 6)), found), "targets are float32 whatever the training's precision"
    with pytest.raises(UserError, match=r"init_from\.semantic: the teacher siglip2 needs the folder"):
        make_teacher(SMALL_FULL)
    with pytest.raises(UserError, match="has 32 channels; teacher_dim is 16"):
        make_teacher(SMALL.model_copy(update={"teacher": "siglip2", "teacher_dim": 16}), folder)


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (8, 2)])
def test_the_semantic_transformer_equals_timms_blocks(grid):
    torch.manual_seed(0)
    vit = Vit(5, VitConfig(width=24, depth=2, heads=3, side=4)).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(0, 0.3)
    x = torch.randn(2, 5, *grid)
    with torch.no_grad():
        # the way the published positions are resized, by another implementation: Pillow's on each channel
        planes = [Image.fromarray(plane.numpy(), "F") for plane in vit.positions[0]]
        resized = [np.asarray(plane.resize(grid[::-1], Image.Resampling.BILINEAR)) for plane in planes]
        tokens = torch.einsum("bchw,dc->bhwd", x, vit.embed.weight[:, :, 0, 0]) + vit.embed.bias
        tokens = (tokens + torch.from_numpy(np.stack(resized, axis=-1))).flatten(1, 2)
        for layer in vit.blocks:
            block = Block(24, 3, mlp_ratio=4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
            own = layer.state_dict()
            names = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "self_attn.out_proj"}
            names |= {"mlp.fc1": "linear1", "mlp.fc2": "linear2"}
            state = {f"{t}.{kind}": own[f"{o}.{kind}"] for t, o in names.items() for kind in ("weight", "bias")}
            state |= {f"attn.qkv.{kind}": own[f"self_attn.in_proj_{kind}"] for kind in ("weight", "bias")}
            block.load_state_dict(state)
            tokens = block(tokens)
        expected = F.layer_norm(tokens, (24,), vit.norm.weight, vit.norm.bias, 1e-6)
        torch.testing.assert_close(vit(x), expected.transpose(1, 2).reshape(2, 24, *grid), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(vit(x).detach(), vit.train()(x).detach(), atol=2e-5, rtol=1e-4)


def test_full_networks_have_the_published_numbers_of_weights():
    model = on_meta(full())
    # Linear(768 -> 1152), 256 positions, 26 blocks of two norms, four projections and an MLP
    embed = 768 * 1152 + 1152 + 256 * 1152
    block = 2 * 2 * 1152 + 4 * (1152 * 1152 + 1152) + (1152 * 4304 + 4304) + (4304 * 1152 + 1152)
    assert count(model.semantic_encoder) == embed + 26 * block
    with torch.device("meta"):
        vision = {theirs: getattr(SiglipConfig(), name) for name, theirs in NAMES.items()}
        whole = Siglip2VisionModel(Siglip2VisionConfig(**vision))
    assert count(whole) == 427_888_064, "the published so400m tower with its pooling head"
    unused = count(whole.encoder.layers[-1]) + count(whole.head) + count(whole.post_layernorm)
    assert count(model.semantic_encoder) == count(whole) - unused
    assert count(model.to_semantic) == 1152 * 1152 + 1152 + 1152 * 32 + 32
    vit = (32 * 1152 + 1152) + 256 * 1152 + 3 * (12 * 1152 * 1152 + 13 * 1152) + 2 * 1152
    assert count(model.semantic_decoder) == vit + 2 * (1152 * 1152 + 1152)
    assert (count(model.pixel_encoder), count(model.pixel_decoder)) == (29_298_176, 42_449_795)
    assert count(model.quantizer) == 32_768 * 40
    single = on_meta(PROFILES["vqgan"]())
    assert count(single) == 29_298_176 + (256 * 8 + 8) + 32_768 * 8 + (8 * 256 + 256) + 42_449_795
    assert count(on_meta(full_double()).pixel_decoder) == 237_117_187
    assert full_double().pixel_decoder == doubled(full().pixel_decoder), "what stage 3 makes of full"


@pytest.mark.parametrize("row", [0, 11, 20, 40])
def test_full_shapes_of_every_kind_of_picture(row):
    grids = schedule(FINAL_GRIDS[row], 12)
    height, width = grids[-1]
    model = on_meta(full_double())
    x = torch.empty(2, 3, 16 * height, 16 * width, device="meta")
    assert model.encode(x).shape == (2, 40, height, width)
    picture, semantic = model.decode(torch.empty(2, 40, height, width, device="meta"))
    assert picture.shape == x.shape
    assert semantic is not None and semantic.shape == (2, 1152, height, width)


def test_a_folder_holds_the_whole_tokenizer_and_gives_back_the_same_codes(folder, tmp_path):
    model = random_tokenizer(0, SMALL_FULL)
    model.semantic_encoder.load_state_dict(SiglipTower.published(folder).state_dict())
    model.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert str(folder) not in (tmp_path / "config.json").read_text()
    loaded = Tokenizer.load(tmp_path)
    assert loaded.config == SMALL_FULL and not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert {n for n, _ in loaded.named_buffers()} <= loaded.state_dict().keys(), "a buffer outside would hold no value"
    for row in (10, 20):
        grids = schedule(FINAL_GRIDS[row], 5)
        height, width = (16 * side for side in grids[-1])
        x = torch.from_numpy(
            np.stack([pixels.to_model(photo(n), height, width) for n in ("chelsea.png", "coffee.png", "rocket.jpg")])
        )
        codes, _ = model.tokenize(x, grids)
        assert torch.equal(loaded.tokenize(x, grids)[0], codes)
        alone = torch.cat([loaded.tokenize(one[None], grids)[0] for one in x.flip(0)]).flip(0)
        assert torch.equal(alone, codes)
        assert loaded.decode_codes(codes, grids).shape == x.shape


def test_a_training_pass_reaches_every_weight():
    model = random_tokenizer(1, SMALL_FULL).train()
    grids = schedule(FINAL_GRIDS[10], 5)
    height, width = grids[-1]
    torch.manual_seed(0)
    x, target = torch.rand(2, 3, 16 * height, 16 * width) * 2 - 1, torch.randn(2, 32, height, width)
    out = model(x, grids)
    loss = F.mse_loss(out.picture, x) + out.vq + (1 - F.cosine_similarity(out.semantic, target, dim=1)).mean()
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_stored_codes_use_neither_autocast_nor_tf32():
    flags = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [flag.fp32_precision for flag in flags]
    with torch.autocast("cpu", torch.bfloat16):
        with bit_rule(torch.device("cpu")):
            assert [flag.fp32_precision for flag in flags] == ["ieee", "ieee"]
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert [flag.fp32_precision for flag in flags] == before


def test_profiles_are_what_their_names_say_and_survive_their_file_form():
    made = {name: profile() for name, profile in PROFILES.items()}
    for name, config in made.items():
        assert TokenizerConfig.model_validate_json(config.model_dump_json()) == config, name
    dims = {name: (c.codes, c.semantic_dim, c.pixel_dim, c.patch) for name, c in made.items()}
    assert dims["full"] == dims["full_double"] == (32_768, 32, 8, 16)
    assert dims["vqgan"] == (32_768, 0, 8, 16)
    assert dims["toy_vqgan"] == (512, 0, 8, dims["toy"][3])
    for small, large in (("toy_vqgan", "toy"), ("vqgan", "full")):  # stage 1 fits into stage 2
        for field in ("codes", "pixel_dim", "pixel_encoder", "pixel_decoder"):
            assert getattr(made[small], field) == getattr(made[large], field)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"semantic_encoder": {"kind": "siglip2", "width": 10, "heads": 4}}, "width 10 is no multiple of heads=4"),
        ({"semantic_encoder": {"kind": "siglip2", "positions": 12}}, "12 positions are no square"),
        ({"semantic_encoder": {"kind": "siglip2", "patch": 8}}, r"pixels per code: \[8, 16\]"),
        ({"semantic_encoder": {"kind": "siglip2", "channels": 8}}, "channels"),
        ({"semantic_encoder": {"kind": "siglip"}}, "kind"),
        ({"semantic_decoder": {"width": 10, "heads": 4}}, "width 10 is no multiple of heads=4"),
        ({"semantic_width": 40}, "semantic_width 40 is no multiple of groups=32"),
        ({"teacher_dim": 64}, "efficientnet_lite0 has 112 channels"),
    ],
)
def test_networks_that_contradict_themselves_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig(**fields)


def test_a_published_folder_is_read_without_torch(folder):
    assert read_siglip(folder, "here") == TOWER
    code = f"""
import sys
from nextloom.tokenize.siglip_config import read_siglip
from nextloom.tokenize.tokenizer_config import full
full()
print(read_siglip({folder!r}, "here").width, sorted({{"torch", "transformers", "ray"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "32 []"


def test_what_a_published_folder_leaves_out_is_the_librarys_default(tmp_path):
    default = Siglip2VisionConfig()
    assert {name: getattr(default, theirs) for name, theirs in NAMES.items()} == LIBRARY
    assert {name: getattr(default, name) for name in FIXED} == FIXED
    document = {"model_type": "siglip2", "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27}}
    document["vision_config"] |= {"num_attention_heads": 16, "intermediate_size": 4304}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert read_siglip(tmp_path, "here") == SiglipConfig() == full().semantic_encoder
    theirs = AutoConfig.from_pretrained(tmp_path).vision_config
    assert all(getattr(theirs, name) == getattr(SiglipConfig(), own) for own, name in NAMES.items())


def refused(folder: str | Path, read=read_siglip) -> str:
    with pytest.raises(UserError) as caught:
        read(str(folder), "init_from.semantic")
    assert "init_from.semantic" in str(caught.value) or f"{folder}/config.json: " in str(caught.value)
    assert f"hf download google/siglip2-so400m-patch16-naflex --local-dir {folder}" in str(caught.value)
    return str(caught.value)


def test_folders_that_hold_no_such_tower_are_refused(folder, tmp_path):
    assert "no SigLIP2" in refused(tmp_path / "nowhere")
    save_fixed(tmp_path)
    assert "of type 'siglip', not siglip2" in refused(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "JSON, but not a mapping" in refused(tmp_path)
    document = json.loads((Path(folder) / "config.json").read_text())
    document["vision_config"]["hidden_act"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert "hidden_act" in refused(tmp_path)
    document["vision_config"] |= {"hidden_act": "gelu_pytorch_tanh", "num_patches": 15}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert "15 positions are no square" in refused(tmp_path)


def test_weights_that_do_not_fill_the_tower_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    assert "no SigLIP2" in refused(tmp_path, siglip_digest)
    assert "no weights" in refused(tmp_path, SiglipTower.published)
    state = load_file(Path(folder) / "model.safetensors")
    name = next(n for n in state if n.endswith("vision_model.encoder.layers.0.mlp.fc1.weight"))
    save_file({n: t for n, t in state.items() if n != name}, tmp_path / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weights" in refused(tmp_path, SiglipTower.published)
    save_file({**state, name: state[name][:-1].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert "another shape" in refused(tmp_path, SiglipTower.published)
    unused = [n for n in state if "layers.1." in n or "head" in n or n.startswith("text_model")]
    assert len(unused) > 20
    save_file({n: t for n, t in state.items() if n not in unused}, tmp_path / "model.safetensors", {"format": "pt"})
    found, whole = SiglipTower.published(str(tmp_path)), SiglipTower.published(folder)
    assert all(torch.equal(t, found.state_dict()[n]) for n, t in whole.state_dict().items())


def test_another_kind_of_number_becomes_float32(folder, tmp_path):
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    state = load_file(Path(folder) / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in state.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    found = SiglipTower.published(str(tmp_path)).state_dict()
    expected = SiglipTower.published(folder).state_dict()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].bfloat16().float())


def test_a_small_cnn_decoder_may_stand_behind_a_tower():
    config = SMALL_FULL.model_copy(update={"semantic_decoder": None, "semantic_width": 8})
    out = random_tokenizer(0, config).decode(torch.randn(1, 12, 3, 5))[1]
    assert out is not None and out.shape == (1, 32, 3, 5)
    assert isinstance(config.pixel_decoder, CnnConfig) and config.semantic_groups == 4
