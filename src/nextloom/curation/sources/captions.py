"""The caption of an image that lies beside it, in a `.txt` or in a field of a `.json`; what is not read is counted."""

from __future__ import annotations

import json
from typing import Any

from nextloom.curation.sources import jsontext
from nextloom.curation.sources.suffixes import CAPTION_FIELDS, likely
from nextloom.store.notices import Tally

NOT_READ = "captions were looked for and not read"
"""Kind of a notice: a caption may lie where the recipe does not look."""


def caption_of(data: object, field: str | None = None) -> str | None:
    """The caption in a JSON object: what `field` names, else `caption` or `text`, the first that is text and not blank.

    Args:
        data: any JSON value.
        field: a name, or names from the outside in, joined by dots.
    """
    if not isinstance(data, dict):
        return None
    if field is not None:
        found = [_under(data, field)]
    else:
        lower = {name.lower(): name for name in reversed(data)}
        found = [data[lower[want]] for want in CAPTION_FIELDS if want in lower]
    return next((text.strip() for text in found if isinstance(text, str) and text.strip()), None)


def _under(data: dict[str, Any], path: str) -> Any:
    if path in data:
        return data[path]
    found: Any = data
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def beside(
    name: str, text: str | None, record: str | None, problems: list[str], field: str | None, tally: Tally
) -> tuple[str | None, str | None, Any]:
    """Caption, sidecar JSON and what the sidecar holds (None where it is no JSON), of the texts beside an image.

    Args:
        name: of the image without its suffix, for problems.
        text: of the `.txt`.
        record: of the `.json`.
        problems: what went wrong before; more is added. They make the sidecar an object with `error`.
        field: which field of the record is the caption; see `caption_of`.
        tally: counts a caption that may lie under another name.
    """
    caption, data, readable = (text or "").strip() or None, None, record is None
    if record is not None:
        try:
            data, readable = jsontext.loads(record), True
        except ValueError as error:
            problems.append(f"{name}.json: {error}")
        else:
            caption = caption or caption_of(data, field)
            if caption is None and isinstance(data, dict) and (other := likely(data)):
                tally[NOT_READ][f"in the field {other!r} of a .json (caption: {other})"] += 1
    plain = caption and caption.encode("utf-8", "backslashreplace").decode()
    if plain != caption:  # JSON can spell half of a character: "\ud83d"
        problems.append(f"{name}.json: the caption holds half of a surrogate pair")
    return plain, jsontext.whole_characters(record) if record and readable else record, data if readable else record


def with_problems(sidecar: str | None, problems: list[str]) -> str | None:
    """The sidecar, or an object that tells the problems beside it."""
    if not problems:
        return sidecar
    whole = {"error": "; ".join(problems)} | ({"json": sidecar} if sidecar is not None else {})
    return json.dumps(whole, ensure_ascii=False)
