"""Check text: strings must be valid for UTF-8 and for tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

HALF_A_PAIR = "holds half of a surrogate pair, which is not valid text"


def holds_half_a_pair(value: Any) -> bool:
    """Return whether a text in plain data contains a lone surrogate, which neither a tokenizer nor UTF-8 accepts."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, Mapping):
        return any(holds_half_a_pair(k) or holds_half_a_pair(v) for k, v in value.items())
    return isinstance(value, list | tuple) and any(map(holds_half_a_pair, value))


def require_text(given: T, texts: Any) -> T:
    """Return `given`. Raises ValueError if its `texts` contain a lone surrogate; for use in a model's validators."""
    if holds_half_a_pair(texts):
        raise ValueError(HALF_A_PAIR)
    return given
