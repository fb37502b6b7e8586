"""Attacks on outputs, model folders, checkpoints and engine options.

An output attack has won when the notes of somebody else are gone from their place. A model folder has won when its
code ran, or when what it says made the process ask for memory that its bytes do not justify. A damaged checkpoint has
won when a training goes on from it without a word.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pickle
import shutil
import struct
import sys
import tracemalloc
import types
import zipfile
from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import nn

import toy_encoders
from hostile.attack import Attack, Outcome, patched
from hostile.tools import all_of, told
from nextloom import model_files, outputs, samples
from nextloom.curation.captions import chat_execution, vllm_chat
from nextloom.curation.captions.chat_execution import ChatExecution
from nextloom.curation.captions.chat_format import Sampling
from nextloom.curation.encoders import hugging_face, openclip
from nextloom.curation.scores import aesthetic_score, quality
from nextloom.errors import UserError
from nextloom.pipelines.report import page
from nextloom.tokenize import tokenizer as tokenizers
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.tokenize.tokenizer_config import TokenizerConfig
from nextloom.train import launch, work
from nextloom.train import recipe as recipes
from nextloom.train.decoder import drawing, task
from nextloom.train.engine import checkpoint, checksums, folder
from nextloom.train.engine.checkpoint import Progress
from nextloom.train.tokenizer import lpips

MODEL = {"text_vocab": 256, "codes": 32, "width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 32}
NOTES = "the only copy of my thesis"


# ---- outputs


class Toy:
    """A training of one weight, whose model is a folder as a real one's."""

    def build(self) -> nn.Module:
        return nn.Linear(1, 1)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> None:
        return None

    def loss(self, model: nn.Module, batch: None, step: int):
        return sum(p.square().sum() for p in model.parameters()), 1, {}

    def save(self, model: nn.Module, target: str | Path) -> None:
        Path(target).mkdir(parents=True, exist_ok=True)
        (Path(target) / "config.json").write_text("{}")
        save_file({n: p.detach() for n, p in model.state_dict().items()}, Path(target) / "model.safetensors")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"loss": 0.0}


class Silent:
    """In the place of TensorBoard's writer, whose import takes longer than an attack may."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def add_scalar(self, *_: object) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """That writer for TensorBoard's; `patch.dict` would also take out what is imported meanwhile."""
    name = "torch.utils.tensorboard"
    before = sys.modules.get(name)
    sys.modules[name] = types.SimpleNamespace(SummaryWriter=Silent)
    try:
        yield
    finally:
        del sys.modules[name]
        if before:
            sys.modules[name] = before


def train(root: Path, output: str, *, fresh: bool = True, seed: int = 0) -> None:
    fields = {"train": "decoder", "output": output, "dataset": "datasets/emoji", "packs": "main", "seed": seed}
    fields |= {"tokenizer": "runs/tokenizer", "model": MODEL, "steps": 1, "warmup": 0}
    execution = {"workers": 0, "threads": 1}
    with all_of(
        patched(launch, "inputs", lambda recipe: {}),
        patched(work, "make_task", lambda recipe, device: Toy()),
        quiet(),
    ):
        launch.launch(recipes.build({**fields, "execution": execution}, root=str(root)), fresh=fresh)


def draw(root: Path, output: str) -> None:
    def drawn(recipe, release, about, part, tell):
        part.mkdir(parents=True)
        (part / "0000.png").write_bytes(b"png")
        return {}

    fields = {"decoder": "runs/decoder", "tokenizer": "runs/tokenizer", "dataset": "datasets/emoji"}
    (root / "draw.yaml").write_text(json.dumps({**fields, "output": output, "prompts": ["a"]}))
    with all_of(
        patched(drawing, "_about", lambda recipe: {}),
        patched(drawing, "_identity", lambda recipe, release: "now"),
        patched(drawing, "_draw", drawn),
    ):
        drawing.draw_recipe(str(root / "draw.yaml"), root=str(root))


def write_samples(root: Path, output: str) -> None:
    plan = {"photos/coffee.png": lambda: b"coffee", "emoji/NOTICE": lambda: b"notice"}
    with patched(samples, "_plan", lambda size: plan), patched(samples, "_versions", dict):
        samples.write_samples(root / output)


