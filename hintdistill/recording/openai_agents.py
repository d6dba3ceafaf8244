"""A tracing processor for the OpenAI Agents SDK. Needs the package `openai-agents`.

    from agents import add_trace_processor
    add_trace_processor(HintdistillProcessor(TraceSink("traces")))

Spans of chat completions do not contain the agent's tools: `tools` gives their schemas. Spans of responses contain
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents.tracing import Span, Trace, TracingProcessor

from hintdistill.recording.jsonable import jsonable
from hintdistill.recording.sink import TraceSink


class HintdistillProcessor(TracingProcessor):
    """Write a record at the end of every model call."""

    def __init__(self, sink: TraceSink, tools: Sequence[Any] = ()) -> None:
        """Store the arguments; `tools` are schemas of the agent's tools, or the SDK's own function tools."""
        self.sink, self.tools = sink, [_schema(t) for t in tools]

    def on_trace_start(self, trace: Trace) -> None:
        """Do nothing: no data is available yet."""

    def on_trace_end(self, trace: Trace) -> None:
        """Do nothing: everything is already on disk."""

    def on_span_start(self, span: Span[Any]) -> None:
        """Do nothing: no data is available yet."""

    def on_span_end(self, span: Span[Any]) -> None:
        """Record a model call; other spans are ignored. Never raises."""
        try:
            data = span.span_data
            if span.error is None and data.type == "generation" and data.output:
                self._chat(span.trace_id, data)
            elif span.error is None and data.type == "response" and data.response is not None:
                self._response(span.trace_id, data)
        except Exception as error:
            self.sink.failed(error)

    def shutdown(self) -> None:
        """Do nothing: no write is pending."""

    def force_flush(self) -> None:
        """Do nothing: no write is pending."""

    def _chat(self, trace_id: str, data: Any) -> None:
        output = list(jsonable(data.output))
        if len(output) == 1 and isinstance(output[0], dict) and "choices" in output[0]:
            choices = output[0]["choices"]
        else:
            choices = [{"message": m} for m in output]
        request = {"messages": jsonable(data.input or []), "tools": self.tools, "model": data.model}
        self.sink.call({"workflow": trace_id, "request": request, "response": {"choices": choices}})

    def _response(self, trace_id: str, data: Any) -> None:
        given = data.input if data.input is not None else []
        read = [{"role": "user", "content": given}] if isinstance(given, str) else jsonable(given)
        self.sink.call({"workflow": trace_id, "input": read, "response": jsonable(data.response)})


def _schema(tool: Any) -> Any:
    if hasattr(tool, "params_json_schema"):
        function = {"name": tool.name, "description": tool.description, "parameters": tool.params_json_schema}
        return jsonable({"type": "function", "function": function})
    return jsonable(tool)
