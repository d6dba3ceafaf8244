"""A trace as plain text: each message with its role, and calls with their arguments as written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the stored messages of a trace as text."""
    return "\n".join(map(_message, messages))


def _message(message: Mapping[str, Any]) -> str:
    calls = [f"{c['name']}({c['arguments_raw']})" for c in message.get("tool_calls") or ()]
    parts = [str(message.get("reasoning") or ""), str(message.get("content") or ""), *calls]
    return f"{message['role']}: " + "\n".join(p for p in parts if p)
