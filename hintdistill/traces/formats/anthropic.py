"""Anthropic messages: content blocks `text`, `thinking`, `tool_use`, `tool_result`; results stand in user messages.

A record is a request `{system, messages, tools}`, with its answer under `response` where the log kept one. What a block
list holds is split into our messages: each result a tool message, the text beside it a user message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace, text_of
from hintdistill.traces.values import kind

NAME = "anthropic"
SCOPE: Literal["record"] = "record"
CALLS = True
"""Each record repeats the conversation so far; see `repeats.py`."""
BLOCKS = (
    "tool_use",
    "tool_result",
    "thinking",
    "redacted_thinking",
    "server_tool_use",
)


def fits(value: Any) -> bool:
    """Messages with content blocks that only this API has, or a top-level `system` beside messages."""
    messages = value if isinstance(value, list) else value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        return False
    told = isinstance(value, dict) and ("system" in value or _is_answer(value.get("response")))
    if told and all(m.get("role") in ("user", "assistant") for m in messages if isinstance(m, dict)):
        return True
    # every record of every file is asked this: most of its messages hold plain text
    listed = [c for m in messages if type(m) is dict and type(c := m.get("content")) is list]
    return any(isinstance(block, dict) and block.get("type") in BLOCKS for content in listed for block in content)


def _is_answer(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "message" and value.get("role") == "assistant"


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """The one trace of a record. Raises TraceError."""
    value = {"messages": record.value} if isinstance(record.value, list) else record.value
    messages: list[dict[str, Any]] = []
    if value.get("system"):
        messages.append({"role": "system", "content": text_of(value["system"], 0)})
    for index, message in enumerate(value["messages"]):
        messages += split(message, index)
    known = {"messages", "system", "tools", "id", "trace_id", "task_id", "reward", "model"}
    answer = value.get("response")
    if _is_answer(answer):
        messages += split(answer, len(messages))
        known.add("response")
    yield build_trace(
        value,
        messages,
        record.source,
        options,
        known=known,
        tools=value.get("tools"),
        reward=value.get("reward"),
        task_id=value.get("task_id"),
        model=value.get("model"),
    )


def split(message: Any, index: int) -> list[dict[str, Any]]:
    """One message with content blocks to chat messages, in the order of its blocks.

    Raises:
        TraceError: a block that is no text, e.g. an image.
    """
    if not isinstance(message, Mapping):
        raise TraceError(f"message {index} is {kind(message)}, not an object")
    content, role = message.get("content"), message.get("role")
    rest = {k: v for k, v in message.items() if k not in ("content", "role", "type") and v is not None}
    if not isinstance(content, list):
        return [{**rest, "role": role, "content": content}]
    if role == "assistant":
        return [{**rest, "role": role, **_produced(content, index)}]
    out: list[dict[str, Any]] = []
    for block in content:
        if isinstance(block, Mapping) and block.get("type") == "tool_result":
            made = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _result(block, index)}
            out.append({**made, **({"is_error": block["is_error"]} if "is_error" in block else {})})
        elif out and out[-1]["role"] == role:
            out[-1]["content"] += text_of([block], index) or ""
        else:
            out.append({**rest, "role": role, "content": text_of([block], index)})
    return out or [{**rest, "role": role, "content": ""}]


def _produced(content: list[Any], index: int) -> dict[str, Any]:
    texts: list[Any] = []
    calls: list[dict[str, Any]] = []
    thinking: list[str] = []
    other: list[Any] = []
    for block in content:
        what = block.get("type") if isinstance(block, Mapping) else None
        if what == "tool_use":
            calls.append({"id": block.get("id"), "name": block.get("name"), "arguments": block.get("input")})
        elif what == "thinking":
            thinking.append(str(block.get("thinking") or ""))
        elif what in ("redacted_thinking", "server_tool_use", "web_search_tool_result"):
            other.append(block)
        else:
            texts.append(block)
    made: dict[str, Any] = {"content": text_of(texts, index) if texts else None, "tool_calls": calls}
    if thinking:
        made["reasoning_content"] = "\n".join(thinking)
    if other:
        made["server_items"] = other
    return made


def _result(block: Mapping[str, Any], index: int) -> str | None:
    """A result's text; what of it cannot be text is named in its place, since the student's own turns are all there."""
    content = block.get("content")
    if not isinstance(content, list):
        return text_of(content, index)
    return "".join(
        part["text"]
        if isinstance(part, Mapping) and isinstance(part.get("text"), str)
        else part
        if isinstance(part, str)
        else f"[{part.get('type') if isinstance(part, Mapping) else kind(part)}]"
        for part in content
    )
