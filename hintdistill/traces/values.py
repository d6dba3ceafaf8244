"""Small helpers for decoded JSON values, used by every reader."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from hintdistill.core.errors import TraceError

MAX_DEPTH = 64
"""Deepest nesting kept in `extra` and in tool schemas; not every JSON library can write deeper values."""


class DepthError(TraceError):
    """A record is nested too deeply."""

    code = "too_deep"


def number(value: Any) -> float | None:
    """Return a finite number, from a number or a numeric string; else None."""
    try:
        found = float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
    return found if found is not None and math.isfinite(found) else None


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Refuse values that can be read but not be written again.

    Raises:
        DepthError: the value is nested more than `MAX_DEPTH` levels deep.
    """
    if depth > MAX_DEPTH:
        raise DepthError(f"{where}: nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for item in value.values():
            if isinstance(item, dict | list):
                check_plain(item, where, depth + 1)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list):
                check_plain(item, where, depth + 1)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """Return the value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def kind(value: Any) -> str:
    """Return the type of a JSON value in words."""
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(
        type(value), type(value).__name__
    )


def as_text(value: Any) -> str | None:
    """Return a tool's result as the text that the student presumably read: strings unchanged, other values as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def result_text(value: Any) -> str | None:
    """Return a result's text: strings and text parts unchanged, images and files replaced by their names, other values
    as JSON."""
    if not isinstance(value, list) or not value:
        return as_text(value)
    texts = [_part_text(part) for part in value]
    return as_text(value) if any(t is None for t in texts) else "".join(t or "" for t in texts)


def _part_text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    for key in ("text", "content"):
        if isinstance(part.get(key), str) and ("type" in part or part.keys() <= {key}):
            return str(part[key])
    if "json" in part and part.keys() <= {"json"}:
        return as_text(part["json"])
    what = part.get("type")
    is_media = isinstance(what, str) and any(w in what for w in ("image", "file", "document", "audio", "video"))
    return f"[{what}]" if is_media else None
