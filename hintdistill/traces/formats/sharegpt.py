"""ShareGPT conversations (LLaMA-Factory and older fine-tuning sets): `conversations: [{from, value}]`, `tools` a JSON string.

A `function_call` turn contains the call as JSON text. The call is parsed from it, and its arguments keep their original
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.json_spans import members
from hintdistill.core.types import Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace
from hintdistill.traces.values import kind

NAME = "sharegpt"
SCOPE: Literal["record"] = "record"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "system": "system",
}


def fits(value: Any) -> bool:
    """Return whether the record has a list of `{from, value}`."""
    turns = value.get("conversations") if isinstance(value, dict) else None
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a record. Raises TraceError."""
    value = record.value
    messages = [_turn(t, i, options) for i, t in enumerate(value["conversations"])]
    if isinstance(value.get("system"), str) and value["system"]:
        messages.insert(0, {"role": "system", "content": value["system"]})
    known = {"conversations", "tools", "system", "id", "trace_id", "task_id", "reward"}
    yield build_trace(
        value,
        messages,
        record.source,
        options,
        known=known,
        tools=value.get("tools"),
        reward=value.get("reward"),
        task_id=value.get("task_id"),
    )


def _turn(turn: Any, index: int, options: ReadOptions) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise TraceError(f"turn {index} is {kind(turn)}, not an object")
    said, text = turn.get("from"), turn.get("value")
    role = options.student_role if said == options.student_role else ROLES.get(str(said), said)
    made = {k: v for k, v in turn.items() if k not in ("from", "value")} | {"role": role, "content": text}
    if said == "function_call" and isinstance(text, str):
        calls = _calls(text)
        # what does not parse is the student's text, where a critic will see it
        made |= {"content": None, "tool_calls": calls, "raw_calls": text} if calls else {}
    return made


def _calls(text: str) -> list[dict[str, Any]]:
    """Return the calls that a text encodes, with the arguments exactly as in the text; the list is empty if it encodes
    none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(i, dict) and isinstance(i.get("name"), str) for i in items):
        return []
    if len(items) == 1 and isinstance(value, dict) and isinstance(items[0].get("arguments"), dict):
        raw = [text[slice(*m.value_span)] for m in members(text) if m.key == "arguments"]
        if raw:
            return [{"name": items[0]["name"], "arguments": raw[-1]}]
    return [{"name": i["name"], "arguments": i.get("arguments")} for i in items]
