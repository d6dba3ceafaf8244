"""Hold the context of a step as a chat template prints it, and a step as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hintdistill.core.types import Fidelity, Message


@dataclass(frozen=True)
class Opening:
    """Hold the context of a step as the template prints it."""

    before: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    bare: str
    """The messages, without the assistant header."""
    header: str
    """The assistant header that the generation prompt adds."""
    trailer: str
    """Text with which the template closes a conversation if no header follows; it belongs to no context."""
    prompt: str
    """Text that the generation prompt adds. It equals `header`, except for a step that the template shows under another
    header."""

    @property
    def text(self) -> str:
        """The complete text of the context."""
        return self.bare + self.header


@dataclass(frozen=True)
class RenderedStep:
    """Hold a step and its context as token ids."""

    context_ids: tuple[int, ...]
    step_ids: tuple[int, ...]
    header_ids: tuple[int, ...]
    """Ids of the assistant header, which the template's generation prompt added at the end of `context_ids`."""
    fidelity: Fidelity
    notes: tuple[str, ...]
    opening: Opening
    """The same context as text; recorded ids may spell it with different tokens."""
    action_start: int | None = None
    """Index of the first step token after the reasoning; see `injection.action`."""


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
    """Describe in words where two renders differ, with the text of each."""
    at = common(expected, found)
    start = max(0, at - 20)
    return f"{expected[start : at + 40]!r} became {found[start : at + 40]!r}"
