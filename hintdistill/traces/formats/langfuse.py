"""Langfuse trace exports: `{trace, observations}`, with input, output and metadata as doubly encoded JSON strings.

Observations of type GENERATION are the model's calls. If their own input and output are empty, the attributes kept in
their metadata are used (`spans.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.types import Trace
from hintdistill.traces.formats.exchanges import Exchange, ToolRun, traces_of
from hintdistill.traces.formats.observed import Messages, messages_in, unwrap
from hintdistill.traces.formats.spans import exchanged, tools_in
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.values import as_text, listed

NAME = "langfuse"
SCOPE: Literal["record"] = "record"


def fits(value: Any) -> bool:
    """Return whether the record is a trace with its observations, nested or side by side."""
    if not isinstance(value, dict):
        return False
    found = value.get("observations")
    return isinstance(found, list) and bool(found) and isinstance(found[0], dict) and "type" in found[0]


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield the traces of one export. Raises TraceError if no observation contains an answer of a model."""
    value = record.value
    head = value["trace"] if isinstance(value.get("trace"), Mapping) else value
    observed = [o for o in value["observations"] if isinstance(o, Mapping)]
    exchanges = [_exchange(o) for o in observed]
    # the trace itself, where only it says what went in and came out
    exchanges.append(Exchange("trace", None, "", *_sides(head.get("input"), head.get("output")), is_call=False))
    runs = [_run(o) for o in observed if o.get("type") == "TOOL"]
    extra = {k: head[k] for k in ("name", "sessionId", "tags", "release", "version", "userId") if head.get(k)}
    scores = [s for s in listed(head.get("scores")) if isinstance(s, Mapping)]
    if scores:
        extra["scores"] = [
            {k: s.get(k) for k in ("name", "value", "stringValue", "comment") if s.get(k) is not None} for s in scores
        ]
    yield from traces_of(str(head.get("id") or record.source.position), exchanges, runs, record.source, options, extra)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _sides(read: Any, said: Any) -> tuple[Messages, Messages]:
    return messages_in(read, "user"), messages_in(said, "assistant")


def _exchange(observation: Mapping[str, Any]) -> Exchange:
    metadata = unwrap(observation.get("metadata"))
    own = unwrap(metadata.get("attributes")) if isinstance(metadata, Mapping) else None
    own = own if isinstance(own, Mapping) else {}
    read, said = _sides(observation.get("input"), observation.get("output"))
    if any(isinstance(m.get("content"), str) and m["content"].startswith("role='") for m in read):
        read = []  # an object's printed form, not the object
    recorded = exchanged(own)
    if not said or len(recorded[0]) > len(read):
        read, said = (recorded[0] or read), (recorded[1] or said)
    # some exporters leave a key's name where its value belongs
    read = [m for m in read if not (m.get("content") == "role" and "tool_calls" not in m)]
    tools = tools_in(own) or _own_tools(observation, metadata)
    return Exchange(
        id=str(observation.get("id")),
        parent=_text(observation.get("parentObservationId")),
        start=str(observation.get("startTime")),
        read=read,
        said=[m for m in said if m.get("role") not in ("tool", "user")],
        is_call=observation.get("type") == "GENERATION",
        tools=tools,
        model=_text(observation.get("model")),
    )


def _own_tools(observation: Mapping[str, Any], metadata: Any) -> list[Any]:
    for place in (unwrap(observation.get("input")), metadata, unwrap(observation.get("modelParameters"))):
        if isinstance(place, Mapping):
            config = place.get("config") if isinstance(place.get("config"), Mapping) else place
            found = unwrap(config.get("tools")) if isinstance(config, Mapping) else None
            if isinstance(found, list) and found:
                return [t for t in map(unwrap, found) if isinstance(t, Mapping)]
    return []


def _run(observation: Mapping[str, Any]) -> ToolRun:
    metadata = unwrap(observation.get("metadata"))
    own = unwrap(metadata.get("attributes")) if isinstance(metadata, Mapping) else None
    own = own if isinstance(own, Mapping) else {}
    read, said = unwrap(observation.get("input")), unwrap(observation.get("output"))
    if isinstance(said, Mapping) and isinstance(said.get("content"), list):
        said = "".join(str(p.get("text", "")) for p in said["content"] if isinstance(p, Mapping))
    arguments = read["input"] if isinstance(read, Mapping) and set(read) == {"input"} else read
    name = own.get("gen_ai.tool.name") or own.get("tool.name") or own.get("ai.toolCall.name") or observation.get("name")
    return ToolRun(str(observation.get("startTime")), own.get("gen_ai.tool.call.id"), name, as_text(said), arguments)