def report(root: Path, output: str) -> None:
    with patched(page, "gather", lambda *_, **__: {}), patched(page, "render", lambda report: "<html>"):
        page.write_report(types.SimpleNamespace(dataset="emoji"), None, root=str(root))


def notes(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NOTES)
    return path


def linked(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


def own_model(root: Path, output: str = "runs/mine") -> Path:
    train(root, output)
    return root / output


def no_guard() -> contextlib.AbstractContextManager:
    """As it was: what is in the way is replaced, and folders go as a whole."""

    def remove(path: Path, pattern: str) -> None:
        shutil.rmtree(path, ignore_errors=True)

    return all_of(
        patched(outputs, "refuse_name", lambda value, root: None),
        patched(launch, "check_output", lambda recipe: None),
        patched(work, "check_ours", lambda *_, **__: None),
        patched(folder, "remove_own", remove),
        patched(folder, "is_ours", lambda document: True),
        patched(checkpoint, "remove_own", remove),
        patched(drawing, "check_place", lambda *_, **__: None),
        patched(drawing, "check_ours", lambda *_, **__: None),
        patched(drawing, "remove_own", remove),
        patched(samples, "_check_ours", lambda *_: None),
        patched(samples, "OWN", __import__("re").compile(".*")),
        patched(page, "_check_ours", lambda target: None),
    )


Verb = Callable[[Path, str], None]
Prepare = Callable[[Path], Path]
"""Makes the scene below a root, and gives the path that must keep its `NOTES`."""


def output_attack(verb: Verb, output: str, prepare: Prepare, at: Path) -> Outcome:
    root = at / "root"
    root.mkdir()
    with patch.dict("os.environ", {"HOME": str(at / "home")}):
        precious = prepare(root)
        try:
            verb(root, output.replace("AT", str(at)))
            what = "done"
        except (UserError, OSError) as error:
            what = told(error)
    lost = not precious.is_file() or not precious.read_bytes().startswith(NOTES.encode())
    return Outcome(lost, what)


def in_(path: str) -> Prepare:
    return lambda root: notes(root / path)


def forged(root: Path) -> Path:
    """A receipt of another output beside somebody's folder."""
    own_model(root)
    shutil.copytree(root / "runs/mine.run", root / "thesis.run")
    return notes(root / "thesis" / "notes.txt")


def edited(root: Path) -> Path:
    config = own_model(root) / "config.json"
    return notes(config)


def readme(root: Path) -> Path:
    return notes(own_model(root) / "README.md")


def half_forged(root: Path) -> Path:
    (root / "thesis.run").mkdir()
    (root / "thesis.run" / "receipt.json").write_text('{"files": {"notes.txt": "?"}}')
    return notes(root / "thesis" / "notes.txt")


def led_out(root: Path) -> Path:
    linked(root / "runs", root.parent / "outside")
    return notes(root.parent / "outside" / "thesis" / "notes.txt")


def drawn_over(name: str) -> Prepare:
    def prepare(root: Path) -> Path:
        draw(root, "drawings")
        (root / "drawings" / "summary.json").write_text(
            (root / "drawings" / "summary.json").read_text().replace('"now"', '"before"')
        )
        return notes(root / "drawings" / name)

    return prepare


def link_to_thesis(root: Path) -> Path:
    notes(root / "thesis" / "notes.txt")
    (root / "here").symlink_to(root / "thesis")
    return root / "here" / "notes.txt"


def emoji_elsewhere(root: Path) -> Path:
    linked(root / "pics" / "photos", root.parent / "photos")
    return notes(root.parent / "photos" / "coffee.png")


def manifest(name: str) -> Prepare:
    def prepare(root: Path) -> Path:
        (root / "pics").mkdir()
        (root / "pics" / samples.MANIFEST).write_text(json.dumps({"header": {}, "files": {name: 1}}))
        return notes(root / "thesis.txt")

    return prepare


OUTPUTS: list[tuple[str, str, Verb, str, Prepare]] = [
    ("train: a folder of notes", "holds other files", train, "thesis", in_("thesis/notes.txt")),
    ("train: the same as ./thesis/", "holds other files", train, "./thesis/", in_("thesis/notes.txt")),
    ("train: by its absolute path", "holds other files", train, "AT/thesis", in_("../thesis/notes.txt")),
    ("train: through ..", "no '..'", train, "runs/../thesis", in_("thesis/notes.txt")),
    ("train: out of the root by ..", "no '..'", train, "../thesis", in_("../thesis/notes.txt")),
    ("train: ~", "home folder", train, "~", in_("../home/notes.txt")),
    ("train: ~/thesis", "holds other files", train, "~/thesis", in_("../home/thesis/notes.txt")),
    ("train: the root", "the root itself", train, ".", in_("notes.txt")),
    ("train: datasets", "holds other files", train, "datasets", in_("datasets/emoji/notes.txt")),
    ("train: the dataset it reads", "kept for them", train, "datasets/emoji", in_("datasets/emoji/notes.txt")),
    ("train: the tokenizer it reads", "which is read", train, "runs/tokenizer", in_("runs/tokenizer/notes.txt")),
    ("train: above the tokenizer", "kept for them", train, "runs", in_("runs/tokenizer/notes.txt")),
    ("train: a link to a folder", "is a link", train, "here", link_to_thesis),
    ("train: out of the root by a link", "by a link", train, "runs/thesis", led_out),
    ("train: hidden files alone", "holds other files", train, "thesis", in_("thesis/.git")),
    ("train: folders alone", "holds other files", train, "thesis", in_("thesis/chapters/1.txt")),
    ("train: a model of somebody else", "holds other files", train, "llama", in_("llama/model.safetensors")),
    ("train: a file", "not a folder", train, "thesis.txt", in_("thesis.txt")),
    ("train: a receipt of another output beside it", "holds other files", train, "thesis", forged),
    ("train: a receipt without substance beside it", "was not made by", train, "thesis", half_forged),
    ("train: a model of ours that was edited", "config.json", train, "runs/mine", edited),
    ("train: a README beside a model of ours", "README.md", train, "runs/mine", readme),
    ("train: checkpoints of somebody else", "was not made by", train, "t", in_("t.run/checkpoints/best.pt")),
    ("train: pictures of somebody else", "was not made by", train, "t", in_("t.run/pictures/wedding.png")),
    ("train: metrics of somebody else", "was not made by", train, "t", in_("t.run/metrics.jsonl")),
    ("train: an output named as a run", "are kept for", train, "thesis.run", in_("thesis.run/notes.txt")),
    ("generate: a folder of notes", "holds other files", draw, "thesis", in_("thesis/notes.txt")),
    ("generate: a summary of somebody else", "holds other files", draw, "t", in_("t/grid.png")),
    ("generate: a picture more in our drawings", "wedding.png", draw, "drawings", drawn_over("wedding.png")),
    ("generate: a drawing that was painted over", "0000.png", draw, "drawings", drawn_over("0000.png")),
    (
        "generate: a folder named as one in work",
        "done",
        draw,
        "drawings",
        in_(f".drawings.{'0' * 32}.part/notes.txt"),
    ),
    ("generate: through ..", "no '..'", draw, "runs/../thesis", in_("thesis/notes.txt")),
    ("samples: a picture of somebody else", "was not written by", write_samples, "p", in_("p/photos/coffee.png")),
    ("samples: a linked folder", "is a link", write_samples, "pics", emoji_elsewhere),
    ("samples: a manifest that names a file above", "done", write_samples, "pics", manifest("../thesis.txt")),
    ("samples: one that names it through photos", "done", write_samples, "pics", manifest("photos/../../thesis.txt")),
    ("report: a page of somebody else", "is no report of", report, "", in_("reports/emoji.html")),
]


# ---- model folders


class Runs:
    """A pickle that leaves a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self):
        return Path.touch, (self._mark,)


def ran(at: Path, read: Callable[[Path], object]) -> Outcome:
    try:
        read(at)
        what = "read"
    except Exception as error:
        what = told(error) if isinstance(error, UserError) else f"refused: {type(error).__name__}: {error}"
    return Outcome((at / "ran").exists(), what)


def pickled(at: Path, name: str) -> Path:
    (at / name).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"more": torch.zeros(50_000), "weight": Runs(at / "ran")}, at / name)
    return at / name


def read_head(at: Path) -> None:
    aesthetic_score._load(str(pickled(at, "head.pth")))


def read_lpips(at: Path) -> None:
    pickled(at, "vgg16-x.pth")
    (at / "vgg.pth").write_bytes(b"no weights")
    lpips.Lpips.load(at)


def read_ranges(at: Path) -> None:
    quality._Numbers(__import__("io").BytesIO(pickle.dumps({"min_": Runs(at / "ran")}))).load()


def clip_folder(at: Path) -> Path:
    target = at / "clip"
    target.mkdir()
    toy_encoders.save_clip(target)
    return target


def read_bin(at: Path) -> None:
    target = clip_folder(at)
    (target / "model.safetensors").unlink()
    pickled(at, "clip/pytorch_model.bin")
    hugging_face.HuggingFace(str(target), "clip", "image", "cpu")


def read_open_clip(at: Path) -> None:
    import open_clip

    (at / "tiny-clip.json").write_text(json.dumps(toy_encoders.OPEN_CLIP))
    open_clip.add_model_config(at / "tiny-clip.json")
    openclip._read(str(pickled(at, "w.pt")), "tiny-clip", "cpu")


class Program(nn.Module):
    """A module whose archive writes a file while it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.w, self.path = nn.Parameter(torch.zeros(2)), path

    @torch.jit.export
    def __getstate__(self):
        return self.w, self.path

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str]):
        self.w, self.path, self.training = state[0], state[1], False
        torch.save(state[0], state[1])

    def forward(self, x):
        return x


