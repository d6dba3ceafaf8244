"""OpenHands runs: rows with a `history` of events (benchmarks), in which the agent's actions are answered by
observations.

The events' own fields differ from the model's text. The model's message is in `tool_call_metadata.model_response`,
repeated for each of its calls, and is read from there once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace
from hintdistill.traces.values import mapping

NAME = "openhands"
SCOPE: Literal["record"] = "record"


def is_event(value: Any) -> bool:
    """Return whether the value is an action or an observation with its source."""
    return (
        isinstance(value, dict)
        and "source" in value
        and "timestamp" in value
        and ("action" in value or "observation" in value)
    )


def fits(value: Any) -> bool:
    """Return whether the record is a row with events, or a list of events."""
    events = value.get("history") if isinstance(value, dict) else value
    return isinstance(events, list) and bool(events) and is_event(events[0])


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a run. Raises TraceError."""
    value = {"history": record.value} if isinstance(record.value, list) else record.value
    messages, tools, model = conversation(value["history"])
    result = value.get("test_result")
    resolved = result.get("resolved") if isinstance(result, Mapping) else None
    yield build_trace(
        value,
        messages,
        record.source,
        options,
        known={"history", "instance_id", "metrics"},
        tools=tools,
        task_id=value.get("instance_id"),
        model=model,
        reward=resolved if resolved is not None else value.get("reward"),
    )


def conversation(events: list[Any]) -> tuple[list[dict[str, Any]], Any, str | None]:
    """Return the messages, tool schemas and model of a list of events. Raises TraceError if an element is not an
    event."""
    out: list[dict[str, Any]] = []
    tools: Any = None
    model: str | None = None
    answered: set[str] = set()
    for index, event in enumerate(events):
        if not isinstance(event, Mapping):
            raise TraceError(f"event {index} is not an object")
        meta = event.get("tool_call_metadata")
        response = meta.get("model_response") if isinstance(meta, Mapping) else None
        args = mapping(event.get("args"))
        if event.get("action") == "system":
            tools = args.get("tools")
            out.append({"role": "system", "content": args.get("content")})
        elif "observation" in event:
            if isinstance(meta, Mapping):
                out.append(
                    {
                        "role": "tool",
                        "tool_call_id": meta.get("tool_call_id"),
                        "name": meta.get("function_name"),
                        "content": event.get("content"),
                    }
                )
            elif event.get("content"):
                out.append({"role": "user", "content": event["content"], "observation": event["observation"]})
        elif event.get("source") == "user":
            if event.get("action") == "message":
                out.append({"role": "user", "content": args.get("content", event.get("message"))})
        elif isinstance(response, Mapping):
            key = str(response.get("id"))
            model = response.get("model") if isinstance(response.get("model"), str) else model
            if key not in answered:  # parallel calls are so many actions of one answer
                answered.add(key)
                out.append(_answer(response, index))
        elif event.get("action") in (
            "message",
            "finish",
            "run",
            "edit",
            "read",
            "write",
            "browse",
            "think",
            "delegate",
            "reject",
        ):
            kept = {"args": dict(args)} if args else {}
            out.append({"role": "assistant", "content": _said(event, args), "action": event["action"], **kept})
    return out, tools, model


def _answer(response: Mapping[str, Any], index: int) -> dict[str, Any]:
    choices = response.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise TraceError(f"event {index}: the model's answer contains no message")
    return {**{k: v for k, v in message.items() if v is not None}, "role": "assistant"}


def _said(event: Mapping[str, Any], args: Any) -> str:
    """Return the text of an action for which the model's own answer was not kept; the action itself is in its
    arguments."""
    return str(args.get("content") or args.get("thought") or args.get("final_thought") or event.get("message") or "")
