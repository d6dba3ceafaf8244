"""Google ADK: sessions `{id, events: [{author, content: {parts, role}}]}` and evaluation sets `{eval_cases: [{conversation}]}`.

In older files arguments are objects and calls have no ids; results are paired with calls by order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.formats.observed import Messages, messages_in
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.turns import build_trace
from hintdistill.traces.values import listed

NAME = "adk"
SCOPE: Literal["record"] = "record"


def fits(value: Any) -> bool:
    """Return whether the value is an evaluation set, or a session of events with Gemini contents."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("eval_cases"), list):
        return True
    events = value.get("events")
    return (
        isinstance(events, list)
        and bool(events)
        and isinstance(events[0], dict)
        and {"author", "content"} <= set(events[0])
    )


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield the session's trace, or one trace per case of an evaluation set. Raises TraceError."""
    value = record.value
    if "eval_cases" not in value:
        messages = [m for e in value["events"] if isinstance(e, Mapping) for m in _event(e)]
        system, tools = _asked(value.get("event_logs"))
        kept = {k: v for k, v in value.items() if k not in ("events", "event_logs")}
        yield build_trace(kept, [*system, *messages], record.source, options, known={"id", "trace_id"}, tools=tools)
        return
    for n, case in enumerate(value["eval_cases"], 1):
        source = Source(file=record.source.file, position=f"{record.source.position}, case {n}")
        try:
            yield _case(case, source, options)
        except TraceError as error:
            yield Failure.of(source, error)


def _event(event: Mapping[str, Any]) -> Messages:
    found = messages_in(event.get("content"), "user")
    author = event.get("author")
    return [{**m, "author": author} if isinstance(author, str) and author != m.get("role") else m for m in found]


def _asked(logs: Any) -> tuple[Messages, list[Any]]:
    """Return the system prompt and schemas of the last call that a session records."""
    for log in reversed(logs) if isinstance(logs, list) else ():
        request = log.get("model_request") if isinstance(log, Mapping) else None
        config = request.get("config") if isinstance(request, Mapping) else None
        if isinstance(config, Mapping):
            told = config.get("system_instruction")
            system = [{"role": "system", "content": told}] if isinstance(told, str) and told else []
            tools = config.get("tools")
            return system, list(tools) if isinstance(tools, list) else []
    return [], []


def _case(case: Any, source: Source, options: ReadOptions) -> Trace:
    if not isinstance(case, Mapping) or not isinstance(case.get("conversation"), list):
        raise TraceError("a case without a conversation")
    messages: Messages = []
    for turn in case["conversation"]:
        if not isinstance(turn, Mapping):
            raise TraceError("a turn is not an object")
        messages += messages_in(turn.get("user_content"), "user")
        data = turn.get("intermediate_data")
        data = data if isinstance(data, Mapping) else {}
        uses = [u for u in listed(data.get("tool_uses")) if isinstance(u, Mapping)]
        if uses:
            calls = [{"id": u.get("id"), "name": u.get("name"), "arguments": u.get("args")} for u in uses]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        for said in listed(data.get("tool_responses")):
            if isinstance(said, Mapping):
                messages += messages_in({"role": "user", "parts": [{"function_response": said}]}, "user")
        messages += messages_in(turn.get("final_response"), "assistant")
    kept = {k: v for k, v in case.items() if k != "conversation" and v is not None}
    return build_trace(
        {**kept, "trace_id": str(case.get("eval_id") or source.position)}, messages, source, options, known={"trace_id"}
    )
