"""docs/newcomer.md as a newcomer types it: from a folder of photographs to an exported curated set."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import datasets
import pytest
from PIL import Image, ImageFilter

from nextloom.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "newcomer.md").read_text()
PHOTOS = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "rocket.jpg")


def write_photos(folder: Path) -> None:
    """Photographs that scikit-image ships; a copy, a smaller JPEG, a thumbnail, a blurred one, and one cut off."""
    spec = importlib.util.find_spec("skimage")
    shipped = Path(spec.origin).parent / "data"
    folder.mkdir(parents=True)
    for name in PHOTOS:
        shutil.copy(shipped / name, folder / name)
    shutil.copy(shipped / "coffee.png", folder / "coffee (1).png")
    cat, rocket = Image.open(shipped / "chelsea.png"), Image.open(shipped / "rocket.jpg")
    cat.resize((406, 270)).save(folder / "chelsea-for-mail.jpg", quality=80)
    cat.resize((90, 60)).save(folder / "chelsea-thumbnail.png")
    rocket.filter(ImageFilter.GaussianBlur(6)).save(folder / "rocket-shaken.jpg")
    (folder / "broken.jpg").write_bytes((shipped / "rocket.jpg").read_bytes()[:5000])
    (folder / "coffee.txt").write_text("a cup of espresso with a spoon on a wooden table")


def session() -> list[tuple[str, str]]:
    """(command, what the page says it prints) of its console blocks."""
    text = "\n".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL))
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(command.strip(), told.strip("\n")) for command, _, told in (part.partition("\n") for part in parts)]


def _untimed(text: str) -> str:
    return re.sub(r"\d+\.\d s\b", "0.0 s", text)


def test_the_page(tmp_path, monkeypatch, capsys, ray_local):
    commands = session()
    assert len(commands) == 6, "five, and a plan that writes nothing"
    home = tmp_path / "home"
    write_photos(home / "Pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    for command, told in commands:
        if not command.startswith("nextloom "):
            subprocess.run(command, shell=True, check=True)
            continue
        monkeypatch.setattr("sys.argv", shlex.split(command))
        with pytest.raises(SystemExit) as end:
            main()
        out = capsys.readouterr()
        assert not end.value.code, out.err
        pattern = ".*".join(map(re.escape, _untimed(told).split("...")))
        shown = _untimed(out.out.strip("\n")).replace(str(tmp_path), "/home/you")
        assert re.fullmatch(pattern, shown, re.DOTALL), shown
    loaded = datasets.load_dataset(str(tmp_path / "curated"), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(loaded["key"]) == {*PHOTOS}
    plain = loaded.cast_column("image", datasets.Image(decode=False))
    for row in plain:
        assert row["image"]["bytes"] == (home / "Pictures" / row["key"]).read_bytes()
    assert dict(zip(loaded["key"], loaded["caption"], strict=True))["coffee.png"].startswith("a cup of espresso")
