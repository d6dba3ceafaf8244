"""OpenAI chat messages, in the variants found in real files.

A record is an object with `messages` (or `traj`, tau-bench), a bare list of messages, or a row of a prompt-completion
dataset (TRL). The forms of a message are described in `turns.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.schemas import parse_tools
from hintdistill.traces.turns import GIVEN, build_trace
from hintdistill.traces.values import kind

NAME = "openai_chat"
SCOPE: Literal["record"] = "record"
MESSAGE_KEYS = ("messages", "traj")
TOOL_KEYS = ("tools", "functions", "tools_json")

__all__ = ["NAME", "SCOPE", "fits", "parse", "parse_tools", "traces"]


def fits(value: Any) -> bool:
    """Return whether the record is a bare list of messages, or an object with such a list under a known key."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(m, dict) and "role" in m for m in value)
    return isinstance(value, dict) and (
        any(isinstance(value.get(k), list) for k in MESSAGE_KEYS)
        or (_messages(value.get("prompt")) and (_messages(value.get("completion")) or _messages(value.get("chosen"))))
    )


def _messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a record. Raises TraceError."""
    yield parse(record.value, record.source, options)


def parse(value: Any, source: Source, options: ReadOptions) -> Trace:
    """Convert one record into a Trace.

    Raises:
        TraceError: the record contains no messages, or a message is malformed; the text says which one and why.
    """
    record: Mapping[str, Any] = {"messages": value} if isinstance(value, list) else value
    if not isinstance(record, Mapping):
        raise TraceError(f"a record must be an object or a list of messages, not {kind(value)}")
    messages, used = _conversation(record)
    known = {*used, *TOOL_KEYS, "id", "trace_id", "task_id", "model", "reward"}
    scored = next((k for k in ("reward", "score") if k in record), None)
    return build_trace(
        record,
        messages,
        source,
        options,
        known=known,
        tools=next((record[k] for k in TOOL_KEYS if record.get(k)), None),
        reward=record[scored] if scored else None,
        task_id=record.get("task_id"),
        model=record.get("model"),
    )


def _conversation(record: Mapping[str, Any]) -> tuple[list[Any], set[str]]:
    """Return the messages of a record and the keys that hold them."""
    key = next((k for k in MESSAGE_KEYS if isinstance(record.get(k), list)), None)
    if key is not None:
        return record[key], {key}
    prompt, answer = record.get("prompt"), record.get("completion", record.get("chosen"))
    if isinstance(prompt, list) and isinstance(answer, list):
        used = {"prompt", "completion" if "completion" in record else "chosen"}
        return [*given(prompt), *answer], used
    found = ", ".join(list(map(str, record))[:8]) or "none"
    raise TraceError(f"no list under {' or '.join(map(repr, MESSAGE_KEYS))} (keys present: {found})")


def given(messages: list[Any]) -> list[Any]:
    """Return the messages of a prompt; its assistant turns count as given, because they were read in this call and not
    produced."""
    return [{**m, GIVEN: True} if isinstance(m, dict) and m.get("role") == "assistant" else m for m in messages]


def loads(text: Any) -> Any:
    """Return the value of a JSON string, or the value itself if it is not one."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
