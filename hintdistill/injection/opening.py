"""What is above a step as a chat template prints it, and a step as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hintdistill.core.types import Fidelity, Message


@dataclass(frozen=True)
class Opening:
    """What is above a step, as the template prints it."""

    before: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    bare: str
    """The messages."""
    header: str
    """The assistant header that the generation prompt adds."""
    trailer: str
    """What the template closes a conversation with when no header follows; it is no part of any context."""
    prompt: str
    """What the generation prompt adds. It is `header`, but for a step that the template shows under another header."""

    @property
    def text(self) -> str:
        """The context."""
        return self.bare + self.header


@dataclass(frozen=True)
class RenderedStep:
    """A step and its context as token ids."""

    context_ids: tuple[int, ...]
    step_ids: tuple[int, ...]
    header_ids: tuple[int, ...]
    """The assistant header: the end of `context_ids` that the template's generation prompt added."""
    fidelity: Fidelity
    notes: tuple[str, ...]
    opening: Opening
    """The same context as text; recorded ids may spell it with other tokens."""
    action_start: int | None = None
    """Index of the first step token that is no reasoning; see `injection.action`."""


def common(a: str, b: str) -> int:
    """Characters that two texts begin with alike."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        # they agree up to `low`, and not up to `high`
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def first_difference(expected: str, found: str) -> str:
    """Say in words where two renders part: what the first has there, and what the second has."""
    at = common(expected, found)
    start = max(0, at - 20)
    return f"{expected[start : at + 40]!r} became {found[start : at + 40]!r}"
