"""Model folders: what is damaged or does not fit is named, with the file and the next step."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import toy_encoders
from nextloom.curation.captions.chat_execution import ChatExecution
from nextloom.curation.captions.engine_options import ALLOWED, RUNS_OR_FETCHES
from nextloom.curation.encoders.hugging_face import HuggingFace
from nextloom.curation.encoders.torchscript import read_weights
from nextloom.errors import UserError
from nextloom.model_files import check_shapes, layout, load_pickled, load_tensors
from nextloom.tokenize.tokenizer import Tokenizer
from nextloom.train.decoder.task import load_decoder
from test_training import MODEL, TOKENIZER


def header(path: Path, edit) -> None:
    """Change the header of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    document = json.loads(raw[8 : 8 + length])
    edit(document)
    text = json.dumps(document).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


DAMAGE = {
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "something is behind it": lambda p: p.write_bytes(p.read_bytes() + b"x"),
    "its header would be": lambda p: p.write_bytes(struct.pack("<Q", 2**62) + p.read_bytes()[8:]),
    "unpack requires": lambda p: p.write_bytes(b"abc"),
    "no whole safetensors file: Expecting": lambda p: p.write_bytes(struct.pack("<Q", 3) + b"xyz"),
    "do not fit its shape": lambda p: header(p, lambda d: d["b"].update(shape=[2**40])),
    "is F99 of shape": lambda p: header(p, lambda d: d["b"].update(dtype="F99")),
    "of shape (-1,)": lambda p: header(p, lambda d: d["b"].update(shape=[-1])),
    "'dtype'": lambda p: header(p, lambda d: d["b"].pop("dtype")),
    "and its place": lambda p: header(p, lambda d: d["b"].update(data_offsets=[0, 12])),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_safetensors_file_that_is_not_whole_is_refused_before_it_is_read(tmp_path, what):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 2), "b": torch.ones(3)}, path)
    assert layout(path)["a"].shape == (2, 2) and load_tensors(path, {"b": (3,)})["b"].sum() == 3
    DAMAGE[what](path)
    with pytest.raises(UserError, match="no whole safetensors file") as caught:
        load_tensors(path)
    assert what in str(caught.value) and str(caught.value).startswith(f"{path}: ") and "next: " in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "what"),
    [({"c": (1,)}, "no tensor c"), ({"a": (4,)}, "a has shape"), ({"i": (1,)}, "i is I64, not numbers")],
)
def test_tensors_that_do_not_fit_the_configuration_are_named(tmp_path, wanted, what):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 2), "i": torch.zeros(1, dtype=torch.int64)}, path)
    with pytest.raises(UserError, match=what):
        check_shapes(path, wanted)


@pytest.mark.parametrize("kind", ["tokenizer", "decoder"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"model": 3}', b'{"codes": 1e99, "model": {}}', b"\xff"]
)
def test_a_model_folder_with_a_damaged_configuration_says_which_file(tmp_path, kind, content):
    Tokenizer(TOKENIZER).save(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        Tokenizer.load(tmp_path) if kind == "tokenizer" else load_decoder(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ") and "next: " in str(caught.value)


@pytest.mark.parametrize("field", ["layers", "width", "text_vocab", "mlp", "head_dim", "max_scales", "pad_vocab"])
def test_numbers_that_no_model_has_are_refused_before_anything_is_built(tmp_path, field):
    (tmp_path / "config.json").write_text(json.dumps({"model": {**MODEL, field: 10**12}}))
    with pytest.raises(UserError, match=f"no configuration of a decoder(.|\n)*{field}"):
        load_decoder(tmp_path)


def test_a_state_dict_of_torch_is_read_and_one_with_more_in_it_is_not(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pth")
    assert load_pickled(tmp_path / "w.pth")["w"].tolist() == [1, 1, 1]
    for name, value in {"list": [1], "number": {"w": 3}, "path": {"w": Path("x")}}.items():
        torch.save(value, tmp_path / f"{name}.pth")
        with pytest.raises(UserError, match=rf"{name}\.pth: no weights that can be read as data"):
            load_pickled(tmp_path / f"{name}.pth")


def test_openais_archive_gives_what_torchscript_would(tmp_path):
    network = toy_encoders.open_clip_network()
    toy_encoders.save_openai_archive(network, tmp_path / "openai.pt")
    wanted = torch.jit.load(tmp_path / "openai.pt").state_dict()
    found = read_weights(str(tmp_path / "openai.pt"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json", "vocab.json"])
def test_an_encoder_whose_files_are_cut_is_a_user_error(tmp_path, file):
    toy_encoders.save_clip(tmp_path)
    path = tmp_path / file
    assert path.is_file()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=str(tmp_path)):
        HuggingFace(str(tmp_path), "clip", "text" if file == "vocab.json" else "image", "cpu")


def test_weights_come_first_from_safetensors(tmp_path):
    toy_encoders.save_clip(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert HuggingFace(str(tmp_path), "clip", "image", "cpu").logit_scale > 0, "a state dict in a pickle is data too"


@pytest.mark.parametrize("name", sorted(RUNS_OR_FETCHES))
def test_no_recipe_sets_what_runs_code_or_fetches(name):
    assert name not in ALLOWED
    with pytest.raises(ValueError, match=f"{name} may run code"):
        ChatExecution(engine={name: True})


def test_sizes_and_switches_of_the_engine_are_free():
    options = {"max_model_len": 8192, "enforce_eager": True, "dtype": "bfloat16", "limit_mm_per_prompt": {"image": 2}}
    assert ChatExecution(engine=options).engine == options
    for value in ("a/b", "a:b", [1], {"a": 1}, "x" * 41):
        with pytest.raises(ValueError, match="takes a number, true, false or a word"):
            ChatExecution(engine={"dtype": value})
