"""Answer the agent's calls from JSON to JSON, for every protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hintdistill import api
from hintdistill.core.errors import ConfigError, TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.recording.sink import TraceSink
from hintdistill.serving.asked import DiagnoseAsked, RankAsked, RescoreAsked
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.registry import recognise


@dataclass(frozen=True)
class Service:
    """Hold the parts of a service: an engine with its session, critics, and a sink for traces."""

    session: api.Session
    panel: api.Panel
    sink: TraceSink | None = None
    """Sink for traces; None refuses traces."""

    def diagnose(self, asked: DiagnoseAsked) -> dict[str, Any]:
        """See `api.diagnose`; raises the same errors."""
        found = api.diagnose(
            asked.messages,
            tools=asked.tools,
            step=asked.step,
            engine=self.session,
            critic=self.panel,
            twins=asked.twins,
            inject=api.CANDIDATES.model_copy(update={"candidates": asked.candidates}),
        )
        return found.to_dict(asked.distributions)

    def rescore(self, asked: RescoreAsked) -> dict[str, Any]:
        """See `api.rescore`; raises the same errors."""
        target = api.rescore(
            asked.messages,
            hint=asked.hint,
            quote=asked.quote,
            tools=asked.tools,
            step=asked.step,
            placement=asked.placement,
            engine=self.session,
        )
        return target.to_dict(asked.distributions)

    def rank(self, asked: RankAsked) -> dict[str, Any]:
        """See `api.rank_hints`; raises the same errors."""
        ranked = api.rank_hints(
            asked.messages,
            hints=asked.hints,
            quote=asked.quote,
            tools=asked.tools,
            step=asked.step,
            placement=asked.placement,
            engine=self.session,
        )
        return {"hints": [r.to_dict(asked.distributions) for r in ranked]}

    def record(self, records: list[Any]) -> dict[str, Any]:
        """Write traces in any format that can be read one record at a time; a record that is not a trace is refused with its
        reason.

        Raises:
            ConfigError: the server does not store traces.
        """
        sink = self._sink()
        refused = []
        for n, record in enumerate(records, 1):
            try:
                _check(record, n)
            except TraceError as error:
                refused.append({"record": n, "message": error.message})
                continue
            sink.append(record)
        return {"accepted": len(records) - len(refused), "refused": refused}

    def spans(self, request: dict[str, Any]) -> None:
        """Write the spans of an OTLP request. Raises ConfigError if the server does not store traces."""
        if request.get("resourceSpans"):
            self._sink().append(request, "spans")

    def _sink(self) -> TraceSink:
        if self.sink is None:
            raise ConfigError("this server does not store traces", hint="start it with --traces DIR")
        return self.sink


def _check(record: Any, n: int) -> None:
    """Raise TraceError if a record on its own is not a trace."""
    found = recognise(record)
    if found is None or found.SCOPE != "record":
        raise TraceError("this format cannot be read one record at a time; see docs/traces.md")
    source = Source(file="request", position=f"record {n}")
    for made in found.traces(Record(record, source), ReadOptions()):
        if not isinstance(made, Trace):
            raise TraceError(made.message)