def read_program(at: Path) -> None:
    torch.jit.script(Program(str(at / "ran"))).save(str(at / "openai.pt"))
    (at / "ran").unlink(missing_ok=True)
    openclip._openai(str(at / "openai.pt"), "cpu")


def load_program() -> contextlib.AbstractContextManager:
    import open_clip

    return patched(openclip, "_openai", lambda path, device: open_clip.load_openai_model(path, "fp32", device))


CODE = "from pathlib import Path\nPath({mark!r}).touch()\nfrom transformers import {base}\nclass Own({base}): pass\n"


def remote(kind: str, base: str, file: str, at: Path) -> None:
    """A folder whose JSON says that its Python file is to be run."""
    from transformers import dynamic_module_utils

    target = clip_folder(at)
    (target / "own.py").write_text(CODE.format(mark=str(at / "ran"), base=base))
    document = json.loads((target / file).read_text()) if (target / file).exists() else {}
    names = {kind: ["own.Own", None] if kind == "AutoTokenizer" else "own.Own"}
    document |= {"auto_map": names}
    document |= {"model_type": "own"} if kind == "AutoConfig" else {}
    document.pop("image_processor_type", None)
    document |= {"tokenizer_class": "Own"} if kind == "AutoTokenizer" else {}
    (target / file).write_text(json.dumps(document))
    side = "text" if kind == "AutoTokenizer" else "image"
    with patched(dynamic_module_utils, "HF_MODULES_CACHE", str(at / "modules")):
        hugging_face.HuggingFace(str(target), "clip", side, "cpu")


