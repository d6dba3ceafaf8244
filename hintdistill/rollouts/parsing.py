"""Convert the student's text to an assistant message, keeping raw strings."""

from __future__ import annotations

import json
import re

from hintdistill.core.json_spans import members
from hintdistill.core.types import Message, ToolCall

_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def parse_hermes(text: str) -> Message:
    """Parse `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, the form of Hermes and Qwen models.

    Arguments keep their bytes. Markup that cannot be parsed stays in the content, where a critic can see it.
    """
    calls: list[ToolCall] = []

    def take(match: re.Match[str]) -> str:
        call = _call(match.group(1), len(calls))
        if call is None:
            return match.group(0)
        calls.append(call)
        return ""

    content = _BLOCK.sub(take, text).strip()
    return Message(role="assistant", content=content or None, tool_calls=tuple(calls), raw_text=text)


def _call(body: str, index: int) -> ToolCall | None:
    try:
        if not isinstance(json.loads(body), dict):
            return None
    except (ValueError, RecursionError):
        return None
    found = {m.key: m for m in members(body)}
    if "name" not in found or not found["name"].is_string:
        return None
    arguments = found.get("arguments")
    raw = body[slice(*arguments.value_span)] if arguments is not None else "{}"
    name = json.loads(body[slice(*found["name"].value_span)])
    return ToolCall(name=name, arguments_raw=raw, id=f"call_{index}")


PARSERS = {"hermes": parse_hermes}
