"""Small questions about decoded JSON values, asked by every reader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hintdistill.core.errors import TraceError

MAX_DEPTH = 64
"""Deepest nesting kept in `extra` and in tool schemas; deeper values cannot be written back by every JSON library."""


class DepthError(TraceError):
    """A record is nested too deeply."""

    code = "too_deep"


def number(value: Any) -> float | None:
    """A finite number, or a string that is one; else None."""
    try:
        found = float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
    return found if found is not None and math.isfinite(found) else None


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Refuse values that could be read but not be written back.

    Raises:
        DepthError: nested more than `MAX_DEPTH` levels.
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
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(
        type(value), type(value).__name__
    )
