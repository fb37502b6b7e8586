"""Download: every way a server can misbehave ends as the row that the docs say, in time, within bounds."""

import ipaddress
import socket
import time
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine import build, contents, plans, run
from nextloom import pixels
from nextloom.curation.web.addresses import Allowed, Guard, is_public
from nextloom.curation.web.answer import retry_after
from nextloom.curation.web.download import Download
from nextloom.errors import UserError
from nextloom.op import Row, RowFailure
from nextloom.pipelines.export import Chosen, Options, export
from nextloom.pipelines.recipe import Recipe
from nextloom.pipelines.release import make_release
from nextloom.train.pictures.rows import originals
from web_server import HOLD, WebServer, picture

QUICK = {"backoff": 0.02, "connect_timeout": 2, "read_timeout": 1, "timeout": 4}
MOST = 1_000_000


@pytest.fixture
def server():
    with WebServer() as server:
        yield server


def op(server: WebServer, execution: dict | None = None, **fields) -> Download:
    execution = {**QUICK, **(execution or {})}
    return Download(max_bytes=MOST, allow_private=(f"127.0.0.1:{server.port}",), execution=execution, **fields)


def fetch(download: Download, *urls: str) -> list:
    return list(download.process([Row(number, str(number), {"uri": url}) for number, url in enumerate(urls)]))


def test_what_came_is_stored_as_it_is(server):
    (row,) = fetch(op(server), server.url("/good/cat"))
    assert row == {
        "bytes": picture("cat"),
        "status": "success",
        "http_status": 200,
        "attempts": 1,
        "size": len(picture("cat")),
        "mime": "image/png",
        "sha256": sha256(picture("cat")).hexdigest(),
        "final_url": server.url("/good/cat"),
    }
    assert row.keys() == set(op(server).columns().names)
    assert server.headers["/good/cat"]["user-agent"] == "nextloom"
    assert server.headers["/good/cat"]["accept-encoding"] == "identity"


BAD = [  # path, type of error, http_status, attempts, transient, part of the message
    ("/nowhere", "HttpStatus", 404, 1, False, "the server says 404"),
    ("/status/500", "HttpStatus", 500, 3, True, "the server says 500"),
    ("/status/410", "HttpStatus", 410, 1, False, "410"),
    ("/status/408", "HttpStatus", 408, 3, True, "408"),
    ("/later/100", "HttpStatus", 503, 1, True, "it asks to wait 100 s"),
    ("/drip", "Timeout", 200, 1, True, "not done within timeout: 4 s"),
    ("/headers", "Timeout", None, 1, True, "not done within timeout: 4 s"),
    ("/manyheaders", "BadResponse", None, 1, False, "this is no HTTP"),
    ("/continue", "Timeout", None, 1, True, "not done within timeout: 4 s"),
    ("/extension", "Timeout", 200, 1, True, "not done within timeout: 4 s"),
    ("/silent", "Timeout", None, 3, True, "silent"),
    ("/endless", "TooLarge", 200, 1, False, "more than 1,000,000 bytes"),
    ("/announced/5000000", "TooLarge", 200, 1, False, "5,000,000 bytes are announced"),
    ("/bomb", "TooLarge", 200, 1, False, "more than 1,000,000 bytes"),
    ("/trailing", "BadEncoding", 200, 1, False, "bytes follow the end of the gzip stream"),
    ("/half", "BadEncoding", 200, 3, True, "the gzip stream is cut off"),
    ("/short", "WrongLength", 200, 3, True, "1,000 bytes are announced"),
    ("/cut", "WrongLength", 200, 3, True, "the last chunk never came"),
    ("/circle", "TooManyRedirects", 302, 1, False, "more redirects than max_redirects: 5"),
    ("/hops/6", "TooManyRedirects", 307, 1, False, "more redirects than max_redirects: 5"),
    ("/closed", "ConnectError", None, 3, True, "disconnected"),
    ("/garbage", "BadResponse", None, 1, False, "this is no HTTP"),
    ("/to/file:///etc/passwd", "BadUrl", 301, 1, False, "no http or https URL: 'file:///etc/passwd'"),
    ("/robots/noai", "Disallowed", 200, 1, False, "X-Robots-Tag says noai"),
    ("/robots/nextloom:_noindex,_nofollow", "Disallowed", 200, 1, False, "says noindex"),
]


