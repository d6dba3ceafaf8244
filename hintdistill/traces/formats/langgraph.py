"""LangGraph and LangChain state: messages as serialised by `messages_to_dict`, `dumps` or a state's own JSON.

A record is a state or snapshot (`{values: {messages}}`), a checkpoint (`{channel_values: {messages}}`), or a bare list
of messages. Calls of the student that LangChain could not parse (`invalid_tool_calls`) are also calls, with their text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.types import Trace
from hintdistill.traces.formats.observed import LANGCHAIN, Messages, messages_in
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace
from hintdistill.traces.values import listed, mapping

NAME = "langgraph"
SCOPE: Literal["record"] = "record"
PLACES = ("values", "channel_values", "checkpoint", "state", "output", "kwargs")
IDS = ("id", "trace_id", "thread_id", "task_id", "reward", "tools")


def fits(value: Any) -> bool:
    """Return whether the record is a list of LangChain messages, or an object with such a list at a place where states
    keep it."""
    found, _ = _messages(value)
    return bool(found) and all(map(is_message, found))


def _messages(value: Any, depth: int = 0) -> tuple[list[Any], tuple[str, ...]]:
    """Return the messages of a state, and the keys that lead to them."""
    if isinstance(value, list):
        return value, ()
    if not isinstance(value, Mapping) or depth > 3:
        return [], ()
    if isinstance(value.get("messages"), list):
        return value["messages"], ("messages",)
    for key in PLACES:
        if isinstance(value.get(key), Mapping):
            found, path = _messages(value[key], depth + 1)
            if found:
                return found, (key, *path)
    return [], ()


def is_message(value: Any) -> bool:
    """Return whether a value is one message in one of LangChain's serialisations. Never raises."""
    if not isinstance(value, Mapping) or "role" in value:
        return False
    if value.get("lc") is not None and isinstance(value.get("kwargs"), Mapping):
        return str(([*listed(value.get("id")), ""])[-2:][0]).endswith(("Message", "MessageChunk"))
    held = value["data"] if isinstance(value.get("data"), Mapping) else value
    return value.get("type") in tuple(LANGCHAIN) and "content" in held


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a state. Raises TraceError."""
    found, path = _messages(record.value)
    value: dict[str, Any] = dict(record.value) if isinstance(record.value, Mapping) else {}
    rest = {k: v for k, v in value.items() if not path or k != path[0]}
    held: Any = value
    for n, key in enumerate(path):
        if n:
            # the other channels of the state, and what stands beside them
            rest |= {f"{'.'.join(path[:n])}.{k}": v for k, v in held.items() if k != key}
        held = held[key]
    configured = mapping(mapping(value.get("config")).get("configurable"))
    task, model = value.get("task_id"), next((m for m in map(_model, found) if m), None)
    yield build_trace(
        {**({"trace_id": str(configured["thread_id"])} if configured.get("thread_id") else {}), **rest},
        [m for message in found for m in _read(message)],
        record.source,
        options,
        known=set(IDS),
        tools=value.get("tools"),
        reward=value.get("reward"),
        task_id=task,
        model=model,
    )


def _plain(message: Any) -> Mapping[str, Any]:
    """Return a message without the wrapper that its serialisation added."""
    held = mapping(message)
    return {**mapping(held["data"]), "type": held.get("type")} if isinstance(held.get("data"), Mapping) else held


def _read(message: Any) -> Messages:
    return messages_in(_plain(message), "user")


def _model(message: Any) -> str | None:
    held = _plain(message)
    told = mapping(mapping(held.get("kwargs", held)).get("response_metadata"))
    found = told.get("model_name", told.get("model"))
    return found if isinstance(found, str) else None
