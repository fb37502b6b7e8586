"""verify: a good release passes; a flipped byte, a swapped row, a wrong length and another tokenizer are told."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine import build, plans, run, write_pictures
from nextloom.errors import UserError
from nextloom.pipelines.release import make_release
from nextloom.pipelines.verify import mend, verify
from nextloom.store.files import read_files, write_file
from nextloom.store.release import open_release
from toy_tokenizers import random_tokenizer

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = {"tokens": {"op": "image_tokens", "tokenizer": "tokenizer", "scales": 3, "draws": 2}}
RELEASES = {"r": {"columns": ["tokens"]}}


@pytest.fixture
def dataset_of(tmp_path):
    write_pictures(tmp_path / "pics", 12)
    random_tokenizer(0).save(tmp_path / "tokenizer")
    recipe, dataset = build(tmp_path, STEPS, releases=RELEASES, execution={"chunk_rows": 4})
    run(recipe, dataset)
    return recipe, dataset


def released(recipe, dataset):
    with dataset.lease("test"):
        return make_release(recipe, dataset, "r")[0]


def token_files(dataset) -> list[Path]:
    return sorted(p for p in Path(dataset.uri, "columns/tokens").rglob("*.parquet") if "_delta_log" not in str(p))


def flip(file: Path) -> None:
    """One bit of the last byte of the page that holds the targets."""
    group = pq.ParquetFile(file).metadata.row_group(0)
    (column,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "target")
    raw = bytearray(file.read_bytes())
    raw[column.data_page_offset + column.total_compressed_size - 1] ^= 0x10
    file.write_bytes(raw)


def rewritten(dataset, change):
    """The tokens column with its rows changed and committed as if a run had written them."""
    (folder,) = Path(dataset.uri, "columns/tokens").iterdir()
    table = dataset.column("tokens", folder.name)
    data = read_files(table.uri, table.files())
    with dataset.lease("test"):
        rows = change(data.to_pylist())
        table.commit(data.schema, [write_file(table.uri, type(data).from_pylist(rows, data.schema))], table.files())


def test_a_good_release_passes(dataset_of):
    recipe, dataset = dataset_of
    result = verify(recipe, released(recipe, dataset), sample=5)
    assert (result.files, result.rows, result.sampled, result.findings) == (3, 12, 5, [])


def test_a_flipped_byte_is_found_and_mended(dataset_of):
    recipe, dataset = dataset_of
    release = released(recipe, dataset)
    before = release.column("tokens").to_pylist()
    file = token_files(dataset)[0]
    flip(file)
    result = verify(recipe, release)
    (finding,) = result.findings
    assert finding.check == "pages" and finding.key == file.name
    with dataset.lease("test"):
        assert mend(recipe, dataset, release, result.findings) == 1
    assert plans(recipe, dataset)["tokens"].todo == 4
    assert run(recipe, dataset)["tokens"]["done"] == 4
    again = released(recipe, dataset)
    assert again.column("tokens").to_pylist() == before
    assert verify(recipe, again).findings == []


def test_a_swapped_row_is_found(dataset_of):
    recipe, dataset = dataset_of

    def swap(rows):
        rows[3]["target"], rows[7]["target"] = rows[7]["target"], rows[3]["target"]
        return rows

    rewritten(dataset, swap)
    run(recipe, dataset)
    release = released(recipe, dataset)
    result = verify(recipe, release)
    assert {(f.check, f.key) for f in result.findings} == {
        (check, f"p{number:03d}.png") for check in ("encoding", "coherence") for number in (3, 7)
    }
    assert "first at" in result.findings[0].what
    with dataset.lease("test"):
        assert mend(recipe, dataset, release, result.findings) == 1
    assert run(recipe, dataset)["tokens"]["done"] == 2
    assert verify(recipe, released(recipe, dataset)).findings == []


def test_lengths_and_codes_are_held_against_schedule_and_codebook(dataset_of):
    recipe, dataset = dataset_of

    def spoil(rows):
        rows[0]["input"] = rows[0]["input"][:-2]
        rows[1]["target"] = b"\xff\xff" + rows[1]["target"][2:]
        rows[2]["n_tokens"] = 5
        return rows

    rewritten(dataset, spoil)
    run(recipe, dataset)
    told = {f.key: f.what for f in verify(recipe, released(recipe, dataset), sample=0).findings}
    assert told["p000.png"].startswith("input has ") and "are due" in told["p000.png"]
    assert told["p001.png"].startswith("target holds code 65535")
    assert told["p002.png"] == "n_tokens is 5, its schedule has 14"


def test_another_tokenizer_or_recipe_is_refused(dataset_of, tmp_path):
    recipe, dataset = dataset_of
    release = released(recipe, dataset)
    random_tokenizer(1).save(tmp_path / "other")
    wrong, _ = build(tmp_path, {"tokens": {**STEPS["tokens"], "tokenizer": "other"}}, releases=RELEASES)
    with pytest.raises(UserError, match=r"has digest .* was made by .*\n  next: --set steps.tokens.tokenizer="):
        verify(wrong, release)
    wrong, _ = build(tmp_path, {"tokens": {**STEPS["tokens"], "p": 0.3}}, releases=RELEASES)
    with pytest.raises(UserError, match=r"steps.tokens.p: p is 0.3; release r-0001 was made with 0.6"):
        verify(wrong, release)


def test_the_verb_ends_with_code_1_and_json(dataset_of, tmp_path, monkeypatch, capsys):
    from nextloom.cli import main

    recipe, dataset = dataset_of
    released(recipe, dataset)
    text = {"dataset": "toy", "source": {"op": "files", "path": "pics"}, "steps": STEPS, "releases": RELEASES}
    (tmp_path / "toy.yaml").write_text(json.dumps(text))
    call = ["nextloom", "verify", str(tmp_path / "toy.yaml"), "--root", str(tmp_path), "--sample", "3"]
    monkeypatch.setattr("sys.argv", call)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and "3 files, 12 rows, 3 encoded anew, 0 differ" in capsys.readouterr().out
    flip(token_files(dataset)[0])
    monkeypatch.setattr("sys.argv", [*call, "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == 1 and json.loads(out)[0]["findings"][0]["check"] == "pages"
    assert "next: nextloom verify" in err and open_release(dataset.uri, "r").name == "r-0001"
