"""Find a message's thinking: next to the content under one of several keys, or as parts within the content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "reasoning_text",
    "thinking_content",
    "reasoning_details",
    "thinking_blocks",
    "reasoning_items",
    "thoughts",
    "thought",
)
"""Keys tried in this order; the first readable value is the step's thinking."""
PARTS = frozenset({"thinking", "reasoning", "reasoning.text", "reasoning.summary", "reasoning_text", "thought"})
"""Types of content parts that contain thinking."""
_TEXTS = ("thinking", "reasoning", "reasoningText", "text", "content", "summary")


def reasoning_of(value: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return a message's reasoning, and the parts under its keys that are kept unchanged because they are encrypted or
    not reasoning."""
    found: str | None = None
    kept: dict[str, Any] = {}
    for key in KEYS:
        said = value.get(key)
        # an agent that notes thought and action apart has both of them in its content
        if said is None or (key == "thought" and "action" in value):
            if said is not None:
                kept[key] = said
            continue
        text = said if isinstance(said, str) else thinking_text(said)
        if text and not found:
            found = text
        elif said not in ("", [], {}) and (text is None or text != found):
            kept[key] = said
        elif found is None and isinstance(said, str):
            found = said
        if text and not isinstance(said, str) and _hides(said):
            kept[key] = said
    return found, kept


def thinking_text(value: Any) -> str | None:
    """Return the reasoning text in a string, a part or a list of parts; None if no text can be read."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return next((t for k in _TEXTS if value.get(k) and (t := thinking_text(value[k]))), None)
    if isinstance(value, list):
        texts = [t for item in value if (t := thinking_text(item))]
        return "\n".join(texts) if texts else None
    return None


def _hides(value: Any) -> bool:
    """Return whether parts of the thinking are unreadable, e.g. encrypted."""
    items = value if isinstance(value, list) else [value]
    return any(isinstance(i, Mapping) and not thinking_text(i) for i in items)


def is_thinking(part: Any) -> bool:
    """Return whether a content part is thinking."""
    what = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(part, Mapping) and ((isinstance(what, str) and what in PARTS) or part.get("thought") is True)
