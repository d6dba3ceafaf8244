"""Inspect logs: `.json`, or the `samples/*.json` of an `.eval` archive; one trace per sample and epoch.

Messages contain parsed arguments; if the model events kept the provider's answer, the raw string is taken from there.
Tool schemas are only in the model events. Large strings may be `attachment://` references, which are resolved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.formats.openai_chat import loads
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.turns import GIVEN, build_trace
from hintdistill.traces.values import listed

NAME = "inspect"
SCOPE: Literal["record"] = "record"
ATTACHED = "attachment://"
GRADES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}


def fits(value: Any) -> bool:
    """Return whether the record is an evaluation log with samples, or one sample."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("eval"), dict) and isinstance(value.get("samples"), list):
        return True
    return isinstance(value.get("messages"), list) and "epoch" in value and "target" in value


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield one trace per sample; an invalid sample is a separate failure. Raises TraceError for a log without
    samples."""
    value = record.value
    samples = value.get("samples") if "eval" in value else [value]
    header = value.get("eval") if isinstance(value.get("eval"), Mapping) else {}
    if not samples:
        raise TraceError(f"a log without samples (status {value.get('status')!r})")
    for n, sample in enumerate(samples, 1):
        position = record.source.position if len(samples) == 1 else f"{record.source.position}, sample {n}"
        source = Source(file=record.source.file, position=position)
        try:
            yield _sample(sample, header, source, options)
        except TraceError as error:
            yield Failure.of(source, error)


def _sample(sample: Any, header: Any, source: Source, options: ReadOptions) -> Trace:
    if not isinstance(sample, Mapping) or not isinstance(sample.get("messages"), list):
        raise TraceError("a sample without messages")
    attached = sample.get("attachments") if isinstance(sample.get("attachments"), Mapping) else {}
    events = [e for e in listed(sample.get("events")) if isinstance(e, Mapping) and e.get("event") == "model"]
    raw = _raw_arguments(events)
    messages = [_message(_resolve(m, attached), raw) for m in sample["messages"]]
    key = sample.get("uuid") or (f"{sample.get('id')}/{sample.get('epoch')}" if "id" in sample else None)
    kept = {
        k: sample[k]
        for k in ("id", "epoch", "target", "scores", "metadata", "error", "limit")
        if sample.get(k) is not None
    }
    run = {k: header[k] for k in ("task", "run_id", "model") if isinstance(header, Mapping) and header.get(k)}
    output = sample.get("output")
    model = output.get("model") if isinstance(output, Mapping) else None
    return build_trace(
        {**kept, **({"eval": run} if run else {}), **({"trace_id": str(key)} if key else {})},
        messages,
        source,
        options,
        known={"trace_id", "id"},
        tools=_resolve(_tools(events), attached),
        reward=_score(sample.get("scores")),
        task_id=":".join(str(p) for p in (run.get("task"), sample.get("id")) if p is not None) or None,
        model=run.get("model") or model,
    )


def _resolve(value: Any, attached: Any, depth: int = 0) -> Any:
    """Replace references to attachments by the attachments' content."""
    if not attached or depth > 60:
        return value
    if isinstance(value, str):
        return attached.get(value[len(ATTACHED) :], value) if value.startswith(ATTACHED) else value
    if isinstance(value, list):
        return [_resolve(v, attached, depth + 1) for v in value]
    if isinstance(value, dict):
        return {k: _resolve(v, attached, depth + 1) for k, v in value.items()}
    return value


def _tools(events: list[Mapping[str, Any]]) -> list[Any]:
    return next((list(e["tools"]) for e in events if isinstance(e.get("tools"), list) and e["tools"]), [])


def _raw_arguments(events: list[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the arguments as providers sent them, by call id."""
    found: dict[str, list[str]] = {}
    for event in events:
        call = event.get("call")
        response = call.get("response") if isinstance(call, Mapping) else None
        choices = response.get("choices") if isinstance(response, Mapping) else None
        for choice in choices if isinstance(choices, list) else ():
            message = choice.get("message") if isinstance(choice, Mapping) else None
            calls = message.get("tool_calls") if isinstance(message, Mapping) else None
            for item in calls if isinstance(calls, list) else ():
                function = item.get("function") if isinstance(item, Mapping) else None
                if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
                    found.setdefault(str(item.get("id")), []).append(function["arguments"])
    return found


def _message(value: Any, raw: Mapping[str, list[str]]) -> Any:
    if not isinstance(value, Mapping):
        return value
    message = dict(value)
    if message.get("role") == "tool":
        failed = message.get("error")
        if isinstance(failed, Mapping) and not message.get("content"):
            message["content"] = str(failed.get("message") or failed.get("type"))
        if isinstance(message.get("function"), str):
            message["name"] = message["function"]
    if message.get("role") == "assistant":
        if message.get("source") == "input":
            message[GIVEN] = True
        message["tool_calls"] = [_call(c, raw) for c in listed(message.get("tool_calls"))]
        message |= _split_reasoning(message.get("content"))
    return message


def _split_reasoning(content: Any) -> dict[str, Any]:
    if not isinstance(content, list):
        return {}
    thought = [p for p in content if isinstance(p, Mapping) and p.get("type") == "reasoning"]
    if not thought:
        return {}
    return {
        "content": [p for p in content if p not in thought],
        "reasoning_content": "\n".join(str(p.get("reasoning") or p.get("summary") or "") for p in thought),
    }


def _call(value: Any, raw: Mapping[str, list[str]]) -> Any:
    """Return a call with its raw arguments, if an event kept a string that parses to the same value."""
    if not isinstance(value, Mapping):
        return value
    parsed = value.get("arguments")
    for text in raw.get(str(value.get("id")), ()):
        if value.get("parse_error") or loads(text) == parsed:
            return {**value, "arguments": text}
    return (
        {**value, "arguments": parsed if isinstance(parsed, str) else json.dumps(parsed or {})}
        if value.get("parse_error")
        else value
    )


def _score(scores: Any) -> float | None:
    """Return the sample's only score, if it has exactly one and it is a number or a grade."""
    if not isinstance(scores, Mapping) or len(scores) != 1:
        return None
    only = next(iter(scores.values()))
    value = only.get("value") if isinstance(only, Mapping) else None
    if isinstance(value, str):
        return GRADES.get(value)
    return float(value) if isinstance(value, int | float) else None
