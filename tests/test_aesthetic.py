"""aesthetic_score: folded heads against torch layer by layer, random weights of the true layouts, refusals."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine import build, plans
from nextloom.curation.scores import aesthetic_score
from nextloom.curation.scores.aesthetic_score import AestheticScore
from nextloom.errors import UserError
from nextloom.op import Annotate, Row, RowFailure, attempt
from nextloom.pipelines.plan import op_identity

BUMP = "the same embedding gives another value: bump code_version"


def head(variant: str, width: int = 768, seed: int = 0) -> nn.Sequential | nn.Linear:
    """A head of the published layout with random weights, in inference mode."""
    torch.manual_seed(seed)
    if variant == "v1":
        return nn.Linear(width, 1).eval()
    between = [nn.ReLU()] if variant == "relu" else []
    return nn.Sequential(
        nn.Linear(768, 1024), *between, nn.Dropout(0.2),
        nn.Linear(1024, 128), *between, nn.Dropout(0.2),
        nn.Linear(128, 64), *between, nn.Dropout(0.1),
        nn.Linear(64, 16), *between,
        nn.Linear(16, 1),
    ).eval()  # fmt: skip


def state_of(variant: str, **options) -> dict[str, torch.Tensor]:
    prefix = "" if variant == "v1" else "layers."
    return {f"{prefix}{name}": value for name, value in head(variant, **options).state_dict().items()}


def saved(folder: Path, variant: str, kind: str = "zip", **options) -> str:
    state, path = state_of(variant, **options), folder / f"{variant}.{'safetensors' if kind == 'safe' else 'pth'}"
    if kind == "safe":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return str(path)


def vectors(count: int, width: int = 768) -> np.ndarray:
    drawn = np.random.default_rng(1).normal(size=(count, width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype("<f4")


def row(vector: np.ndarray) -> Row:
    return Row(id=0, key="x", reads={"clip": {"embedding": vector.astype("<f4").tobytes(), "dim": len(vector)}})


def made(path: str, **options) -> AestheticScore:
    op = AestheticScore(weights=path, reads=("clip",), **options)
    op.setup()
    return op


class Vectors(Annotate):
    """Stands where an `embed` step would."""

    name: ClassVar[str] = "vectors"
    code_version: ClassVar[int] = 1

    def columns(self) -> pa.Schema:
        return pa.schema([("embedding", pa.binary()), ("dim", pa.int32())])


CASES = [("v2", 768), ("relu", 768), ("v1", 768), ("v1", 512)]


@pytest.mark.parametrize("kind", ["zip", "legacy", "safe"])
@pytest.mark.parametrize(("variant", "width"), CASES)
def test_scores_equal_torch_layer_by_layer(tmp_path, variant, width, kind):
    op = made(saved(tmp_path, variant, kind, width=width))
    x = vectors(50, width)
    with torch.no_grad():
        expected = head(variant, width=width)(torch.from_numpy(x)).numpy()[:, 0]
    scores = [op.measure(row(vector))["score"] for vector in x]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert np.std(scores) > 1e-4 and len(op._layers) == (5 if variant == "relu" else 1)


def test_golden(tmp_path):
    layers = [np.zeros(shape, np.float32) for shape in ((1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16))]
    for i, layer in enumerate(layers):
        layer[0, 0] = i + 1
    state = {}
    for i, layer in zip((0, 2, 4, 6, 7), layers, strict=True):
        state[f"layers.{i}.weight"] = torch.from_numpy(layer)
        state[f"layers.{i}.bias"] = torch.ones(len(layer))
    torch.save(state, tmp_path / "golden.pth")
    vector = np.zeros(768, "<f4")
    vector[:2] = 0.6, -0.8
    expected = ((((0.6 + 1) * 2 + 1) * 3 + 1) * 4 + 1) * 5 + 1
    assert made(str(tmp_path / "golden.pth")).measure(row(vector)) == {"score": pytest.approx(expected)}, BUMP


def test_scale_follows_from_the_weights_without_reading_them(tmp_path):
    names = {"v1": "laion-aesthetic-v1", "v2": "laion-aesthetic-v2", "relu": "laion-aesthetic-ava-logos-relu"}
    for variant, name in names.items():
        for kind in ("zip", "legacy", "safe"):
            op = AestheticScore(weights=saved(tmp_path, variant, kind), reads=("clip",))
            assert {column: scale.name for column, scale in op.score_scales().items()} == {"score": name}
    absent = str(tmp_path / "absent.pth")
    assert AestheticScore(weights=absent).score_scales() == {}
    assert AestheticScore(weights=absent, variant="v1").score_scales()["score"].name == "laion-aesthetic-v1"


def test_unnormalised_embeddings_are_refused(tmp_path):
    op = made(saved(tmp_path, "v2"))
    (vector,) = vectors(1)
    for factor in (10, 1.002, 0.998, 0, np.nan):
        error = attempt(op.measure, row(vector * np.float32(factor)))
        assert isinstance(error, RowFailure) and "not of length 1: divide each embedding by its length" in str(error)
    half = vector.astype(np.float16).astype(np.float32)
    assert op.measure(row(half))["score"] == pytest.approx(op.measure(row(vector))["score"], abs=1e-3)


def test_another_width_is_refused(tmp_path):
    op = made(saved(tmp_path, "v2"))
    with pytest.raises(RowFailure, match="clip has 512 numbers, these weights want 768: embed with OpenAI CLIP ViT-L"):
        op.measure(row(vectors(1, 512)[0]))


def test_files_that_are_no_head_or_another_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="is variant relu, not v2"):
        made(saved(tmp_path, "relu"), variant="v2")
    torch.save({"encoder.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"is no head of LAION's: it holds encoder.weight"):
        made(str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match="is a folder"):
        AestheticScore(weights=str(tmp_path)).digest_weights("checkpoint")


def test_code_in_a_file_of_weights_does_not_run(tmp_path):
    torch.save({"weight": torch.ones(1, 768), "bias": Ran(tmp_path / "ran")}, tmp_path / "bad.pth")
    AestheticScore(weights=str(tmp_path / "bad.pth")).score_scales()
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        made(str(tmp_path / "bad.pth"))
    assert not (tmp_path / "ran").exists()


class Ran:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_identity_is_the_content_of_the_file(tmp_path):
    first = saved(tmp_path, "v2")
    copy = tmp_path / "copy.pth"
    copy.write_bytes(Path(first).read_bytes())
    one, same = AestheticScore(weights=first), AestheticScore(weights=str(copy), variant="v2")
    assert op_identity(one, "steps.a") == op_identity(same, "steps.a")
    torch.save(state_of("v2", seed=1), copy)
    assert op_identity(one, "steps.a") != op_identity(same, "steps.a")


def steps(weights: str, where: str = "a.score > 4.3") -> dict:
    return {
        "clip": {"op": "test_aesthetic:Vectors"},
        "a": {"op": "aesthetic_score", "reads": ["clip"], "weights": weights},
        "keep": {"op": "select", "where": where},
    }


def test_absent_weights_block_the_step_with_the_way_out(tmp_path):
    (tmp_path / "pics").mkdir()
    plan = plans(*build(tmp_path, steps("nowhere.pth")))["a"]
    assert plan.state == "blocked" and "no weights at" in plan.cause
    assert "sac+logos+ava1-l14-linearMSE.pth" in plan.cause


def test_thresholds_on_another_scale_are_refused(tmp_path):
    (tmp_path / "pics").mkdir()
    with pytest.raises(UserError, match=r"laion-aesthetic-v2 \(1 to 10\), and 0.5 is not on it"):
        plans(*build(tmp_path, steps(saved(tmp_path, "v2"), "a.score > 0.5")))


def test_only_embeddings_of_clip_are_read(tmp_path):
    (tmp_path / "pics").mkdir()
    data = steps(saved(tmp_path, "v2")) | {"clip": {"op": "image_stats"}}
    with pytest.raises(UserError, match=r"^steps.a.reads: aesthetic_score reads one step that has embeddings"):
        build(tmp_path, data)
    with pytest.raises(UserError, match="'clip' embeds with parts; LAION's heads are fitted to OpenAI CLIP"):
        build(tmp_path, data | {"clip": {"op": "embed"}})


def test_planning_imports_no_torch(tmp_path):
    code = f"""import sys
from nextloom.curation.scores.aesthetic_score import AestheticScore
op = AestheticScore(weights={saved(tmp_path, "v2")!r}, reads=("clip",))
print(list(op.score_scales()), len(op.digest_weights("checkpoint")))
print([m for m in ("cv2", "torch", "ray", "safetensors") if m in sys.modules])"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "['score'] 16\n[]\n"
    assert aesthetic_score.TOLERANCE == 1e-3