def test_every_misbehaviour_is_a_row_and_all_of_them_end(server):
    start = time.monotonic()
    rows = fetch(op(server), *(server.url(path) for path, *_ in BAD))
    assert time.monotonic() - start < 60, "none of them waits for a server that says nothing more"
    for (path, kind, status, attempts, transient, message), row in zip(BAD, rows, strict=True):
        assert isinstance(row, RowFailure), (path, row)
        assert (row.kind, row.transient) == (kind, transient), (path, row)
        assert message in f"{row}: {row.detail}", (path, row)
        words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind)
        assert row.values["status"] == f"failed{words}", path
        assert (row.values["http_status"], row.values["attempts"]) == (status, attempts), (path, row.values)
        assert "bytes" not in row.values, path
    once_each = {path: attempts for path, _, _, attempts, *_ in BAD if path not in ("/circle", "/closed")}
    assert {path: server.seen[path] for path in once_each} == once_each
    assert server.seen["/circle"] == 6, "the first and five redirects"
    assert server.seen["/closed"] == 2 * 3, "aiohttp tries a dropped connection once more"


def test_docs_name_every_status():
    text = (Path(__file__).parent.parent / "docs" / "pictures.md").read_text()
    kinds = {kind for _, kind, *_ in BAD} | {"NoSuchHost", "PrivateAddress", "BadCertificate"}
    words = {"failed" + "".join(f"_{c.lower()}" if c.isupper() else c for c in kind) for kind in kinds}
    assert {word for word in words if f"`{word}`" not in text} == set()


