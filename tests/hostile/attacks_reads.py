"""Bytes that a stranger's table, folder, tar, index or clone names: paths, links, special files, sizes, URIs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from hostile.attack import Attack, Outcome, patched
from hostile.tools import Context, Strike, all_of, listed, listener, read, told
from nextloom import io as places
from nextloom import untrusted
from nextloom.content import Content
from nextloom.curation.sources import columns, huggingface
from nextloom.curation.sources.files import Files
from nextloom.curation.sources.huggingface import HuggingFace
from nextloom.curation.sources.img2dataset import Img2Dataset
from nextloom.curation.sources.source import Source
from nextloom.curation.sources.table import Table
from nextloom.curation.sources.webdataset import WebDataset
from nextloom.errors import UserError
from nextloom.untrusted import Door, bare

SECRET = b"the secret of another folder"


def reads(make: Callable[[Path], Source], stolen: Callable[[bytes], bool] = lambda raw: SECRET in raw) -> Strike:
    """Reads the first row of a source; the attack succeeds when it gives what was not meant for it."""

    def strike(folder: Path) -> Outcome:
        (folder / "photos" / "sub").mkdir(parents=True)
        (folder / "photos-private").mkdir()
        for name in ("secret.jpg", "photos-private/secret.jpg"):
            (folder / name).write_bytes(SECRET)
        (folder / "outside").mkdir()
        (folder / "outside" / "secret.jpg").write_bytes(SECRET)
        try:
            raw = read(make(folder))
        except (ValueError, OSError, UserError) as error:
            text = told(error) + (getattr(error, "detail", None) or "")
            return Outcome(SECRET.decode() in text, told(error))
        return Outcome(stolen(raw), f"{len(raw)} bytes were read")

    return strike


# ---- paths that a table names


def csv(name: Callable[[Path], str]) -> Callable[[Path], Table]:
    """A table beside its pictures, with one row that names `name`."""

    def make(folder: Path) -> Table:
        (folder / "photos" / "t.csv").write_text(f'path\n"{name(folder)}"\n')
        return Table(path=str(folder / "photos" / "t.csv"))

    return make


def jsonl(folder: Path) -> Table:
    (folder / "photos" / "t.jsonl").write_text(json.dumps({"path": str(folder / "secret.jpg")}))
    return Table(path=str(folder / "photos" / "t.jsonl"))


def parquet_path(folder: Path) -> Table:
    pq.write_table(pa.table({"path": [f"{folder}/secret.jpg"]}), folder / "photos" / "t.parquet")
    return Table(path=str(folder / "photos" / "*.parquet"))


def struct_path(folder: Path) -> Table:
    cell = pa.array([{"bytes": None, "path": "../secret.jpg"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": cell}), folder / "photos" / "t.parquet")
    return Table(path=str(folder / "photos"))


def with_base(folder: Path) -> Table:
    (folder / "photos" / "t.csv").write_text("path\n../../secret.jpg\n")
    return Table(path=str(folder / "photos" / "t.csv"), base=str(folder / "photos" / "sub"))


def saved(folder: Path, name: str) -> HuggingFace:
    """A dataset as `save_to_disk` leaves it, whose state names a file elsewhere."""
    table = pa.table({"image": [SECRET]})
    with pa.ipc.new_stream(folder / "outside" / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "photos" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    return HuggingFace(path=str(folder / "photos"))


def split_elsewhere(folder: Path) -> HuggingFace:
    saved(folder, "x")
    (folder / "photos" / "state.json").rename(folder / "outside" / "state.json")
    (folder / "outside" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "photos" / "dataset_dict.json").write_text(json.dumps({"splits": ["../outside"]}))
    return HuggingFace(path=str(folder / "photos"))


def index(name: Callable[[Path], str]) -> Callable[[Path], Table]:
    def make(folder: Path) -> Table:
        pq.write_table(pa.table({"jpg": [SECRET]}), folder / "outside" / "t.parquet")
        (folder / "photos" / "index.txt").write_text(name(folder) + "\n")
        return Table(path=str(folder / "photos" / "index.txt"))

    return make


PATHS: dict[str, Callable[[Path], Source]] = {
    "an absolute path": csv(lambda folder: f"{folder}/secret.jpg"),
    "..": csv(lambda folder: "../secret.jpg"),
    ".. behind a folder that is there": csv(lambda folder: "sub/../../secret.jpg"),
    ".. behind a folder that is not there": csv(lambda folder: f"{folder}/photos/./sub/.././../secret.jpg"),
    "doubled slashes": csv(lambda folder: f"//{folder}//secret.jpg"),
    "a folder whose name begins as the root's": csv(lambda folder: f"{folder}/photos-private/secret.jpg"),
    "a file: URI": csv(lambda folder: f"file://{folder}/secret.jpg"),
    "a FILE: URI": csv(lambda folder: f"FILE://{folder}/secret.jpg"),
    "file://localhost": csv(lambda folder: f"file://localhost{folder}/secret.jpg"),
    "a file: URI with ..": csv(lambda folder: f"file://{folder}/photos/../secret.jpg"),
    "a file: URI with %2e%2e": csv(lambda folder: f"file://{folder}/photos/%2e%2e/secret.jpg"),
    "a file: URI with %2F": csv(lambda folder: f"file://{folder}/photos%2F..%2Fsecret.jpg"),
    "through /proc/self/root": csv(lambda folder: f"/proc/self/root{folder}/secret.jpg"),
    "through /proc/thread-self/root": csv(lambda folder: f"/proc/thread-self/root{folder}/secret.jpg"),
    "a path in JSONL": jsonl,
    "a path in Parquet": parquet_path,
    "the path beside null bytes": struct_path,
    ".. from source.base": with_base,
    "an Arrow file that state.json names by ..": lambda folder: saved(folder, "../outside/data.arrow"),
    "a split that dataset_dict.json names by ..": split_elsewhere,
    "an index that names an absolute shard": index(lambda folder: f"{folder}/outside/t.parquet"),
    "an index that names a shard by ..": index(lambda folder: "../outside/t.parquet"),
    "an index that names a file: URI": index(lambda folder: f"file://{folder}/outside/t.parquet"),
}


def any_place(self: Door, real: str, *, shown: bool = False) -> bool:
    return True


def no_walls() -> Context:
    return patched(Door, "_inside", any_place)


# ---- links


def linked(target: str, name: str, row: str = "link.jpg") -> Callable[[Path], Table]:
    def make(folder: Path) -> Table:
        (folder / "photos" / name).symlink_to(target.format(folder=folder))
        return csv(lambda _: row)(folder)

    return make


def link_chain(folder: Path) -> Table:
    (folder / "photos" / "sub" / "one.jpg").symlink_to("../../secret.jpg")
    (folder / "photos" / "two.jpg").symlink_to("sub/one.jpg")
    (folder / "photos" / "link.jpg").symlink_to("two.jpg")
    return csv(lambda _: "link.jpg")(folder)


def linked_picture(folder: Path) -> Files:
    (folder / "photos" / "a.jpg").symlink_to("../secret.jpg")
    return Files(path=str(folder / "photos"))


def linked_shard(folder: Path) -> Table:
    pq.write_table(pa.table({"jpg": [SECRET]}), folder / "outside" / "t.parquet")
    (folder / "photos" / "t.parquet").symlink_to("../outside/t.parquet")
    return Table(path=str(folder / "photos"))


def linked_tar(folder: Path) -> WebDataset:
    write_tar(folder / "outside" / "s.tar", {"a.jpg": SECRET})
    (folder / "photos" / "s.tar").symlink_to(folder / "outside" / "s.tar")
    return WebDataset(path=str(folder / "photos"))


def img2dataset(folder: Path, part: str) -> Img2Dataset:
    """Its Parquet file is there, and its pictures, by a link, elsewhere."""
    rows = pa.table({"key": ["000"], "status": ["success"], "caption": ["x"]})
    pq.write_table(rows, folder / "photos" / "00000.parquet")
    (folder / "photos" / "00000_stats.json").write_text("{}")
    if part == ".tar":
        write_tar(folder / "outside" / "p.tar", {"000.jpg": SECRET})
        (folder / "photos" / "00000.tar").symlink_to("../outside/p.tar")
    else:
        (folder / "outside" / "000.jpg").write_bytes(SECRET)
        (folder / "photos" / "00000").symlink_to("../outside")
    return Img2Dataset(path=str(folder / "photos"))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


LINKS: dict[str, Callable[[Path], Source]] = {
    "a linked picture of `files`": linked_picture,
    "a relative link that a table names": linked("../secret.jpg", "link.jpg"),
    "an absolute link that a table names": linked("{folder}/secret.jpg", "link.jpg"),
    "a linked folder that a table names": linked("../outside", "link", "link/secret.jpg"),
    "a linked folder and ..": linked("../outside", "link", "link/../secret.jpg"),
    "a chain of links": link_chain,
    "a link to /proc/self/cwd and ..": linked("/proc/self/root{folder}/outside", "link", "link/secret.jpg"),
    "a linked Parquet file": linked_shard,
    "a linked tar": linked_tar,
    "a linked tar of img2dataset": lambda folder: img2dataset(folder, ".tar"),
    "a linked folder of img2dataset": lambda folder: img2dataset(folder, ""),
}


def swapped(folder: Path) -> Outcome:
    """A folder is replaced by a link after it was judged and before its file is opened."""
    for name in ("in", "outside"):
        (folder / name / "sub").mkdir(parents=True)
        (folder / name / "sub" / "a.jpg").write_bytes(SECRET if name == "outside" else b"mine")
    door = Door([str(folder / "in")])
    door.read(str(folder / "in" / "sub" / "a.jpg"))
    (folder / "in" / "sub").rename(folder / "in" / "old")
    (folder / "in" / "sub").symlink_to(folder / "outside" / "sub")
    try:
        return Outcome(door.read(str(folder / "in" / "sub" / "a.jpg")) == SECRET, "read")
    except ValueError as error:
        return Outcome(False, told(error))


def names_listed(make: Callable[[Path], Source]) -> Strike:
    """A linked folder: the names of what lies behind it become keys."""

    def strike(folder: Path) -> Outcome:
        (folder / "photos").mkdir()
        (folder / "outside").mkdir()
        (folder / "outside" / "private.jpg").write_bytes(b"x")
        pq.write_table(pa.table({"jpg": [b"x"]}), folder / "outside" / "private.parquet")
        pq.write_table(pa.table({"jpg": [b"x"]}), folder / "photos" / "mine.parquet")
        (folder / "photos" / "album").symlink_to("../outside")
        source = make(folder)
        rows = listed(source)
        bad = [row["member"] for row in rows if (row["member"] or "").startswith("^")]
        return Outcome(any("private" in row["key"] for row in rows), f"error row NotAllowed: {bad[:1]}")

    return strike


FOLDERS = {
    "a linked folder of `files`": lambda folder: Files(path=str(folder / "photos")),
    "a linked folder of shards": lambda folder: Table(path=str(folder / "photos")),
    "a linked folder of img2dataset, its names": lambda folder: img2dataset(folder, ""),
    "a linked folder under a pattern": lambda folder: Table(path=str(folder / "photos" / "**/*.parquet")),
}

# ---- what is no regular file, hidden, too large, or the machine's


def environ(raw: bytes) -> bool:
    return b"PATH=" in raw


def device(raw: bytes) -> bool:
    return True


def reads_device(name: str, **fields) -> Strike:
    """A device gives bytes without end: reading up to the limit is what the attacker wants."""

    def strike(folder: Path) -> Outcome:
        (folder / "t.csv").write_text(f"path\n{name}\n")
        try:
            raw = read(Table(path=str(folder / "t.csv"), max_bytes=2**21, **fields))
        except untrusted.TooLarge as error:
            return Outcome(True, told(error))
        except (ValueError, OSError) as error:
            return Outcome(False, told(error))
        return Outcome(True, f"{len(raw)} bytes")

    return strike


def any_kind() -> Context:
    return all_of(no_walls(), patched(untrusted, "_expect_regular", lambda mode: None))


def fifo(make: Callable[[Path], Callable[[], object]]) -> Strike:
    """A pipe without a writer: opening it waits for ever."""

    def strike(folder: Path) -> Outcome:
        (folder / "photos").mkdir()
        os.mkfifo(folder / "photos" / "a.txt")
        os.mkfifo(folder / "photos" / "pipe.jpg")
        (folder / "photos" / "a.jpg").write_bytes(b"x")
        results: list[str] = []

        def work() -> None:
            try:
                make(folder)()
                results.append("the sidecar is not read")
            except (ValueError, OSError) as error:
                results.append(told(error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(0.4)
        hung = thread.is_alive()
        for name in ("a.txt", "pipe.jpg"):
            with contextlib.suppress(OSError):  # lets a reader that waits go on
                os.close(os.open(folder / "photos" / name, os.O_WRONLY | os.O_NONBLOCK))
        thread.join(5)
        return Outcome(hung, "it hangs" if hung else results[0])

    return strike


def plain_open(real: str) -> int:
    return os.open(real, os.O_RDONLY | os.O_NOFOLLOW)


def in_the_open() -> Context:
    return all_of(patched(untrusted, "_open", plain_open), patched(untrusted, "_expect_regular", lambda mode: None))


def linked_pipe(folder: Path) -> Callable[[], object]:
    (folder / "photos" / "link.jpg").symlink_to("pipe.jpg")
    (folder / "photos" / "t.csv").write_text("path\nlink.jpg\n")
    return lambda: read(Table(path=str(folder / "photos" / "t.csv")))


def named_pipe(folder: Path) -> Callable[[], object]:
    (folder / "photos" / "t.csv").write_text("path\npipe.jpg\n")
    return lambda: read(Table(path=str(folder / "photos" / "t.csv")))


def hidden(name: str) -> Callable[[Path], Table]:
    def make(folder: Path) -> Table:
        place = folder / "photos" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(SECRET)
        return csv(lambda _: name)(folder)

    return make


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


LIMIT = 1 << 20


def large_file(folder: Path) -> Table:
    sparse(folder / "photos" / "large.jpg", 8 * LIMIT)
    (folder / "photos" / "t.csv").write_text("path\nlarge.jpg\n")
    return Table(path=str(folder / "photos" / "t.csv"), max_bytes=LIMIT)


def large_cell(folder: Path) -> Table:
    pq.write_table(pa.table({"jpg": [bytes(8 * LIMIT)]}), folder / "photos" / "t.parquet")
    return Table(path=str(folder / "photos"), max_bytes=LIMIT)


def large_member(folder: Path) -> WebDataset:
    write_tar(folder / "photos" / "s.tar", {"a.jpg": bytes(8 * LIMIT)})
    return WebDataset(path=str(folder / "photos"), max_bytes=LIMIT)


def too_much(raw: bytes) -> bool:
    return len(raw) > LIMIT


def unbounded(file: object, size: int, most: int) -> bytes:
    return file.read()  # type: ignore[attr-defined]


# ---- sidecars


def captions(prepare: Callable[[Path], Source], stolen: Callable[[dict], bool]) -> Strike:
    def strike(folder: Path) -> Outcome:
        (folder / "photos").mkdir()
        (folder / "photos" / "a.jpg").write_bytes(b"x")
        (folder / "secret.txt").write_bytes(SECRET)
        (folder / "secret.json").write_text(json.dumps({"caption": SECRET.decode()}))
        (row,) = listed(prepare(folder))
        return Outcome(stolen(row), f"sidecar {row['sidecar'][:100] if row['sidecar'] else None}")

    return strike


def linked_sidecar(suffix: str, target: str) -> Callable[[Path], Files]:
    def prepare(folder: Path) -> Files:
        (folder / "photos" / f"a{suffix}").symlink_to(target.format(folder=folder))
        return Files(path=str(folder / "photos"))

    return prepare


def large_sidecar(suffix: str) -> Callable[[Path], Files]:
    def prepare(folder: Path) -> Files:
        text = '{"caption": "' + "x" * untrusted.MAX_SIDECAR + '"}'
        (folder / "photos" / f"a{suffix}").write_text(text)
        return Files(path=str(folder / "photos"))

    return prepare


def large_tar_sidecar(folder: Path) -> WebDataset:
    (folder / "photos" / "a.jpg").unlink()
    write_tar(folder / "photos" / "s.tar", {"a.jpg": b"x", "a.txt": b"x" * (untrusted.MAX_SIDECAR + 1)})
    return WebDataset(path=str(folder / "photos"))


def secret_caption(row: dict) -> bool:
    return SECRET.decode() in f"{row['caption']} {row['sidecar']}"


def long_caption(row: dict) -> bool:
    return len(row["caption"] or "") > 2**20


# ---- URIs: what a row makes a worker connect to


# ---- URIs: what a row makes a worker connect to

KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}
OPTIONS = "endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


def connects(uri: str, root: str | None = None, sign: str = "") -> Strike:
    """A table that names a URI; the attack succeeds when a request comes in (that holds `sign`)."""

    def strike(folder: Path) -> Outcome:
        with listener() as (port, seen), patch.dict(os.environ, KEYS):
            roots = [root.format(port=port)] if root else [str(folder)]
            try:
                Content(Door(roots)).fetch({"uri": uri.format(port=port), "member": None, "offset": None})
                end = "read"
            except (ValueError, OSError) as error:
                end = told(error)
            return Outcome(any(sign in line for line in seen), end)

    return strike


def as_written(self: Door, uri: str) -> tuple[object, str] | None:
    """The door as it was: a URI is opened as it is spelled."""
    return places.filesystem(uri) if places.is_uri(uri) else None


def root_options(self: Door, uri: str) -> tuple[object, str] | None:
    """Any key of any bucket, with the options of the root."""
    return places.filesystem(self.roots[0])[0], unquote(bare(uri).removeprefix("s3://"))


ROOT = "s3://pictures/mine?" + OPTIONS
URIS = {
    "s3 with an endpoint": ("s3://bucket/a.jpg?" + OPTIONS, None),
    "s3 with an endpoint and credentials": ("s3://key:word@bucket/a.jpg?" + OPTIONS, None),
    "s3 with an endpoint, below the root's bucket": (
        "s3://pictures/mine/a.jpg?" + OPTIONS,
        "s3://pictures/mine?region=us-east-1",
    ),
    "gs with an endpoint": (
        "gs://anonymous@bucket/a.jpg?endpoint_override=127.0.0.1:{port}&scheme=http&retry_limit_seconds=1",
        None,
    ),
}
KEYS_OF_OTHERS = {
    "another bucket": ("s3://private/a.jpg", "/private/"),
    "another prefix": ("s3://pictures/others/a.jpg", "/others/"),
    "a prefix that begins as the root's": ("s3://pictures/mine2/a.jpg", "/mine2/"),
    "..": ("s3://pictures/mine/../others/a.jpg", "others"),
    "%2e%2e": ("s3://pictures/mine/%2e%2e/others/a.jpg", "others"),
    "a hidden key": ("s3://pictures/mine/.private/a.jpg", ".private"),
}


def address_in_a_column(value: str) -> Strike:
    """A password in an address would stand in the rows for everyone to read."""

    def strike(folder: Path) -> Outcome:
        (folder / "t.csv").write_text(f"url\n{value}\n")
        (row,) = listed(Table(path=str(folder / "t.csv")))
        return Outcome("hunter2" in json.dumps(row), f"error row {row['member']}")

    return strike


PASSWORDS = (
    "https://user:hunter2@example.com/a.jpg",
    "HTTP://user:hunter2@example.com/a.jpg",
    "http://hunter2@example.com/a.jpg",
    "s3://key:hunter2@bucket/a.jpg",
    "ftp://user:hunter2@example.com/a.jpg",
)


def readme(pattern: str) -> Strike:
    """A clone whose README sends the datasets library elsewhere."""

    def strike(folder: Path) -> Outcome:
        (folder / "clone").mkdir()
        pq.write_table(pa.table({"image": [b"x"]}), folder / "clone" / "t.parquet")
        pq.write_table(pa.table({"image": [b"x"]}), folder / "private.parquet")
        with listener() as (port, seen):
            name = pattern.format(port=port, folder=folder)
            card = f"---\nconfigs:\n- config_name: default\n  data_files: {json.dumps(name)}\n---\n"
            (folder / "clone" / "README.md").write_text(card)
            try:
                found = list(HuggingFace(path=str(folder / "clone")).units())
                end = f"listed {found}"
            except UserError as error:
                found, end = [], told(error)
            return Outcome(bool(seen) or any("private" in unit for unit in found), end)

    return strike


READMES = {
    "an address": "http://127.0.0.1:{port}/a.parquet",
    "an absolute path": "{folder}/*.parquet",
    "..": "../*.parquet",
}


def walls(
    group: str, cases: dict[str, Callable[[Path], Source]], guard: Callable[[], Context], outcome: str
) -> list[Attack]:
    return [Attack(group, name, outcome, reads(make), guard) for name, make in cases.items()]


DIRECT = "error row NotAllowed"


ATTACKS: list[Attack] = [
    *walls("paths", PATHS, no_walls, "outside of the source's folders"),
    *walls("links", LINKS, no_walls, DIRECT),
    Attack(
        "links",
        "a folder replaced by a link while it is read",
        DIRECT,
        swapped,
        lambda: patched(untrusted, "_opened_path", lambda number, path: path),
    ),
    *(
        Attack("links", name, DIRECT, names_listed(make), lambda: patched(Door, "holds", lambda self, path: True))
        for name, make in FOLDERS.items()
    ),
    *(
        Attack("special files", name, DIRECT, reads(csv(lambda _, name=name: name), environ), no_walls)
        for name in ("/proc/self/environ", "/proc/thread-self/environ")
    ),
    Attack(
        "special files",
        "/proc/NUMBER/environ",  # the number differs from process to process, and names of tests may not
        DIRECT,
        reads(csv(lambda _: f"/proc/{os.getpid()}/environ"), environ),
        no_walls,
    ),
    Attack(
        "special files",
        "/proc/self/environ, where source.roots names /",
        DIRECT,
        reads(lambda folder: Table(path=csv(lambda _: "/proc/self/environ")(folder).path, roots=("/",)), environ),
        lambda: patched(untrusted, "KERNEL", ()),
    ),
    *(
        Attack("special files", name, DIRECT, reads_device(name), any_kind)
        for name in ("/dev/zero", "/dev/urandom", "/dev/full", "/dev/null")
    ),
    Attack(
        "special files",
        "/dev/zero, where source.roots names /dev",
        "no regular file",
        reads_device("/dev/zero", roots=("/dev",)),
        any_kind,
    ),
    Attack("special files", "a pipe that a table names", "no regular file", fifo(named_pipe), in_the_open),
    Attack("special files", "a link to a pipe", "no regular file", fifo(linked_pipe), in_the_open),
    *(
        Attack(
            "paths",
            f"the hidden file {name}",
            DIRECT,
            reads(hidden(name)),
            lambda: patched(untrusted, "_hidden", lambda below: False),
        )
        for name in (".env", ".ssh/id_rsa", "sub/.git/config")
    ),
    Attack(
        "sizes",
        "a sparse file",
        "error row TooLarge",
        reads(large_file, too_much),
        lambda: patched(untrusted, "_bounded", unbounded),
    ),
    Attack(
        "sizes",
        "a cell of Parquet",
        "error row TooLarge",
        reads(large_cell, too_much),
        lambda: patched(Content, "_expect_size", lambda self, size: None),
    ),
    Attack(
        "sizes",
        "a member of a tar",
        "error row TooLarge",
        reads(large_member, too_much),
        lambda: patched(Content, "_expect_size", lambda self, size: None),
    ),
    *(
        Attack(
            "sidecars",
            f"{suffix} is {what}",
            "outside of",
            captions(linked_sidecar(suffix, target), secret_caption),
            no_walls,
        )
        for suffix in (".txt", ".json")
        for what, target in (
            ("a relative link", f"../secret{suffix}"),
            ("an absolute link", "{folder}/secret" + suffix),
        )
    ),
    *(
        Attack(
            "sidecars",
            f"{suffix} of 16 MiB",
            "too long for a sidecar",
            captions(large_sidecar(suffix), long_caption),
            lambda: patched(untrusted, "_bounded", unbounded),
        )
        for suffix in (".txt", ".json")
    ),
    Attack(
        "sidecars",
        ".txt of 16 MiB in a tar",
        "too long for a sidecar",
        captions(large_tar_sidecar, long_caption),
        lambda: patched(__import__("nextloom.curation.sources.webdataset", fromlist=["x"]), "MAX_SIDECAR", 2**40),
    ),
    *(
        Attack("URIs", name, DIRECT, connects(uri, root), lambda: patched(Door, "_remote", as_written))
        for name, (uri, root) in URIS.items()
    ),
    *(
        Attack(
            "URIs",
            f"a key of others: {name}",
            DIRECT,
            connects(uri, ROOT, sign),
            lambda: patched(Door, "_remote", root_options),
        )
        for name, (uri, sign) in KEYS_OF_OTHERS.items()
    ),
    *(
        Attack(
            "passwords",
            f"in a column: {value}",
            "its address holds a user name or a password",
            address_in_a_column(value),
            lambda: patched(columns, "WITH_PASSWORD", "^never$"),
        )
        for value in PASSWORDS
    ),
    *(
        Attack(
            "URIs",
            f"a README of a clone that names {name}",
            "refused: README.md names files outside",
            readme(pattern),
            lambda: patched(huggingface, "_expect_inside", lambda door, path: None),
        )
        for name, pattern in READMES.items()
    ),
]
