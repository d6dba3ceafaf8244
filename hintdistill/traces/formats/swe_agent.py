"""SWE-agent `.traj` and mini-swe-agent trajectories: chat messages under `history` or `messages`, with notes of the agent.

Actions of older versions stand in the text, and what the shell answered in user messages; both stay where they are. A
demonstration in the history was given, not produced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from hintdistill.core.types import Trace
from hintdistill.traces.formats.openai_chat import given
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace

NAME = "swe_agent"
SCOPE: Literal["record"] = "record"


def fits(value: Any) -> bool:
    """A history of messages, or mini-swe-agent's own mark."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("trajectory_format"), str) and value["trajectory_format"].startswith("mini-swe-agent"):
        return isinstance(value.get("messages"), list)
    history = value.get("history")
    if "mistake_agent" in value:
        return False  # Who&When, whose roles are agents
    return isinstance(history, list) and bool(history) and isinstance(history[0], dict) and "role" in history[0]


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """The one trace of a run. Raises TraceError."""
    value = record.value
    key = "history" if isinstance(value.get("history"), list) else "messages"
    # the trajectory says the same once more, step by step
    known = {key, "trajectory", "id", "trace_id"}
    info = value.get("info")
    task = value.get("instance_id") or (info.get("instance_id") if isinstance(info, dict) else None)
    yield build_trace(
        value,
        [*(_message(m) for m in value[key]), *_last(value.get("trajectory"), value[key])],
        record.source,
        options,
        known=known,
        tools=value.get("tools"),
        task_id=task,
    )


def _last(steps: Any, messages: list[Any]) -> list[dict[str, Any]]:
    """The steps at the end of a trajectory that its history lacks: the agent stopped before it noted them there."""
    said = {str(m.get(k)) for m in messages if isinstance(m, dict) for k in ("content", "thought") if m.get(k)}
    out: list[dict[str, Any]] = []
    for step in reversed(steps if isinstance(steps, list) else []):
        text = step.get("response") if isinstance(step, dict) else None
        if not isinstance(text, str) or not text.strip() or text in said:
            break
        observed = step.get("observation")
        answer = [{"role": "user", "content": observed}] if isinstance(observed, str) and observed else []
        kept = {k: step[k] for k in ("action", "thought") if isinstance(step.get(k), str)}
        out = [{"role": "assistant", "content": text, **kept, "read_from": "trajectory"}, *answer, *out]
    return out


def _message(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    message = dict(value)
    ids = message.get("tool_call_ids")
    if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], str):
        message["tool_call_id"] = ids[0]
        del message["tool_call_ids"]
    if isinstance(message.get("thought"), str) and message["thought"] == message.get("content"):
        del message["thought"]
    return given([message])[0] if message.get("is_demo") else message
