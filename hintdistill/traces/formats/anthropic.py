"""Anthropic messages: content blocks `text`, `thinking`, `tool_use`, `tool_result`; results are in user messages.

A record is a request `{system, messages, tools}`, with its answer under `response` if the log kept it. The blocks of a
message are split into separate messages: each result becomes a tool message, and text next to results becomes a user
message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import TOKEN_KEYS, build_trace, text_of
from hintdistill.traces.unread import HOSTED, UNSEEN
from hintdistill.traces.values import kind, result_text

NAME = "anthropic"
SCOPE: Literal["record"] = "record"
CALLS = True
"""Each record repeats the conversation so far; see `repeats.py`."""
BLOCKS = ("thinking", "redacted_thinking")
"""Types of blocks that only this API has, in addition to types that end in `tool_use` and `tool_result`."""


def is_block(block: Any) -> bool:
    """Return whether a content block is of a type that only this API has."""
    what = block.get("type") if isinstance(block, Mapping) else None
    return isinstance(what, str) and (what in BLOCKS or what.endswith(("tool_use", "tool_result")))


def fits(value: Any) -> bool:
    """Return whether the record has messages with content blocks that only this API has, or a top-level `system` next
    to its messages."""
    messages = value if isinstance(value, list) else value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        return False
    told = isinstance(value, dict) and ("system" in value or _is_answer(value.get("response")))
    if told and all(m.get("role") in ("user", "assistant") for m in messages if isinstance(m, dict)):
        return True
    # every record of every file is asked this: most of its messages hold plain text
    listed = [c for m in messages if type(m) is dict and type(c := m.get("content")) is list]
    return any(is_block(block) for content in listed for block in content)


def _is_answer(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "message" and value.get("role") == "assistant"


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a record. Raises TraceError."""
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
    """Split one message with content blocks into chat messages, in the order of its blocks.

    Raises:
        TraceError: a block is not text, e.g. an image.
    """
    if not isinstance(message, Mapping):
        raise TraceError(f"message {index} is {kind(message)}, not an object")
    content, role = message.get("content"), message.get("role")
    rest = {k: v for k, v in message.items() if k not in ("content", "role", "type") and v is not None}
    if not isinstance(content, list):
        return [{**rest, "role": role, "content": content}]
    if role == "assistant":
        return _said(content, rest, index)
    out: list[dict[str, Any]] = []
    for block in content:
        if isinstance(block, Mapping) and str(block.get("type")).endswith("tool_result"):
            out.append(_tool(block))
        elif out and out[-1]["role"] == role:
            out[-1]["content"] += text_of([block], index) or ""
        else:
            out.append({**rest, "role": role, "content": text_of([block], index)})
    return out or [{**rest, "role": role, "content": ""}]


def _tool(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result as a tool message."""
    made = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result_text(block.get("content"))}
    kept = {k: block[k] for k in ("is_error", "name", "status") if block.get(k) is not None}
    return {**made, **kept}


def _said(content: list[Any], rest: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
    """Return the model's output in its order; the result of a tool that a server ran stands between two turns of the
    model."""
    turns: list[list[Any]] = [[]]
    out: list[dict[str, Any] | None] = [None]
    for block in content:
        if isinstance(block, Mapping) and str(block.get("type")).endswith("tool_result"):
            out += [_tool(block), None]
            turns.append([])
        else:
            turns[-1].append(block)
    answered = {block.get("tool_use_id") for block in content if isinstance(block, Mapping)}
    several = sum(1 for t in turns if t) > 1
    if several:
        # recorded ids are of the whole answer, results among them: they belong to none of its turns
        rest = {(f"whole_answer.{k}" if k in _TOKENS else k): v for k, v in rest.items()}
    made = iter(turns)
    filled = [m if m is not None else _turn(next(made), rest, answered, index) for m in out]
    found = [m for m in filled if m is not None]
    return found or [{**rest, "role": "assistant", "content": None}]


_TOKENS = frozenset(name for names in TOKEN_KEYS.values() for name in names)


def _turn(content: list[Any], rest: Mapping[str, Any], answered: set[Any], index: int) -> dict[str, Any] | None:
    """Return one turn of the model, or None if it is empty between two results."""
    if not content:
        return None
    texts: list[Any] = []
    calls: list[dict[str, Any]] = []
    thinking: list[str] = []
    other: list[Any] = []
    unseen: list[str] = []
    hosted: list[str] = []
    for block in content:
        what = block.get("type") if isinstance(block, Mapping) else None
        if isinstance(what, str) and what.endswith("tool_use"):
            calls.append({k: v for k, v in block.items() if k != "type"})
            if what != "tool_use":
                hosted.append(str(block.get("name")))
                unseen += [] if block.get("id") in answered else [what]
        elif what == "thinking":
            thinking.append(str(block.get("thinking") or ""))
        elif what == "redacted_thinking":
            other.append(block)
        elif what == "unseen":
            other.append(block["item"])
            unseen.append(str(block["what"]))
        else:
            texts.append(block)
    made: dict[str, Any] = {
        **rest,
        "role": "assistant",
        "content": text_of(texts, index) if texts else None,
        "tool_calls": calls,
    }
    if thinking:
        made["reasoning_content"] = "\n".join(thinking)
    if other:
        made["server_items"] = other
    if hosted:
        made[HOSTED] = hosted
    if unseen:
        made[UNSEEN] = ", ".join(unseen)
    return made
