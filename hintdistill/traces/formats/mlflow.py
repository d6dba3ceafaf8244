"""MLflow traces: `{info, data: {spans}}` as written by `Trace.to_json`, with inputs and outputs as JSON in span
attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.formats.exchanges import Exchange, ToolRun, traces_of
from hintdistill.traces.formats.observed import messages_in, unwrap
from hintdistill.traces.formats.spans import attributes
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.values import as_text, listed, mapping

NAME = "mlflow"
SCOPE: Literal["record"] = "record"
Span = Mapping[str, Any]


def fits(value: Any) -> bool:
    """Return whether the record is a trace with its info and its spans."""
    if not isinstance(value, dict):
        return False
    spans = mapping(value.get("data")).get("spans", value.get("spans"))
    if not isinstance(spans, list) or not spans or not isinstance(spans[0], dict):
        return False
    info = mapping(value.get("info"))
    own = attributes(spans[0].get("attributes"))
    return any(k.startswith("mlflow.") for k in own) or ("request_id" in info and "attributes" in spans[0])


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield the traces of one record. Raises TraceError if no span contains an answer of a model."""
    value = record.value
    info = mapping(value.get("info", value.get("trace_info")))
    spans = [s for s in listed(mapping(value.get("data")).get("spans", value.get("spans"))) if isinstance(s, Mapping)]
    if not spans:
        raise TraceError("a trace without spans")
    exchanges = [_exchange(s) for s in spans]
    runs = [_run(s) for s in spans if _kind(s) == "TOOL"]
    key = str(info.get("trace_id") or info.get("request_id") or _id(spans[0], "trace") or record.source.position)
    kept = {
        k: info[k]
        for k in ("tags", "trace_metadata", "request_metadata", "assessments", "state", "status")
        if info.get(k)
    }
    yield from traces_of(key, exchanges, runs, record.source, options, kept)


def _own(span: Span) -> dict[str, Any]:
    return {k: unwrap(v) for k, v in attributes(span.get("attributes")).items()}


def _kind(span: Span) -> str:
    return str(_own(span).get("mlflow.spanType", span.get("span_type", "")))


def _id(span: Span, what: str) -> Any:
    context = mapping(span.get("context"))
    return span.get(f"{what}_id") or context.get(f"{what}_id")


def _exchange(span: Span) -> Exchange:
    own = _own(span)
    asked, said = own.get("mlflow.spanInputs", span.get("inputs")), own.get("mlflow.spanOutputs", span.get("outputs"))
    tools = next(
        (t for t in (own.get("mlflow.chat.tools"), mapping(asked).get("tools")) if isinstance(t, list) and t), []
    )
    model = mapping(said).get("model") or mapping(asked).get("model") or own.get("mlflow.llm.model")
    parent = span.get("parent_span_id") or span.get("parent_id")
    start = span.get("start_time_unix_nano", span.get("start_time", span.get("start_time_ns")))
    read, answered = messages_in(asked, "user"), messages_in(said, "assistant")
    if not read and isinstance(chat := own.get("mlflow.chat.messages"), list) and chat:
        read, answered = messages_in(chat[:-1], "user"), messages_in(chat[-1:], "assistant")
    return Exchange(
        id=str(_id(span, "span")),
        parent=str(parent) if parent else None,
        start=start if isinstance(start, int | float) else str(start),
        read=read,
        said=[m for m in answered if m.get("role") not in ("tool", "user", "system")],
        is_call=_kind(span) in ("CHAT_MODEL", "LLM"),
        tools=list(tools),
        model=model if isinstance(model, str) else None,
    )


def _run(span: Span) -> ToolRun:
    own = _own(span)
    start = span.get("start_time_unix_nano", span.get("start_time", ""))
    said = own.get("mlflow.spanOutputs", span.get("outputs"))
    return ToolRun(start, None, str(span.get("name")), as_text(said), own.get("mlflow.spanInputs"))