def trusting_load() -> contextlib.AbstractContextManager:
    """torch.load before it learnt to mistrust: what transformers passes to it makes no difference."""
    load = torch.load
    return patched(torch, "load", lambda *given, **options: load(*given, **{**options, "weights_only": False}))


CODE_ATTACKS: list[tuple[str, str, Callable[[Path], object], Callable]] = [
    ("a head of aesthetic_score", "as data", read_head, lambda: patched(model_files, "WEIGHTS_ONLY", False)),
    ("the heads of LPIPS", "as data", read_lpips, lambda: patched(model_files, "WEIGHTS_ONLY", False)),
    ("the ranges of BRISQUE", "wants to run", read_ranges, lambda: patched(quality._Numbers, "find_class", found)),
    ("pytorch_model.bin", "cannot be read as a model", read_bin, trusting_load),
    ("weights for OpenCLIP", "refused", read_open_clip, lambda: patched(openclip, "WEIGHTS_ONLY", False)),
    ("a TorchScript archive with __setstate__", "", read_program, load_program),
    *(
        (
            f"{kind} of its own in {file}",
            "",
            partial(remote, kind, base, file),
            lambda: patched(hugging_face, "DATA_ONLY", {"trust_remote_code": True, "local_files_only": True}),
        )
        for kind, base, file in (
            ("AutoConfig", "PretrainedConfig", "config.json"),
            ("AutoImageProcessor", "CLIPImageProcessor", "preprocessor_config.json"),
            ("AutoTokenizer", "CLIPTokenizer", "tokenizer_config.json"),
        )
    ),
]


