"""Text of strangers, made fit for a terminal, a log line and an error message.

Keys, captions, file names, server answers and decoders' messages end up in front of a person. `printable` takes
out what a terminal would obey (escape sequences, C0 and C1 controls, carriage returns) and what makes text read
otherwise than it is (bidirectional overrides, invisible tags); `redacted` takes out secrets. Redact before
cutting: half a secret is still one, and a pattern does not see it any more.
"""

from __future__ import annotations

import logging
import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and newline; C1 holds an 8-bit CSI
    "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # bidi, invisible, separators
    "\ud800-\udfff"  # lone surrogates
    "\U000e0000-\U000e0fff]"  # tags
)
_BREAKS = re.compile("[\t\n]")

_SECRET_NAMES = (
    r"(?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid|sig|signature"
    r"|[\w.-]*(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|secret(?:[_-]?access)?(?:[_-]?key)?|session[_-]?token"
    r"|auth[_-]?token|token|password|passwd|pwd|credential|private[_-]?key))"
)
_SECRETS = (
    # -----BEGIN ... PRIVATE KEY----- to its end, or to the end of the text
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), "[redacted]"),
    # user:password@ of a URL; a password may hold an @
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#'\"<>]*@"), r"\1[redacted]@"),
    # Authorization: Bearer abc
    (re.compile(r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?(?:[a-z-]+ +)?)[^\s'\",;]+"), r"\1[redacted]"),
    (re.compile(r"(?i)\b(bearer +)[\w.~+/=-]{8,}"), r"\1[redacted]"),
    # name=value and "name": "value" of names that hold secrets; a number of tokens is none
    (
        re.compile(
            rf"(?i)(?<![\w-])({_SECRET_NAMES}['\"]?\s*[:=]\s*)(?!\s*\d{{1,9}}\b)"
            r"(?:\"[^\"]*\"|'[^']*'|[^\s&'\",;<>]+)"
        ),
        r"\1[redacted]",
    ),
    # secrets that are known by their own form
    (
        re.compile(
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bsk-[\w-]{16,}|\bhf_[A-Za-z0-9]{16,}|\bgh[opusr]_[A-Za-z0-9]{20,}"
            r"|\bgithub_pat_\w{20,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{30,}|\bglpat-[\w-]{16,}"
            r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"
        ),
        "[redacted]",
    ),
)


def printable(text: str, *, lines: bool = False) -> str:
    r"""`text` with every character that a terminal would obey, or a reader not see, spelled out: ``\x1b``, ``\u202e``.

    Args:
        text: anything, lone surrogates included.
        lines: keep tabs and newlines; else they are spelled out too, so that one text stays one line.
    """
    text = _HIDDEN.sub(_spelled, text)
    return text if lines else _BREAKS.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def redacted(text: str) -> str:
    """`text` without passwords of URLs, signed queries, tokens, API keys and private keys; to be called before any cut.

    It knows forms, not values: a secret without a telling name or form passes, so secrets are not put into texts.
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class PrintableFormatter(logging.Formatter):
    """Log lines that obey both rules above, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)), lines=True)
