"""OpenTelemetry spans: GenAI conventions, OpenInference, Traceloop, ADK, ADOT, Vercel AI SDK; OTLP or flat lists.

The mapping libraries of the field give an evaluator's view (parsed arguments, no system prompt, no schemas). The spans
are therefore read directly: each model call's input and output, at every place where instrumentations put them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.formats.exchanges import Exchange, ToolRun, traces_of
from hintdistill.traces.formats.observed import MISSING, Messages, messages_in, unwrap
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.values import as_text, listed, mapping

NAME = "spans"
SCOPE: Literal["file"] = "file"
Span = Mapping[str, Any]
CALL_OPERATIONS = (
    "chat",
    "text_completion",
    "generate_content",
    "completion",
    "responses",
)
INDEXED = re.compile(r"(?:^|\.)(\d+)\.")


def fits(value: Any) -> bool:
    """Return whether the record is a span, an OTLP batch, or an object with a list of spans."""
    if not isinstance(value, dict):
        return False
    if any(k in value for k in ("resourceSpans", "resource_spans")):
        return True
    one = next(iter(listed(value.get("spans"))), value)
    return isinstance(one, dict) and _is_span(one)


def _is_span(value: Mapping[str, Any]) -> bool:
    context = value.get("context")
    ids = context if isinstance(context, Mapping) else value
    return ("attributes" in value or "span_events" in value) and any(k in ids for k in ("span_id", "spanId"))


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield the traces of a file, one or more per trace id; a run without a readable answer is a failure."""
    runs: dict[str, list[Span]] = {}
    for value in record.value:
        for span in _spans(value):
            runs.setdefault(str(_id(span, "trace")), []).append(span)
    if not runs:
        raise TraceError("no spans in the file")
    for key, spans in runs.items():
        source = Source(file=record.source.file, position=f"trace {key}")
        try:
            extra = {"span_count": len(spans)}
            yield from traces_of(
                key, [_exchange(s) for s in spans], [r for s in spans if (r := _run(s))], source, options, extra
            )
        except TraceError as error:
            yield Failure.of(source, error)


def _spans(value: Any) -> Iterator[Span]:
    """Yield flat spans from any container."""
    if not isinstance(value, Mapping):
        return
    for resource in _within([value], "resourceSpans", "resource_spans"):
        for scope in _within([resource], "scopeSpans", "scope_spans"):
            yield from _within([scope], "spans")
    if isinstance(value.get("spans"), list):
        for span in value["spans"]:
            yield from _spans(span)
    elif _is_span(value):
        yield value


def _within(holders: list[Any], *names: str) -> Iterator[Span]:
    """Yield the objects in the holders' lists under any of the given names."""
    for holder in holders:
        for name in names:
            yield from (item for item in listed(mapping(holder).get(name)) if isinstance(item, Mapping))


def _id(span: Span, what: str) -> Any:
    context = span.get("context")
    for place in (span, context):
        if isinstance(place, Mapping):
            for name in (f"{what}_id", f"{what}Id"):
                if place.get(name):
                    return place[name]
    return None


def attributes(value: Any) -> dict[str, Any]:
    """Return attributes as a flat mapping; OTLP's list of typed values is unwrapped."""
    if isinstance(value, list):
        return {
            a["key"]: _typed(a.get("value")) for a in value if isinstance(a, Mapping) and isinstance(a.get("key"), str)
        }
    return dict(value) if isinstance(value, Mapping) else {}


def _typed(value: Any) -> Any:
    """Return the value of OTLP's `{"stringValue": …}` and similar typed values."""
    if not isinstance(value, Mapping):
        return value
    if "arrayValue" in value:
        inner = value["arrayValue"]
        return [_typed(v) for v in (listed(inner.get("values")))] if isinstance(inner, Mapping) else []
    if "kvlistValue" in value:
        return attributes((value["kvlistValue"] or {}).get("values"))
    return next(iter(value.values()), None)


