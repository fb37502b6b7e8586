"""Recipes, texts and folders of strangers: code that is imported, keys that are sent, YAML traps, terminal tricks."""

from __future__ import annotations

import contextlib
import http.server
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import yaml

from hostile.attack import Attack, Outcome, patched
from nextloom import cli, op, printable, strict_yaml
from nextloom.cli import application, tables
from nextloom.config import load_yaml
from nextloom.curation.captions.chat import ChatClient
from nextloom.errors import UserError
from nextloom.pipelines import plan, registry
from nextloom.pipelines.recipe import Recipe

# ---- code: modules that lie where the command is called

SHADOWS = ("duckdb", "yaml", "numpy", "pyarrow", "pydantic", "typer", "rich", "json", "tokenize", "obstore", "PIL")
MINIMAL = "dataset: toy\nsource: {op: files, path: pics}\nsteps:\n  stats: {op: image_stats}\n"
COMMANDS = {
    "python -m nextloom": [sys.executable, "-m", "nextloom"],
    "the console script": [str(Path(sys.executable).with_name("nextloom"))],
}
UNSAFE = [sys.executable, "-c", "from nextloom.cli import main; main()"]  # python -c looks into the working directory


def _plan_in_a_strangers_folder(command: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        (folder / "data" / "pics").mkdir(parents=True)
        (folder / "toy.yaml").write_text(MINIMAL)
        for name in SHADOWS:
            code = f"open({str(folder / 'ran')!r}, 'a').write({name!r})\nraise SystemExit(3)\n"
            (folder / f"{name}.py").write_text(code)
        done = subprocess.run(
            [*COMMANDS[command], "plan", "toy.yaml"], cwd=folder, capture_output=True, text=True, timeout=60
        )
        return Outcome((folder / "ran").exists(), f"exit {done.returncode}, no module of the folder was imported")

    return strike


def _own_op_shadows_a_module(folder: Path) -> Outcome:
    """A recipe with an own op brings, beside it, a module of a name that is installed."""
    (folder / "colorsys.py").write_text("RAN = True\n")  # of the standard library, imported by nothing here
    (folder / "own_ops_of_stranger.py").write_text("import colorsys\nRAN = hasattr(colorsys, 'RAN')\n")
    (folder / "r.yaml").write_text(MINIMAL.replace("image_stats", '"own_ops_of_stranger:Op"'))
    for name in ("colorsys", "own_ops_of_stranger"):
        sys.modules.pop(name, None)
    with (
        patch.object(sys, "path", type(sys.path)(sys.path)),
        patch.object(registry, "_folders", []),
        contextlib.suppress(UserError),
    ):
        Recipe.load(str(folder / "r.yaml"), root=str(folder))
    ran = bool(getattr(sys.modules.pop("own_ops_of_stranger", None), "RAN", False))
    sys.modules.pop("colorsys", None)
    return Outcome(ran, "the installed module was imported")


class _First(list):
    """A `sys.path` that is extended at its front, as it was before."""

    def extend(self, items) -> None:
        self[:0] = list(items)


CODE = [
    *(
        Attack(
            "code",
            f"modules of well-known names in the working directory, {name}",
            "exit 0",
            _plan_in_a_strangers_folder(name),
            lambda name=name: patch.dict(COMMANDS, {name: UNSAFE}),
        )
        for name in COMMANDS
    ),
    Attack(
        "code",
        "a module beside the recipe replaces one of the standard library",
        "installed module",
        _own_op_shadows_a_module,
        lambda: patched(sys, "path", _First(sys.path)),
    ),
]

# ---- environment: whose key goes to which server

SECRET = "the-secret-value"


class _Listener(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.heard.append(self.headers.get("Authorization", ""))  # pyrefly: ignore
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _send_key(variable: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        server = http.server.HTTPServer(("127.0.0.1", 0), _Listener)
        server.heard = []  # pyrefly: ignore
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            where = f"http://127.0.0.1:{server.server_port}/v1"
            step = f"{{op: caption, model: m, execution: {{endpoint: '{where}', api_key_env: {variable}}}}}"
            (folder / "r.yaml").write_text(f"dataset: toy\nsource: {{op: files, path: .}}\nsteps:\n  words: {step}\n")
            recipe = Recipe.load(str(folder / "r.yaml"), root=str(folder))
            with patch.dict(os.environ, {variable: SECRET}):
                try:
                    caption = recipe.steps["words"]
                    plan.check_environment(caption, "steps.words", recipe.allowed_environment)
                    ChatClient(caption.execution, SimpleNamespace(model="m")).probe()  # pyrefly: ignore
                except UserError as error:
                    return Outcome(any(SECRET in text for text in server.heard), f"refused: {error.what}")
            return Outcome(any(SECRET in text for text in server.heard), "sent")
        finally:
            server.shutdown()
            server.server_close()

    return strike


VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"),
    *("WANDB_API_KEY", "KUBERNETES_TOKEN", "DATABASE_URL", "SSH_AUTH_SOCK", "HOME", "nextloom_lower", "NEXTLOOMX"),
)
ENVIRONMENT = [
    Attack(
        "environment",
        f"a recipe sends {name} to its own server",
        "refused: the recipe sends the environment variable",
        _send_key(name),
        lambda: patched(plan, "check_environment", lambda *_: None),
    )
    for name in VARIABLES
]

# ---- YAML: what a recipe file hides

NINE = "a: &a [1,2,3,4,5,6,7,8,9]\n" + "\n".join(
    f"b{i}: &b{i} [{','.join(['*a' if i == 0 else f'*b{i - 1}'] * 9)}]" for i in range(7)
)
DEEP = "dataset: " + "[" * 120 + "]" * 120


def _values(data: object, limit: int) -> int:
    """Values in plain data, aliases unfolded, counted up to `limit`."""
    count, left = 0, [data]
    while left and count < limit:
        item = left.pop()
        count += 1
        left.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
    return count


def _yaml(text: str, effect: Callable[[object], bool]) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        (folder / "r.yaml").write_text(text)
        try:
            data = load_yaml(folder / "r.yaml")
        except UserError as error:
            return Outcome((folder / "ran").exists() or "RecursionError" in str(error), f"refused: {error.what}")
        except RecursionError:
            return Outcome(True, "RecursionError")
        return Outcome(effect(data), "read")

    return strike


def _unchecked() -> contextlib.AbstractContextManager:
    return patched(strict_yaml, "parse", lambda text: yaml.load(text, Loader=yaml.UnsafeLoader))


YAML = [
    Attack("yaml", name, outcome, _yaml(text, effect), _unchecked)
    for name, text, outcome, effect in (
        (
            "a key twice, the second replaces the rule that is read first",
            "keep: {where: a > 1}\nkeep: {where: a > 0}\n",
            "stands here twice",
            lambda data: data["keep"]["where"] == "a > 0",
        ),
        (
            "a key twice in a flow mapping",
            "keep: {op: select, where: a > 1, where: 'true'}\n",
            "stands here twice",
            lambda data: data["keep"]["where"] == "true",
        ),
        (
            "a key twice, once quoted",
            "a: {x: 1, 'x': 2}\n",
            "stands here twice",
            lambda data: data["a"]["x"] == 2,
        ),
        ("aliases of aliases, ten million values", NINE, "100,000 values", lambda data: _values(data, 10**6) >= 10**6),
        (
            "an alias inside of what it names",
            "a: &a {b: *a}\n",
            "stands inside",
            lambda data: _values(data, 10**5) >= 10**5,
        ),
        ("120 lists in one another", DEEP, "nested deeper", lambda data: _values(data, 120) == 120),
        (
            "a file of 2 MB",
            "a: '" + "x" * 2**21 + "'\n",
            "are no recipe",
            lambda data: len(data["a"]) > 2**20,
        ),
    )
    if name != "a file of 2 MB"
]
YAML.append(
    Attack(
        "yaml",
        "a file of 2 MB",
        "are no recipe",
        _yaml("a: '" + "x" * 2**21 + "'\n", lambda data: True),
        lambda: patched(strict_yaml, "MAX_BYTES", 2**30),
    )
)


def _tag(tag: str) -> Callable[[Path], Outcome]:
    def strike(folder: Path) -> Outcome:
        mark = folder / "ran"
        (folder / "r.yaml").write_text(f"dataset: {tag.format(mark=mark)}\n")
        with contextlib.suppress(UserError, yaml.YAMLError):
            load_yaml(folder / "r.yaml")
        return Outcome(mark.exists(), "refused: not valid YAML")

    return strike


YAML += [
    Attack("yaml", f"a tag that runs code: {tag.partition(' ')[0]}", "refused", _tag(tag), _unchecked)
    for tag in (
        "!!python/object/apply:os.mkdir ['{mark}']",
        "!!python/object/new:os.mkdir ['{mark}']",
        '!!python/object/apply:builtins.exec [\'open("{mark}", "w")\']',
    )
]

# ---- text: what a terminal obeys, and what a reader does not see

PAYLOADS = {
    "a window title (OSC 0)": "\x1b]0;pwned\x07",
    "a hyperlink (OSC 8)": "\x1b]8;;http://evil/\x1b\\click\x1b]8;;\x1b\\",
    "the clipboard (OSC 52)": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "the screen cleared (CSI 2J)": "\x1b[2J\x1b[H",
    "the line overwritten (CR)": "failed\rdone  ",
    "backspaces": "failed\x08\x08\x08\x08\x08\x08done",
    "an 8-bit CSI": "\x9b31m",
    "a device query (DECRQSS)": "\x1bP$q\x1b\\",
    "right-to-left override": "photo\u202egnp.exe",
    "isolates": "a\u2067b\u2069",
    "invisible tags": "photo\U000e0041\U000e0042",
    "zero-width joints": "ad\u200bmin",
}


def _bad(text: str) -> bool:
    return any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) <= 0x9F or ord(c) in HIDDEN for c in text)


