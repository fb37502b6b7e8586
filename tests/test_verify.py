"""verify: a good release passes; a flipped byte, a swapped row, a wrong length and another tokenizer are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine import build, plans, run, write_pictures
from nextloom.errors import UserError
from nextloom.pipelines.release import make_release
from nextloom.pipelines.verify import mend, verify
from nextloom.store.files import read_files, write_file
from nextloom.store.release import is_broken, open_release
from toy_tokenizers import random_tokenizer

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = {
    "stats": {"op": "image_stats"},
    "tokens": {"op": "image_tokens", "tokenizer": "tokenizer", "scales": 3, "draws": 2, "clean": True},
}
RELEASES = {"r": {"columns": ["tokens", "stats"]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_pictures(root / "pics", 12)
    random_tokenizer(0).save(root / "tokenizer")
    run(*build(root, STEPS, releases=RELEASES, execution={"chunk_rows": 4}))
    return root


@pytest.fixture
def dataset_of(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)  # a dataset may be moved: nothing is done again
    recipe, dataset = build(tmp_path, STEPS, releases=RELEASES, execution={"chunk_rows": 4})
    assert all(counts["done"] == 0 for step, counts in run(recipe, dataset).items() if step != "source")
    return recipe, dataset


def released(recipe, dataset):
    with dataset.lease("test"):
        return make_release(recipe, dataset, "r")[0]


def files_of(dataset, table: str = "columns/tokens") -> list[Path]:
    return sorted(p for p in Path(dataset.uri, table).rglob("*.parquet") if "_delta_log" not in str(p))


def flip(file: Path, name: str = "target") -> None:
    """One bit of the last byte of the last page of a column."""
    group = pq.ParquetFile(file).metadata.row_group(0)
    (column,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == name)
    raw = bytearray(file.read_bytes())
    raw[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 0x10
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
    assert (result.files, result.rows, result.sampled, result.findings) == (7, 12, 5, []), "3 + 3, and the rows"


def test_a_flipped_byte_is_found_and_mended(dataset_of):
    recipe, dataset = dataset_of
    release = released(recipe, dataset)
    before = release.column("tokens").to_pylist()
    file = files_of(dataset)[0]
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


def test_a_flipped_byte_of_another_column_or_of_the_rows_is_found(dataset_of):
    recipe, dataset = dataset_of
    release = released(recipe, dataset)
    stats = files_of(dataset, "columns/stats")[1]
    flip(stats, "sharpness")
    result = verify(recipe, release)
    assert [(f.column, f.check, f.key) for f in result.findings] == [("stats", "pages", stats.name)]
    with dataset.lease("test"):
        assert mend(recipe, dataset, release, result.findings) == 1
    assert run(recipe, dataset)["stats"]["done"] == 4
    again = released(recipe, dataset)
    assert verify(recipe, again).findings == []
    rows = Path(dataset.uri, "rows", again.document["rows"]["files"][0]["path"])
    flip(rows, "key")
    result = verify(recipe, again)
    assert [(f.column, f.check, f.key) for f in result.findings] == [("source", "pages", rows.name)]
    with (
        dataset.lease("test"),
        pytest.raises(UserError, match=r"rows is damaged.*\n  next: nextloom rebuild RECIPE source"),
    ):
        mend(recipe, dataset, again, result.findings)


def test_a_flipped_byte_of_the_selection_is_found_and_mended(tmp_path):
    write_pictures(tmp_path / "pics", 12)
    random_tokenizer(0).save(tmp_path / "tokenizer")
    keep = {"op": "select", "where": "stats.brightness > 0.1"}
    steps = {"stats": STEPS["stats"], "keep": keep, "tokens": {**STEPS["tokens"], "rows": "keep"}}
    recipe, dataset = build(tmp_path, steps, releases={"r": {"rows": "keep", "columns": ["tokens"]}})
    run(recipe, dataset)
    release = released(recipe, dataset)
    assert verify(recipe, release).findings == []
    (file,) = files_of(dataset, "columns/keep")
    flip(file, "verdict")
    result = verify(recipe, release)
    assert [(f.column, f.check, f.key) for f in result.findings] == [("keep", "pages", file.name)]
    assert result.rows == 0, "which rows are meant is not known"
    with dataset.lease("test"):
        assert mend(recipe, dataset, release, result.findings) == 1
    done = run(recipe, dataset)
    assert (done["keep"]["done"], done["tokens"]["done"]) == (12, 0)
    again = released(recipe, dataset)
    assert again.name == "r-0002" and verify(recipe, again).findings == []


def test_a_picture_that_is_gone_says_nothing_of_its_tokens(dataset_of, tmp_path):
    recipe, dataset = dataset_of
    release = released(recipe, dataset)
    (tmp_path / "pics" / "p003.png").unlink()
    result = verify(recipe, release)
    assert [(f.key, f.check) for f in result.findings] == [("p003.png", "picture")]
    with dataset.lease("test"):
        assert mend(recipe, dataset, release, result.findings) == 0
    assert not is_broken(dataset, release)


def test_lengths_and_codes_are_held_against_schedule_and_codebook(dataset_of):
    recipe, dataset = dataset_of

    def spoil(rows):
        rows[0]["input"] = rows[0]["input"][:-2]
        rows[1]["target"] = b"\xff\xff" + rows[1]["target"][2:]
        rows[2]["n_tokens"] = 5
        rows[3]["clean"] = None
        rows[4]["tokenizer"] = "0123456789abcdef"
        rows[5]["schedule"] = 99
        rows[6]["draws"] = 3
        return rows

    rewritten(dataset, spoil)
    run(recipe, dataset)
    release = released(recipe, dataset)
    told = {f.key: f.what for f in verify(recipe, release, sample=0).findings}
    assert len(told) == len(verify(recipe, release).findings) == 7
    assert told["p000.png"].startswith("input has ") and "are due" in told["p000.png"]
    assert told["p001.png"].startswith("target holds code 65535")
    assert told["p002.png"] == "n_tokens is 5, its schedule has 14"
    assert told["p003.png"] == "clean has 0 bytes, 28 are due"
    made = release.columns["tokens"]["config"]["tokenizer"]
    assert told["p004.png"] == f"made by tokenizer 0123456789abcdef, the release names {made}"
    assert told["p005.png"] == "there is no schedule 99"
    assert told["p006.png"] == "3 scales and 3 draws, the step says 3 and 2"


def test_what_a_row_says_of_its_picture_is_compared(dataset_of):
    recipe, dataset = dataset_of

    def spoil(rows):
        rows[2]["left"] = 1.5
        rows[5]["clean"] = bytes(len(rows[5]["clean"]))
        return rows

    rewritten(dataset, spoil)
    run(recipe, dataset)
    told = {f.key: (f.check, f.what) for f in verify(recipe, released(recipe, dataset)).findings}
    assert told["p002.png"] == ("encoding", "left differs: 1.5, anew 0.0")
    assert told["p005.png"][0] == "encoding" and told["p005.png"][1].startswith("clean differs at ")
    assert len(told) == 2


def test_pictures_that_a_step_brought_are_read_from_its_column(tmp_path):
    write_pictures(tmp_path / "pics", 5)
    random_tokenizer(0).save(tmp_path / "tokenizer")
    steps = {"got": {"op": "toy_ops:Bring"}, "tokens": {**STEPS["tokens"], "reads": ["got"]}}
    releases = {"r": {"columns": ["got", "tokens"]}, "s": {"columns": ["tokens"]}}
    recipe, dataset = build(tmp_path, steps, releases=releases)
    for picture in (tmp_path / "pics").iterdir():
        picture.write_bytes(picture.read_bytes()[::-1])
    assert run(recipe, dataset)["tokens"]["values"] == 5
    release = released(recipe, dataset)
    assert (verify(recipe, release).sampled, verify(recipe, release).findings) == (5, [])
    with dataset.lease("test"):
        bare = make_release(recipe, dataset, "s")[0]
    with pytest.raises(UserError, match=r"has no column 'got'.*\n  next: add got to the columns"):
        verify(recipe, bare)


def test_another_tokenizer_or_recipe_is_refused(dataset_of, tmp_path):
    recipe, dataset = dataset_of
    release = released(recipe, dataset)
    random_tokenizer(1).save(tmp_path / "other")
    wrong, _ = build(tmp_path, {**STEPS, "tokens": {**STEPS["tokens"], "tokenizer": "other"}}, releases=RELEASES)
    with pytest.raises(UserError, match=r"has digest .* was made by .*\n  next: --set steps.tokens.tokenizer="):
        verify(wrong, release)
    wrong, _ = build(tmp_path, {**STEPS, "tokens": {**STEPS["tokens"], "p": 0.3}}, releases=RELEASES)
    with pytest.raises(UserError, match=r"steps.tokens.p: p is 0.3; release r-0001 was made with 0.6"):
        verify(wrong, release)


def test_another_version_of_the_program_is_refused(dataset_of, monkeypatch):
    recipe, dataset = dataset_of
    release = released(recipe, dataset)
    monkeypatch.setattr("nextloom.pixels.RESIZE_VERSION", "resize2")
    with pytest.raises(UserError, match=r"extracts by version .*resize2; release r-0001 was made by .*resize1"):
        verify(recipe, release)


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
    assert end.value.code == 0 and "7 files, 12 rows, 3 encoded anew, 0 differ" in capsys.readouterr().out
    flip(files_of(dataset)[0])
    monkeypatch.setattr("sys.argv", [*call, "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == 1 and json.loads(out)[0]["findings"][0]["check"] == "pages"
    assert "next: nextloom verify" in err and open_release(dataset.uri, "r").name == "r-0001"