def found(self: pickle.Unpickler, module: str, name: str) -> object:
    """What an unpickler does unless told otherwise."""
    return reduce(getattr, name.split("."), importlib.import_module(module))


def asked(at: Path, read: Callable[[Path], object], most: int) -> Outcome:
    """Whether reading asked for more than `most` bytes, or for more than there is."""
    tracemalloc.start()
    try:
        made = read(at)
        what = "read"
    except UserError as error:
        made, what = None, told(error)
    except (RuntimeError, MemoryError) as error:
        return Outcome("alloc" in str(error) or "the stack" in str(error), f"asked for it: {str(error)[:120]}")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    tensors = made.values() if isinstance(made, dict) else ()
    size = sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor))
    return Outcome(max(peak, size) > most, what)


def huge_decoder(at: Path) -> None:
    huge = {**MODEL, "text_vocab": 2**24, "width": 2**18}
    (at / "config.json").write_text(json.dumps({"model": huge}))
    save_file({"norm.weight": torch.zeros(4)}, at / "model.safetensors")
    task.load_decoder(at)


def huge_tokenizer(at: Path) -> None:
    small = TokenizerConfig(codes=4, semantic_dim=0, pixel_dim=1).model_dump(mode="json")
    huge = {**small, "codes": 2**16, "pixel_dim": 2**14}
    huge["pixel_encoder"] |= {"channels": 2**14, "multipliers": [64], "blocks": 1, "unshuffle": 16}
    huge["pixel_decoder"] |= {"channels": 2**14, "multipliers": [64], "blocks": 1, "unshuffle": 16}
    (at / "config.json").write_text(json.dumps(huge))
    save_file({"quantizer.pixel": torch.zeros(4)}, at / "model.safetensors")
    Tokenizer.load(at)


def stretched(at: Path) -> dict:
    torch.save({"0.weight": torch.zeros(1).expand(10**13)}, at / "head.pth")
    return aesthetic_score._load(str(at / "head.pth"))


def inflated(at: Path) -> dict:
    torch.save({"weight": torch.zeros(2**24)}, at / "plain.pth")
    with zipfile.ZipFile(at / "plain.pth") as plain, zipfile.ZipFile(at / "w.pth", "w", zipfile.ZIP_DEFLATED) as out:
        for info in plain.infolist():
            out.writestr(info.filename, plain.read(info))
    (at / "plain.pth").unlink()
    assert (at / "w.pth").stat().st_size < 2**20
    tracemalloc.reset_peak()
    return model_files.load_pickled(at / "w.pth")


def deep(at: Path) -> dict:
    (at / "config.json").write_text('{"a":' * 10**5 + "1" + "}" * 10**5)
    return model_files.read_json(at / "config.json")


def long_config(at: Path) -> dict:
    (at / "config.json").write_text('{"a": [' + '"",' * (2 * 10**6) + "0]}")
    tracemalloc.reset_peak()
    return model_files.read_json(at / "config.json")