def _exchange(span: Span) -> Exchange:
    own = attributes(span.get("attributes"))
    for event in _events(span):
        own = {**own, **event}
    read, said = exchanged(own)
    kind = own.get("openinference.span.kind")
    operation = own.get("gen_ai.operation.name") or own.get("llm.request.type")
    is_call = kind == "LLM" or operation in CALL_OPERATIONS or (kind is None and operation is None and bool(said))
    parent = next((span[k] for k in ("parent_span_id", "parentSpanId", "parent_id", "parentId") if span.get(k)), None)
    start = next(
        (span[k] for k in ("start_time", "startTimeUnixNano", "start_time_unix_nano", "startTime") if k in span), ""
    )
    model = next(
        (own[k] for k in ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name") if own.get(k)), None
    )
    if isinstance(start, str) and start.isdecimal() and len(start) < 40:
        start = int(start)
    return Exchange(
        id=str(_id(span, "span")),
        parent=str(parent) if parent else None,
        start=start,
        read=read,
        said=said,
        is_call=is_call,
        tools=tools_in(own),
        model=model if isinstance(model, str) else None,
    )


def _events(span: Span) -> Iterator[dict[str, Any]]:
    """Return content that instrumentations put on events: under attribute names, as bodies, or as one event per
    message."""
    by_message: dict[str, list[Any]] = {}
    for event in _within([span], "span_events", "events"):
        own = attributes(event.get("attributes"))
        body = unwrap(event.get("body"))
        if isinstance(body, Mapping) and ("input" in body or "output" in body):
            for side in ("input", "output"):
                found = unwrap(body.get(side))
                own[f"gen_ai.{side}.messages"] = found.get("messages", found) if isinstance(found, Mapping) else found
            yield own
            continue
        name = str(event.get("name") or event.get("event_name") or own.get("event.name") or "")
        if name.startswith("gen_ai.") and name.endswith((".message", ".choice")):
            _add_event(by_message, name, {**own, **body} if isinstance(body, Mapping) else own)
        else:
            yield {k: v for k, v in own.items() if k.startswith(("gen_ai.", "llm."))}
    if by_message:
        yield {f"gen_ai.{side}.messages": said for side, said in by_message.items()}


def _add_event(by_message: dict[str, list[Any]], name: str, own: Mapping[str, Any]) -> None:
    if name == "gen_ai.choice":
        message = unwrap(own.get("message"))
        by_message.setdefault("output", []).append(
            {"role": "assistant", **message}
            if isinstance(message, Mapping)
            else {"role": "assistant", "content": message, "tool_calls": unwrap(own.get("tool_calls"))}
        )
        return
    role = name.split(".")[1]
    content = unwrap(own.get("content"))
    made = {"role": role, "content": content if isinstance(content, list | str) else as_text(content)}
    if own.get("tool_calls"):
        made["tool_calls"] = unwrap(own["tool_calls"])
    if role == "tool":
        made["tool_call_id"] = own.get("id")
    by_message.setdefault("input", []).append(made)


def exchanged(own: Mapping[str, Any]) -> tuple[Messages, Messages]:
    """Return a model call's input and output from a span's attributes, using the first dialect that shows an answer."""
    sides: tuple[tuple[Messages, Messages], ...] = (
        (
            messages_in(own.get("gen_ai.input.messages"), "user"),
            messages_in(own.get("gen_ai.output.messages"), "assistant"),
        ),
        (_indexed(own, "llm.input_messages", "message."), _indexed(own, "llm.output_messages", "message.")),
        (_indexed(own, "gen_ai.prompt", ""), _indexed(own, "gen_ai.completion", "")),
        (
            messages_in(own.get("gcp.vertex.agent.llm_request"), "user"),
            messages_in(own.get("gcp.vertex.agent.llm_response"), "assistant"),
        ),
        (messages_in(own.get("ai.prompt.messages") or own.get("ai.prompt"), "user"), _vercel(own)),
        (messages_in(own.get("input.value"), "user"), messages_in(own.get("output.value"), "assistant")),
    )
    read, said = next((s for s in sides if _answers(s[1])), ([], []))
    read = read or next((s[0] for s in sides if s[0]), [])
    said = said[: 1 + max((i for i, m in enumerate(said) if m.get("role") in ("assistant", "model")), default=-1)]
    system = own.get("gen_ai.system_instructions")
    if system and not any(m.get("role") in ("system", "developer") for m in read):
        told = unwrap(system)
        parts = {"role": "system", "parts": told} if isinstance(told, list) else told
        read = [*[{**m, "role": "system"} for m in messages_in(parts, "system")], *read]
    return read, said


def _answers(messages: Messages) -> bool:
    return any(m.get("content") or m.get("tool_calls") for m in messages)


def _vercel(own: Mapping[str, Any]) -> Messages:
    text, calls = own.get("ai.response.text"), unwrap(own.get("ai.response.toolCalls"))
    found = messages_in(calls, "assistant") if isinstance(calls, list) else []
    if found and text:
        found[0]["content"] = text
    return found or ([{"role": "assistant", "content": text}] if isinstance(text, str) and text else [])


def _indexed(own: Mapping[str, Any], prefix: str, inner: str) -> Messages:
    """Rebuild messages that were flattened into keys:
    `llm.input_messages.0.message.tool_calls.1.tool_call.function.arguments`."""
    tree: dict[str, Any] = {}
    for key, value in own.items():
        if key.startswith(prefix + "."):
            at = tree
            *path, last = key[len(prefix) + 1 :].split(".")
            for step in path:
                at = at.setdefault(step, {}) if isinstance(at.get(step, {}), dict) else {}
            at[last] = value
    out: Messages = []
    found = sorted(int(k) for k in tree if k.isdecimal() and len(k) < 5)
    for index in range(found[-1] + 1 if found else 0):
        node = tree.get(str(index))
        if node is None:
            out.append({"role": "assistant", MISSING: True})
            continue
        node = node.get("message", node) if inner and isinstance(node, dict) else node
        if isinstance(node, dict):
            out.append(_flat_message(node))
    return out


def _flat_message(node: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"role": node.get("role", "assistant"), "content": node.get("content")}
    contents = node.get("contents")
    if made["content"] is None and isinstance(contents, dict):
        texts = [c.get("message_content", {}).get("text") for _, c in sorted(contents.items()) if isinstance(c, dict)]
        made["content"] = "".join(t for t in texts if isinstance(t, str)) or None
    calls = []
    by_index = node.get("tool_calls")
    for _, item in sorted(
        mapping(by_index).items(), key=lambda p: int(p[0]) if p[0].isdecimal() and len(p[0]) < 9 else 0
    ):
        call = item.get("tool_call", item) if isinstance(item, dict) else {}
        function = call.get("function", call) if isinstance(call, dict) else {}
        if isinstance(function, dict):
            calls.append({"id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments")})
    if calls:
        made["tool_calls"] = calls
    for key in ("tool_call_id", "name"):
        if isinstance(node.get(key), str):
            made[key] = node[key]
    return made


