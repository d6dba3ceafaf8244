"""tau2-bench simulations: `messages` with flat calls `{id, name, arguments, requestor}`; the user simulator also calls
tools.

Calls of the user and their results are left out, because the student never saw them. If `raw_data` contains the model
server's response body, arguments come from it exactly as the model wrote them, together with token ids if it has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.types import Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace

NAME = "tau2"
SCOPE: Literal["record"] = "record"


def fits(value: Any) -> bool:
    """Return whether the record is a simulation run, or a results file with several runs."""
    if not isinstance(value, dict):
        return False
    runs = value.get("simulations")
    one = runs[0] if isinstance(runs, list) and runs else value
    return isinstance(one, dict) and "reward_info" in one and isinstance(one.get("messages"), list) and "task_id" in one


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield one trace per simulation. Raises TraceError."""
    value = record.value
    runs = value["simulations"] if isinstance(value.get("simulations"), list) else [value]
    known = {"messages", "id", "trace_id", "task_id"}
    for run in runs:
        scored = run.get("reward_info") if isinstance(run, Mapping) else None
        messages = [m for message in run["messages"] for m in _message(message)]
        yield build_trace(
            run,
            messages,
            record.source,
            options,
            known=known,
            task_id=run.get("task_id"),
            reward=scored.get("reward") if isinstance(scored, Mapping) else None,
        )


def _message(value: Any) -> list[Any]:
    if not isinstance(value, Mapping):
        return [value]
    message = {k: v for k, v in value.items() if v is not None and k != "raw_data"}
    if message.get("role") == "tool":
        if "tool_messages" in message:  # results of parallel calls, together
            return [m for part in message["tool_messages"] for m in _message({**part, "role": "tool"})]
        message["tool_call_id"] = message.pop("id", None)
        return [] if message.get("requestor") == "user" else [message]
    if message.get("role") != "assistant":
        if calls := message.pop("tool_calls", None):
            message["user_tool_calls"] = calls
        # a user who only called a tool of their own said nothing the student could read
        return [message] if message.get("content") is not None else []
    body = value.get("raw_data")
    if isinstance(body, Mapping):
        message |= _from_body(body, message)
    return [message]


def _from_body(body: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the additions from the server's response: raw arguments and token ids."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    said = choice.get("message")
    made: dict[str, Any] = {}
    ids = choice.get("token_ids") or body.get("token_ids")
    if ids:
        made |= {"token_ids": ids, "prompt_token_ids": choice.get("prompt_token_ids") or body.get("prompt_token_ids")}
    if isinstance(said, Mapping):
        raw = said.get("tool_calls")
        if isinstance(raw, list) and len(raw) == len(message.get("tool_calls") or ()) and raw:
            made["tool_calls"] = raw
        if isinstance(said.get("reasoning_content"), str) and said["reasoning_content"]:
            made["reasoning_content"] = said["reasoning_content"]
    return made
