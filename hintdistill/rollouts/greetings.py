"""Greetings: a message of the agent before the first user message is given, and not a step."""

from __future__ import annotations

from collections.abc import Sequence

from hintdistill.core.types import Message


def with_greetings_given(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Mark an agent's greeting as given: assistant messages without calls or recorded ids before the first user
    message.

    Only system messages may precede them, so that the first steps of an agent that works without a user stay steps.
    """
    first = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer", "assistant")), None)
    if first is None or messages[first].role != "user":
        return tuple(messages)
    if any(m.tool_calls or m.token_ids for m in messages[:first] if m.role == "assistant"):
        return tuple(messages)
    return tuple(
        m.model_copy(update={"given": True}) if i < first and m.role == "assistant" and not m.given else m
        for i, m in enumerate(messages)
    )
