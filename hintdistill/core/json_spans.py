"""Find the positions of a JSON object's members in its raw text.

Raw argument strings stay as they are: their parts are addressed by character and never re-serialised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Member:
    """Locate one member of an object. Ranges are half-open character ranges of the raw text."""

    key: str
    key_span: tuple[int, int]
    """Range of the key, without its quotation marks."""
    value_span: tuple[int, int]
    """Range of the value as written, including quotation marks."""
    is_string: bool


def members(raw: str) -> Iterator[Member]:
    """Yield the members of the object at the beginning of `raw`; stop without an error where the text is not valid
    JSON."""
    at = _skip(raw, 0)
    if raw[at : at + 1] != "{":
        return
    at = _skip(raw, at + 1)
    try:
        while raw[at : at + 1] == '"':
            key, end = scanstring(raw, at + 1)
            colon = _skip(raw, end)
            if raw[colon : colon + 1] != ":":
                return
            value_at = _skip(raw, colon + 1)
            _, value_end = _DECODER.raw_decode(raw, value_at)
            yield Member(key, (at + 1, end - 1), (value_at, value_end), raw[value_at] == '"')
            at = _skip(raw, value_end)
            if raw[at : at + 1] != ",":
                return
            at = _skip(raw, at + 1)
    except (ValueError, RecursionError):
        return


def _skip(raw: str, at: int) -> int:
    while at < len(raw) and raw[at] in " \t\r\n":
        at += 1
    return at
