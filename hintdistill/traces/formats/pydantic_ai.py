"""pydantic-ai histories: a list of requests and responses with parts, as written by `result.all_messages_json()`.

Reminders (`retry-prompt`) answer a call, or count as the user's words if they name no call. The run's instructions are
repeated on each request; they become its system prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.formats import anthropic
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace, text_of
from hintdistill.traces.values import as_text, kind, listed

NAME = "pydantic_ai"
SCOPE: Literal["record"] = "record"
PLACES = ("all_messages", "message_history", "messages", "new_messages")


def fits(value: Any) -> bool:
    """Return whether the record is a list of messages with a kind and parts, or an object with such a list."""
    found = _history(value)
    return bool(found) and all(map(is_message, found))


def is_message(value: Any) -> bool:
    """Return whether a value is one request or response of a history. Never raises."""
    return (
        isinstance(value, dict)
        and value.get("kind") in ("request", "response")
        and isinstance(value.get("parts"), list)
    )


def _history(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return next((value[k] for k in PLACES if isinstance(value.get(k), list) and value[k]), [])
    return value if isinstance(value, list) else []


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a history. Raises TraceError."""
    value = record.value if isinstance(record.value, dict) else {}
    place = next((k for k in PLACES if k in value), "messages")
    messages: list[dict[str, Any]] = []
    told: str | None = None
    model: str | None = None
    for index, message in enumerate(_history(record.value)):
        if not isinstance(message, Mapping):
            raise TraceError(f"message {index} is {kind(message)}, not an object")
        instructions = message.get("instructions")
        if isinstance(instructions, str) and instructions and instructions != told:
            # shown with every request; a later change of them is a message where it was made
            messages.append({"role": "system", "content": instructions})
            told = instructions
        model = message["model_name"] if isinstance(message.get("model_name"), str) else model
        made = _response(message, index) if message.get("kind") == "response" else _request(message, index)
        if made and message.get("kind") == "request":
            # what the request says of itself stands with its first part
            own = {
                k: v
                for k, v in message.items()
                if k not in ("parts", "kind", "instructions") and v not in (None, {}, [])
            }
            made[0] = {**made[0], **({"request_beside": own} if own else {})}
        messages += made
    yield build_trace(
        value,
        messages,
        record.source,
        options,
        known={place, "tools", "id", "trace_id", "task_id", "reward", "model"},
        tools=value.get("tools"),
        reward=value.get("reward"),
        task_id=value.get("task_id"),
        model=value.get("model") or model,
    )


def _request(message: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for part in message["parts"]:
        what = part.get("part_kind") if isinstance(part, Mapping) else None
        if what == "system-prompt":
            out.append({"role": "system", "content": part.get("content"), **_beside(part)})
        elif what == "user-prompt":
            out.append({"role": "user", "content": text_of(part.get("content"), index), **_beside(part)})
        elif what == "tool-return" or (what == "retry-prompt" and part.get("tool_name")):
            made = {"role": "tool", "tool_call_id": part.get("tool_call_id"), "name": part.get("tool_name")}
            out.append({**_beside(part), **made, "content": _said_back(part)})
        elif what == "retry-prompt":
            out.append({**_beside(part), "role": "user", "content": _said_back(part), "part_kind": what})
        else:
            raise TraceError(f"message {index} has a part of the unknown kind {what!r}")
    return out


_WORDS = ("part_kind", "content", "tool_name", "tool_call_id", "args", "tool_kind")


def _beside(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a part other than its words: times, ids and the provider's notes."""
    return {k: v for k, v in part.items() if k not in _WORDS and v not in (None, {}, [])}


def _said_back(part: Mapping[str, Any]) -> str | None:
    """Return a result, or the error message about a call, as text."""
    return as_text(part.get("content"))


def _response(message: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for part in message["parts"]:
        what = part.get("part_kind") if isinstance(part, Mapping) else None
        if what == "text":
            blocks.append({"type": "text", "text": part.get("content")})
        elif what == "thinking":
            hidden = not part.get("content")
            blocks.append(
                {"type": "redacted_thinking", **part} if hidden else {"type": "thinking", "thinking": part["content"]}
            )
        elif what in ("tool-call", "builtin-tool-call"):
            rest = {
                k: v
                for k, v in part.items()
                if k not in ("part_kind", "tool_kind", "tool_call_id", "tool_name", "type")
            }
            kind_of = "tool_use" if what == "tool-call" else "server_tool_use"
            blocks.append({**rest, "type": kind_of, "id": part.get("tool_call_id"), "name": part.get("tool_name")})
        elif what == "builtin-tool-return":
            blocks.append(
                {
                    "type": "tool_result",
                    "tool_use_id": part.get("tool_call_id"),
                    "content": _said_back(part),
                    "name": part.get("tool_name"),
                }
            )
        else:
            blocks.append(
                {"type": "unseen", "what": str(what), "item": dict(part) if isinstance(part, Mapping) else part}
            )
    used = ("parts", "kind", "instructions")
    rest = {k: v for k, v in message.items() if k not in used and v not in (None, {}, [])}
    noted = [n for part in message["parts"] if isinstance(part, Mapping) and (n := _beside(part))]
    rest |= {"parts_beside": noted} if noted else {}
    return anthropic.split({**rest, "role": "assistant", "content": listed(blocks)}, index)
