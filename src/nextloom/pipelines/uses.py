"""What a recipe uses besides its data: code from outside of the package, and environment variables.

A recipe is code, and a plan says which: the file of every own op, the name of every variable that is read and sent
to a server as a key. A recipe that somebody else wrote may name any variable and any server, so a variable is read
only where its own service is asked, where its name says that it is meant for this (NEXTLOOM_...), or where the
person at the command line names it.
"""

from __future__ import annotations

import inspect
from typing import Any
from urllib.parse import urlsplit

from nextloom.errors import UserError

OWN_PREFIX = "NEXTLOOM_"
"""Variables of this prefix are meant for recipes."""
SERVICES = {
    "OPENAI_API_KEY": "api.openai.com",
    "ANTHROPIC_API_KEY": "api.anthropic.com",
    "GEMINI_API_KEY": "generativelanguage.googleapis.com",
    "MISTRAL_API_KEY": "api.mistral.ai",
    "TOGETHER_API_KEY": "api.together.xyz",
    "OPENROUTER_API_KEY": "openrouter.ai",
    "DASHSCOPE_API_KEY": "dashscope.aliyuncs.com",
    "HF_TOKEN": "router.huggingface.co",
}
"""Variable -> the host that may get it, over TLS."""


def code_of(op: Any) -> str:
    """``module:Class (file)`` of an op or source from outside of the package; "" for those that come with it."""
    cls = type(op)
    if cls.__module__.partition(".")[0] == "nextloom":
        return ""
    try:
        file = inspect.getfile(cls)
    except (TypeError, OSError):
        file = "no file"
    return f"{cls.__module__}:{cls.__qualname__} ({file})"


def environment_of(op: Any) -> tuple[str, ...]:
    """Names of the environment variables that an op reads."""
    name = getattr(getattr(op, "execution", None), "api_key_env", None)
    return (name,) if name else ()


def check_environment(op: Any, where: str, allowed: frozenset[str] | None) -> None:
    """Refuse a variable that the recipe's own file names for a server it does not belong to.

    Args:
        op: of a step.
        where: config path of the step.
        allowed: names that the person at the command line gave; None: the recipe was built by their own program.

    Raises:
        UserError: naming the variable, the server and the option that allows it.
    """
    if allowed is None:
        return
    for name in environment_of(op):
        endpoint = urlsplit(getattr(op.execution, "endpoint", None) or "")
        if name in allowed or name.startswith(OWN_PREFIX):
            continue
        if endpoint.scheme == "https" and endpoint.hostname == SERVICES.get(name):
            continue
        field = f"{where}.execution.api_key_env"
        raise UserError(
            f"the recipe sends the environment variable {name} to {endpoint.hostname or 'a server'} as a key",
            where=field,
            next=f"if that is meant: --set {field}={name}; or give the key a name of its own, {OWN_PREFIX}...",
        )
