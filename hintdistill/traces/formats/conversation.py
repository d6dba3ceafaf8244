"""Files that are one conversation: an array of messages, or one message or item per line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from hintdistill.core.types import Trace
from hintdistill.traces.formats import anthropic, langgraph, openai_chat, openai_responses, pydantic_ai
from hintdistill.traces.options import Failure, ReadOptions, Record

NAME = "conversation"
SCOPE: Literal["file"] = "file"


def fits(value: Any) -> bool:
    """Return whether the value is one message of any of the libraries, or one Responses item."""
    if not isinstance(value, dict) or "messages" in value:
        return False
    if value.get("type") in openai_responses.ITEM_TYPES and (
        "content" in value or "call_id" in value or "summary" in value
    ):
        return True
    if pydantic_ai.is_message(value) or langgraph.is_message(value):
        return True
    return isinstance(value.get("role"), str) and (
        "content" in value or "tool_calls" in value or "function_call" in value
    )


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield the one trace of the file, read with the first API that its messages fit. Raises TraceError."""
    for reader in (pydantic_ai, langgraph, openai_responses, anthropic):
        if reader.fits(record.value):
            yield from reader.traces(record, options)
            return
    yield from openai_chat.traces(record, options)