HIDDEN = {0x202E, 0x2067, 0x2069, 0xE0041, 0xE0042, 0x200B}


def _said(text: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        tables.say(text)
    return out.getvalue()


def _cell(text: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        table = tables.table_of("key")
        table.add_row(text)
        tables.show(table)
    return out.getvalue()


def _logged(text: str) -> str:
    record = logging.LogRecord("nextloom", logging.WARNING, __file__, 1, "%s", (text,), None)
    return application.PrintableFormatter("%(message)s").format(record)


def _error_row(text: str) -> str:
    return op.error_value("fetch", ValueError(text))["message"]


def _refusal(text: str) -> str:
    def verb() -> None:
        raise UserError(text)

    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.suppress(SystemExit):
        cli.call(verb)  # pyrefly: ignore
    return err.getvalue()


CHANNELS = {
    "a line": (_said, tables),
    "a table": (_cell, tables),
    "the log": (_logged, printable),
    "an error row": (_error_row, op),
    "a refusal": (_refusal, application),
}


def _shown(channel: str, payload: str) -> Callable[[Path], Outcome]:
    def strike(_: Path) -> Outcome:
        return Outcome(_bad(CHANNELS[channel][0](payload)), "spelled out")

    return strike


TEXT = [
    Attack(
        "text",
        f"{name} in {channel}",
        "spelled out",
        _shown(channel, payload),
        lambda owner=owner: patched(owner, "printable", lambda text, lines=False: text),
    )
    for channel, (_, owner) in CHANNELS.items()
    for name, payload in PAYLOADS.items()
    # rich takes some controls out of table cells by itself, and a line break ends a cell
    if not (channel == "a table" and name in ("backspaces", "the line overwritten (CR)"))
]

# ---- secrets: what an error row or a refusal would repeat

SECRETS = {
    "a URL's password": "cannot open https://user:hunter2hunter2@example.org/a.jpg",
    "a password with an @": "cannot open ftp://u:hunter2@hunter2@example.org/",
    "a password without a user": "cannot open https://:hunter2hunter2@example.org/",
    "a signed address": "403 at https://b.example.org/a.jpg?X-Amz-Signature=hunter2hunter2&X-Amz-Date=1",
    "a shared access signature": "403 at https://b.example.org/a.jpg?sv=1&sig=hunter2hunter2",
    "a token in a query": "404 at https://example.org/a.jpg?access_token=hunter2hunter2",
    "a bearer header": "request {'Authorization': 'Bearer hunter2hunter2'} failed",
    "a key in JSON": '{"error": "bad", "api_key": "hunter2hunter2"}',
    "an AWS secret": "aws_secret_access_key=hunter2hunter2",
    "an AWS key id": "the key AKIAHUNTER2HUNTER2XX does not exist",
    "a key of OpenAI": "Incorrect API key provided: sk-hunter2hunter2hunter2",
    "a token of Hugging Face": "invalid hf_hunter2hunter2hunter2",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nhunter2hunter2",
    "a password past the cut": "x" * 470 + " https://user:hunter2hunter2@example.org/" + "y" * 100,
}


def _repeated(payload: str) -> Callable[[Path], Outcome]:
    def strike(_: Path) -> Outcome:
        row = op.error_value("fetch", ValueError(payload))["message"]
        return Outcome("hunter2" in row.lower(), "redacted")

    return strike


REDACTION = [
    Attack(
        "secrets",
        f"{name} in an error row",
        "redacted",
        _repeated(payload),
        lambda: patched(op, "redacted", lambda text: text),
    )
    for name, payload in SECRETS.items()
]

ATTACKS = [*CODE, *ENVIRONMENT, *YAML, *TEXT, *REDACTION]