def long_header(at: Path) -> dict:
    header = json.dumps({"__metadata__": {"a": "b"}}).encode()[:-1] + b', "x": [' + b'"",' * (2 * 10**6) + b"0]}"
    (at / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    del header
    tracemalloc.reset_peak()
    return model_files.layout(at / "model.safetensors")


MEMORY_ATTACKS: list[tuple[str, str, Callable[[Path], object], Callable]] = [
    ("a decoder of 17 TB", "no tensor", huge_decoder, lambda: patched(task, "check_shapes", lambda *_, **__: None)),
    (
        "a tokenizer of terabytes",
        "no tensor",
        huge_tokenizer,
        lambda: patched(tokenizers, "load_tensors", lambda *_, **__: {}),
    ),
    (
        "four bytes as 10 TB of weights",
        "larger than what is stored",
        stretched,
        lambda: patched(aesthetic_score, "load_pickled", lambda path: torch.load(path, weights_only=True)),
    ),
    ("weights that inflate", "compressed", inflated, lambda: patched(model_files, "check_archive", lambda path: None)),
    ("a configuration 100,000 deep", "not valid JSON", deep, lambda: patched(model_files, "json", Trusting)),
    ("a configuration of millions of words", "bytes;", long_config, lambda: patched(model_files, "MOST_JSON", 2**40)),
    ("a header of millions of words", "header", long_header, lambda: patched(model_files, "MOST_HEADER", 2**40)),
]


class Trusting:
    """JSON as most read it, without a thought of depth."""

    @staticmethod
    def loads(raw: bytes) -> object:
        try:
            return json.loads(raw)
        except RecursionError as error:
            raise MemoryError("the stack") from error


# ---- folders that name other code or files


def followed(change: Callable[[Path], None], at: Path) -> Outcome:
    """Whether transformers is handed a folder that says so."""
    target = clip_folder(at)
    change(target)
    handed = []
    library = importlib.import_module("transformers").AutoModel
    makers = {name: getattr(library, name) for name in ("from_config", "from_pretrained")}

    def note(name: str, *given: object, **options: object) -> object:
        handed.append(name)
        return makers[name](*given, **options)

    with all_of(*(patched(library, name, partial(note, name)) for name in makers)):
        try:
            hugging_face.HuggingFace(str(target), "clip", "image", "cpu")
            what = "read"
        except UserError as error:
            what = told(error)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
    return Outcome(bool(handed), what)


def says(file: str, **fields: object) -> Callable[[Path], None]:
    def change(target: Path) -> None:
        document = json.loads((target / file).read_text()) if (target / file).exists() else {}
        (target / file).write_text(json.dumps({**document, **fields}))

    return change


def shard_elsewhere(target: Path) -> None:
    shutil.copy(target / "model.safetensors", target / "other.safetensors")
    (target / "model.safetensors").rename(target.parent / "elsewhere.safetensors")
    shards = {"visual_projection.weight": "../elsewhere.safetensors"}
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


LAYERS = {**toy_encoders.TEXT, "num_hidden_layers": 513}
FOLLOWED: list[tuple[str, str, Callable[[Path], None]]] = [
    ("a kernel of a hub for attention", "attn_imp", says("config.json", attn_implementation="evil/kernel")),
    ("the same in a part", "_attn", says("config.json", vision_config={"_attn_implementation": "evil/kernel"})),
    ("a quantiser", "quantization", says("config.json", quantization_config={"quant_method": "gptq"})),
    ("an adapter on another model", "adapter", says("adapter_config.json", base_model_name_or_path="/etc")),
    ("a shard outside of the folder", "shard", shard_elsewhere),
    (
        "a layer for each atom",
        "more than 512",
        says("config.json", text_config={**toy_encoders.TEXT, "num_hidden_layers": 513}),
    ),
]


# ---- checkpoints

IDENTITY = {"name": "attack"}
SEALED = {"model": checkpoint.MODEL, "moments": checkpoint.OPTIMIZER, "average": checkpoint.AVERAGE}


def harmed(name: str, harm: Callable[[Path], None], at: Path) -> Outcome:
    """Whether a training goes on from a checkpoint that is not as it was written."""
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average = checkpoint.Average(model, 0.9)
    progress = Progress(1, 1, 1.0, 1.0, [checkpoint.rng_state()])
    path = checkpoint.save(at, model, optimizer, progress, IDENTITY, 2, average)
    harm(path / name)
    try:
        checkpoint.load(path, model, optimizer, IDENTITY, average)
    except UserError as error:
        return Outcome(False, told(error))
    return Outcome(True, "resumed")


def flipped(byte: int) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[byte] ^= 1
        path.write_bytes(content)

    return harm


def further(path: Path) -> None:
    """Another place in the data."""
    path.write_text(path.read_text().replace('"cursor": 1', '"cursor": 7'))


HARMED: list[tuple[str, str, str, Callable[[Path], None]]] = [
    ("a flipped bit in a weight", "checksum differs", checkpoint.MODEL, flipped(-1)),
    ("a flipped bit in a moment", "checksum differs", checkpoint.OPTIMIZER, flipped(-1)),
    ("a flipped bit in the average", "checksum differs", checkpoint.AVERAGE, flipped(-1)),
    ("another cursor", "checksum differs", checkpoint.STATE, further),
    ("a flipped bit in the receipt", "is damaged", checksums.CHECKSUMS, flipped(60)),
    ("no receipt", "lacks its receipt", checksums.CHECKSUMS, Path.unlink),
    ("a file more", "no file of this checkpoint", "extra.safetensors", Path.touch),
]


# ---- options of the engine


class Engine:
    """What vLLM does with names: it imports them, and keeps the rest."""

    got: dict[str, object]

    def __init__(self, **options: object) -> None:
        Engine.got = options
        for name in ("worker_cls", "worker_extension_cls", "scheduler_cls", "tool_parser_plugin"):
            if name in options:
                importlib.import_module(str(options[name]))
        if isinstance(options.get("logits_processors"), list):
            importlib.import_module(options["logits_processors"][0])


def engine_option(name: str, value: object, at: Path) -> Outcome:
    """Whether an option of a recipe reaches the engine, and the module it names is imported."""
    (at / "evil_module.py").write_text(f"from pathlib import Path\nPath({str(at / 'ran')!r}).touch()\n")
    with patch.object(sys, "path", [*sys.path, str(at)]):
        try:
            execution = ChatExecution(backend="vllm", model_path=str(at), num_gpus=1, engine={name: value})
            Engine(**vllm_chat.engine_arguments(execution, Sampling("m", 1, 0.0, 0)))
            won = Engine.got.get(name) == value
            what = "reached the engine"
        except ValueError as error:
            won, what = False, f"refused: {str(error).splitlines()[2].strip()}"
        finally:
            sys.modules.pop("evil_module", None)
    return Outcome(won or (at / "ran").exists(), what)


def any_option() -> contextlib.AbstractContextManager:
    return all_of(
        patched(chat_execution, "check_engine", lambda options: options),
        patched(vllm_chat, "check_engine", lambda options: options),
    )


OPTIONS: dict[str, object] = {
    "worker_cls": "evil_module",
    "worker_extension_cls": "evil_module",
    "scheduler_cls": "evil_module",
    "tool_parser_plugin": "evil_module",
    "logits_processors": ["evil_module"],
    "tokenizer": "evil/repo",
    "hf_config_path": "evil/repo",
    "hf_overrides": {"auto_map": {"AutoConfig": "evil/repo--own.Own"}},
    "speculative_config": {"model": "evil/repo"},
    "kv_transfer_config": {"kv_connector_module_path": "evil_module"},
    "compilation_config": {"custom_ops": ["evil_module"]},
    "allowed_local_media_path": "/",
    "download_dir": "/etc",
    "generation_config": "evil/repo",
    "model_loader_extra_config": {"tensorizer_uri": "http://evil/weights"},
    "quantization": "evil/repo",
    "an_option_of_next_year": "evil/repo",
}


ATTACKS = [
    *(
        Attack("outputs", name, outcome, partial(output_attack, verb, output, prepare), no_guard)
        for name, outcome, verb, output, prepare in OUTPUTS
    ),
    *(Attack("model code", name, what, lambda at, r=read: ran(at, r), off) for name, what, read, off in CODE_ATTACKS),
    *(
        Attack("model size", name, what, lambda at, r=read: asked(at, r, 2**24), off)
        for name, what, read, off in MEMORY_ATTACKS
    ),
    *(
        Attack(
            "model folders",
            name,
            what,
            partial(followed, change),
            lambda: patched(hugging_face, "check_folder", lambda path: None),
        )
        for name, what, change in FOLLOWED
    ),
    *(
        Attack(
            "checkpoints",
            name,
            what,
            partial(harmed, file, harm),
            lambda: patched(checkpoint, "damage", lambda path: None),
        )
        for name, what, file, harm in HARMED
    ),
    *(
        Attack("engine options", name, "refused", partial(engine_option, name, value), any_option)
        for name, value in OPTIONS.items()
    ),
]