def test_urls_that_lead_nowhere(server):
    urls = ("ftp://a/b.png", "/a/b.png", "http://", "http://a:99999/", "http://no-such-host.invalid/", "")
    rows = fetch(op(server), *urls)
    assert [row.kind for row in rows] == ["BadUrl"] * 4 + ["NoSuchHost", "BadUrl"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused
        port = closed.getsockname()[1]
        (row,) = fetch(Download(allow_private=(f"127.0.0.1:{port}",), execution=QUICK), f"http://127.0.0.1:{port}/")
    assert (row.kind, row.transient, row.values["attempts"]) == ("ConnectError", True, 3)
    (row,) = fetch(op(server, schemes=("https",)), server.url("/good/a"))
    assert row.kind == "BadUrl" and not server.seen


def test_redirects_and_encodings_that_end_well(server):
    paths = ("/hops/5", "/gzip", "/robots/otherbot:_noai", "/robots/max-snippet:_20,_nofollow")
    hops, packed, other, words = fetch(op(server), *(server.url(path) for path in paths))
    assert (hops["bytes"], hops["final_url"]) == (picture("hops"), server.url("/good/hops"))
    assert packed["bytes"] == picture("gzip") and packed["size"] == len(picture("gzip"))
    assert other["status"] == words["status"] == "success"
    (row,) = fetch(op(server, unwanted=()), server.url("/robots/noai"))
    assert row["status"] == "success"


def test_a_busy_host_is_left_alone_for_as_long_as_it_asks(server):
    first, *others = fetch(op(server, {"per_host": 1}), *map(server.url, ("/busy/1", "/good/a", "/good/b")))
    assert (first["attempts"], first["bytes"]) == (2, picture("1"))
    refused, again = server.times["/busy/1"]
    assert again - refused >= 1
    for row, path in zip(others, ("/good/a", "/good/b"), strict=True):
        assert row["attempts"] == 1 and server.times[path][0] - refused >= 1, "another row disturbed it"


def test_retry_after_in_seconds_and_as_a_date():
    assert retry_after("7") == 7 and retry_after(None) == 0 and retry_after("soon") == 0
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60


@pytest.mark.parametrize("workers", [1, 2])
def test_bounds_on_requests_in_flight(server, workers):
    download = op(server, {"concurrency": 8, "per_host": 6, "workers": workers})
    rows = fetch(download, *(server.url(f"/held/{number}") for number in range(20)))
    assert server.peak["127.0.0.1"] == server.peak["all"] == 6 // workers
    hosts = ("127.0.0.1", "localhost")
    rows += fetch(download, *(server.url(f"/held/{number}", host) for number in range(20) for host in hosts))
    assert {row["status"] for row in rows} == {"success"}
    assert server.peak["all"] == 8 // workers
    assert max(server.peak[host] for host in hosts) == 6 // workers, "no more of one host than before"


def test_waiting_for_a_turn_costs_a_row_nothing(server):
    rows = fetch(op(server, {"per_host": 1, "timeout": 10 * HOLD}), *(server.url(f"/held/{n}") for n in range(15)))
    assert {row["status"] for row in rows} == {"success"}


# ---- private addresses

PRIVATE = """
127.0.0.1 127.0.0.2 localhost 2130706433 0x7f000001 0177.0.0.1 127.1 0 [::1] [::] [::ffff:127.0.0.1] [64:ff9b::7f00:1]
[2002:7f00:1::] [fe80::1%25lo] 10.0.0.1 192.168.1.1 172.16.0.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 240.0.0.1
255.255.255.255 [ff02::1] [fc00::1]
"""


def test_no_spelling_of_a_private_address_is_connected_to(server):
    hosts = PRIVATE.split()
    rows = fetch(Download(execution=QUICK), *(server.url("/good/a", host) for host in hosts))
    kinds = {host: row.kind for host, row in zip(hosts, rows, strict=True)}
    odd = {host: kind for host, kind in kinds.items() if kind != "PrivateAddress"}
    assert set(odd.values()) <= {"BadUrl"}, "a decimal or octal spelling may be refused sooner"
    assert set(odd) <= {"2130706433", "0177.0.0.1", "127.1", "0"}
    assert not server.seen


def test_a_redirect_to_a_private_address_is_refused(server):
    target = server.url("/good/secret", "127.0.0.2")
    redirected, direct = fetch(op(server), server.url(f"/to/{target}"), target)
    assert redirected.kind == direct.kind == "PrivateAddress"
    assert "allow_private" in str(redirected)
    assert "/good/secret" not in server.seen
    (row,) = fetch(Download(allow_private=("127.0.0.0/8",), execution=QUICK), server.url(f"/to/{target}"))
    assert row["bytes"] == picture("secret")


def test_a_name_that_turns_private_when_it_is_looked_up_again(server, monkeypatch):
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1", "127.0.0.1"])
    looked_up = []

    def lookup(host, port, *args, **kwargs):
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert socket.getaddrinfo("rebind.example", 80)[0][4][0] == "93.184.216.34", "what a check beforehand would see"
    (row,) = fetch(Download(execution=QUICK), server.url("/good/a", "rebind.example"))
    assert row.kind == "PrivateAddress" and looked_up.count("rebind.example") == 2 and not server.seen


def test_public_and_allowed():
    public = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
    assert [is_public(ipaddress.ip_address(text)) for text in public] == [True] * 4
    guard = Guard([Allowed.parse(text) for text in ("127.0.0.1:8000", "10.1.0.0/16", "[::1]:9", "fd00::/8")])
    yes = [("127.0.0.1", 8000), ("::ffff:127.0.0.1", 8000), ("10.1.2.3", 1), ("::1", 9), ("fd00::1%eth0", 2)]
    no = [("127.0.0.1", 8001), ("127.0.0.2", 8000), ("10.2.0.1", 1), ("::1", 8), ("fe80::1%eth0", 2)]
    assert [guard.permits(*at) for at in yes] == [True] * 5
    assert [guard.permits(*at) for at in no] == [False] * 5


@pytest.mark.parametrize("text", ["localhost:8000", "10.0.0.1/8", "127.0.0.1:http", "", "[::1"])
def test_an_exception_that_is_no_address_is_refused(text):
    steps = {"file": {"op": "download", "allow_private": [text]}}
    with pytest.raises(UserError, match=r"steps\.file\.allow_private: .* is no address; write 127\.0\.0\.1:8000"):
        Recipe.build({"dataset": "d", "source": {"op": "files", "path": "p"}, "steps": steps})


def test_more_workers_than_places_are_refused():
    steps = {"file": {"op": "download", "execution": {"workers": 9}}}
    with pytest.raises(UserError, match=r"steps\.file\.execution: 9 workers cannot share per_host 8"):
        Recipe.build({"dataset": "d", "source": {"op": "files", "path": "p"}, "steps": steps})


# ---- through the engine


def web_recipe(root, server, urls, **fields):
    (root / "urls.txt").write_text("\n".join(urls))
    steps = {
        "file": {"op": "download", "allow_private": [f"127.0.0.1:{server.port}"], "execution": QUICK, **fields},
        "photo": {"op": "image_stats", "reads": ["file"]},
        "phash": {"op": "perceptual_hash", "reads": ["file"]},
        "keep": {"op": "select", "where": "photo.short_side >= 16 and file.mime = 'image/png'"},
    }
    releases = {"r": {"rows": "keep", "columns": ["file"]}, "bare": {"rows": "keep"}}
    return build(root, steps, source={"op": "web_server:Urls", "path": "urls.txt"}, releases=releases)


def test_a_run_from_urls_to_verdicts_and_again_when_the_server_is_well(ray_local, tmp_path, server):
    server.down = True
    paths = ["/good/a", "/moody/b", "/nowhere", "/good/c", "/moody/d", "/held/no-picture"]
    recipe, dataset = web_recipe(tmp_path, server, map(server.url, paths))
    first = run(recipe, dataset)
    assert first["file"] == {"rows": 6, "values": 3, "errors": 3, "done": 6}
    assert first["photo"] == {"rows": 6, "values": 2, "errors": 4, "done": 6}
    assert (first["keep"]["kept"], first["keep"]["rejected"], first["keep"]["failed"]) == (2, 0, 4)
    rows = contents(recipe, dataset)
    assert [row["status"] for row in rows["file"]] == [
        "success", "failed_http_status", "failed_http_status", "success", "failed_http_status", "success"
    ]  # fmt: skip
    down = rows["file"][1]
    assert (down["bytes"], down["http_status"], down["attempts"]) == (None, 503, 3)
    assert (down["error"]["type"], down["error"]["transient"]) == ("HttpStatus", True)
    assert rows["photo"][1]["error"]["type"] == "InputFailed" and "503" in rows["photo"][1]["error"]["message"]
    assert rows["photo"][5]["error"]["type"] == "NotAPicture"
    assert (rows["photo"][0]["width"], rows["photo"][0]["height"]) == (48, 40)

    seen = dict(server.seen)
    assert {step: counts["done"] for step, counts in run(recipe, dataset).items()} == dict.fromkeys(first, 0) | {
        "keep": run(recipe, dataset)["keep"]["done"]
    }
    assert dict(server.seen) == seen, "a second run asks for nothing"
    faster, _ = web_recipe(tmp_path, server, map(server.url, paths), execution={**QUICK, "per_host": 2})
    assert {p.state for p in plans(faster, dataset).values()} == {"fresh"}, "how is not what"

    server.down = False
    again = run(recipe, dataset, retry_errors=True)
    assert again["file"] == {"rows": 6, "values": 5, "errors": 1, "done": 3}
    assert again["photo"]["values"] == 4 and again["keep"]["kept"] == 4
    more = {path: count - seen.get(path, 0) for path, count in server.seen.items()}
    assert more == {**dict.fromkeys(paths, 0), "/moody/b": 1, "/moody/d": 1, "/nowhere": 1}, "only failed rows"

    with dataset.lease("test"):
        released, _ = make_release(recipe, dataset, "r")
        bare, _ = make_release(recipe, dataset, "bare")
    pictures = list(originals(released))
    assert [p.rgb.shape for p in pictures] == [(40, 48, 3)] * 4, "pictures come out of the column that brought them"
    assert [p.id for p in originals(released, released.ids[[2, 0]])] == released.ids[[2, 0]].tolist()
    with pytest.raises(UserError, match="gives no picture any more: the row is a URL"):
        next(originals(bare))
    done = export(Chosen.of(released), tmp_path / "out", Options("parquet"))
    assert (done.written, done.failed) == (4, 0)
    out = {row["key"]: row["image"] for row in pq.read_table(tmp_path / "out/part-000000.parquet").to_pylist()}
    assert len(out) == 4 and set(out.values()) <= {row["bytes"] for row in contents(recipe, dataset)["file"]}
    with pytest.raises(UserError, match="are URLs, and it has no column that brings their bytes"):
        export(Chosen.of(bare), tmp_path / "bare", Options("parquet"))


def test_steps_over_one_download_share_its_decode(ray_local, tmp_path, server, monkeypatch):
    from nextloom.pipelines.run import Run
    from nextloom.pipelines.worker import Worker

    recipe, dataset = web_recipe(tmp_path, server, [server.url(f"/good/{n}") for n in range(3)])
    run(recipe, dataset, to="file")
    steps = [step for step in Run(recipe, dataset).steps if step.name in ("photo", "phash")]
    job = Run(recipe, dataset)
    for step in job.steps:
        job.planner.judge(step)
    tasks, chunk = [job._task(step) for step in steps], next(iter(job._chunks(steps, 10)))
    decoded = []
    decode = pixels.decode
    monkeypatch.setattr(pixels, "decode", lambda raw, frame: decoded.append(raw) or decode(raw, frame))
    records = Worker(tasks, job._rows_of(steps[0]))(chunk).to_pylist()
    assert {(r["step"], r["rows"], r["errors"]) for r in records} == {("photo", 3, 0), ("phash", 3, 0)}
    assert sorted(decoded) == sorted(picture(str(n)) for n in range(3)), "once a picture, for both steps"