def tools_in(own: Mapping[str, Any]) -> list[Any]:
    """Return the tool schemas of a call, at every place where instrumentations put them."""
    for key in ("gen_ai.tool.definitions", "ai.prompt.tools", "gen_ai.request.tools"):
        found = unwrap(own.get(key))
        if isinstance(found, list) and found:
            return [t for t in map(unwrap, found) if isinstance(t, Mapping)]
    indexed = sorted((int(m.group(1)), k) for k in own if k.startswith("llm.tools.") and (m := INDEXED.search(k[9:])))
    found = [unwrap(own[k]) for _, k in indexed if k.endswith("json_schema")]
    if found:
        return [t for t in found if isinstance(t, Mapping)]
    for key in ("model_request_parameters", "llm.invocation_parameters", "gcp.vertex.agent.llm_request", "input.value"):
        value = unwrap(own.get(key))
        if isinstance(value, Mapping):
            config = value.get("config") if isinstance(value.get("config"), Mapping) else value
            held = [listed(mapping(config).get(name)) for name in ("function_tools", "output_tools", "tools")]
            if found := [t for tools in held for t in tools if isinstance(t, Mapping)]:
                return found
    return []


def _run(span: Span) -> ToolRun | None:
    own = attributes(span.get("attributes"))
    if own.get("gen_ai.operation.name") != "execute_tool" and own.get("openinference.span.kind") != "TOOL":
        return None
    result = own.get("gen_ai.tool.call.result", own.get("output.value"))
    start = span.get("start_time", span.get("startTimeUnixNano", ""))
    name = own.get("gen_ai.tool.name", own.get("tool.name"))
    return ToolRun(
        start, own.get("gen_ai.tool.call.id"), name, as_text(result), unwrap(own.get("gen_ai.tool.call.arguments"))
    )
