"""SWE-agent `.traj` and mini-swe-agent trajectories: chat messages under `history` or `messages`, with the agent's
notes.

In older versions actions are part of the text, and the shell's answers are user messages; both are left that way. A
demonstration in the history counts as given, because the run did not produce it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from hintdistill.core.errors import LostStepError
from hintdistill.core.types import Trace
from hintdistill.traces.formats.openai_chat import given
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace

NAME = "swe_agent"
SCOPE: Literal["record"] = "record"


def fits(value: Any) -> bool:
    """Return whether the record is a history of messages, or carries mini-swe-agent's own mark."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("trajectory_format"), str) and value["trajectory_format"].startswith("mini-swe-agent"):
        return isinstance(value.get("messages"), list)
    history = value.get("history")
    if "mistake_agent" in value:
        return False  # Who&When, whose roles are agents
    return isinstance(history, list) and bool(history) and isinstance(history[0], dict) and "role" in history[0]


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a run.

    Raises:
        TraceError: the record is not such a run.
        LostStepError: raised after the trace, if only the answer of a step at its end is known, without its calls.
    """
    value = record.value
    key = "history" if isinstance(value.get("history"), list) else "messages"
    # the trajectory says the same once more, step by step
    known = {key, "trajectory", "id", "trace_id"}
    info = value.get("info")
    task = value.get("instance_id") or (info.get("instance_id") if isinstance(info, dict) else None)
    messages = [_message(m) for m in value[key]]
    later = _later_steps(value.get("trajectory"), messages)
    by_calls = any(isinstance(m, dict) and m.get("role") == "assistant" and m.get("tool_calls") for m in messages)
    lost = [step for step in later if by_calls and not step.get("tool_calls")]
    for step in later if not lost else []:
        calls = {"tool_calls": step["tool_calls"]} if step.get("tool_calls") else {}
        messages.append({"role": "assistant", "content": step["response"], **calls})
        if isinstance(step.get("observation"), str) and step["observation"] and not calls:
            messages.append({"role": "user", "content": step["observation"]})
    yield build_trace(
        value,
        messages,
        record.source,
        options,
        known=known,
        tools=value.get("tools"),
        task_id=task,
    )
    if lost:
        raise LostStepError(
            f"the last {len(later)} steps of `trajectory` are missing from `history`, and their calls are not recorded"
        )


def _later_steps(trajectory: Any, messages: list[Any]) -> list[dict[str, Any]]:
    """Return the steps at the end of a trajectory that its history does not contain yet: it is written before the last
    answer is added."""
    steps = [s for s in trajectory if isinstance(s, dict)] if isinstance(trajectory, list) else []
    said = [
        text.strip()
        for m in messages
        if isinstance(m, dict) and m.get("role") == "assistant" and not m.get("is_demo")
        for text in (m.get("content"), m.get("thought"))
        if isinstance(text, str)
    ]
    later: list[dict[str, Any]] = []
    for step in reversed(steps):
        response = step.get("response")
        if not isinstance(response, str) or not response.strip():
            # the environment's own: the run was ended without an answer
            continue
        if response.strip() in said:
            return later[::-1]
        later.append(step)
    # nothing of it is in the history word for word: another spelling of the same steps, unless there are more
    own = sum(isinstance(m, dict) and m.get("role") == "assistant" and not m.get("is_demo") for m in messages)
    return later[::-1][own:]


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
