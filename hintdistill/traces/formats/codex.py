"""Codex rollouts: lines of `{type, payload}`; `response_item` payloads are Responses items, a compaction starts a new context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.formats import openai_responses
from hintdistill.traces.formats.openai_chat import given
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.turns import build_trace

NAME = "codex"
SCOPE: Literal["file"] = "file"
ENVELOPES = (
    "session_meta",
    "response_item",
    "event_msg",
    "turn_context",
    "compacted",
)


def fits(value: Any) -> bool:
    """Return whether the record is a line of a rollout."""
    return isinstance(value, dict) and value.get("type") in ENVELOPES and isinstance(value.get("payload"), dict)


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield one trace per context: the session up to the first compaction, and the part after each compaction. Raises
    TraceError if there is no item."""
    meta: dict[str, Any] = {}
    model: str | None = None
    segments: list[tuple[list[Any], list[Any]]] = [([], [])]
    for line in record.value:
        payload = line.get("payload") if isinstance(line, Mapping) else None
        if not isinstance(payload, Mapping):
            continue
        what = line.get("type")
        if what == "session_meta":
            meta = meta or dict(payload)
        elif what == "turn_context":
            model = payload.get("model") if isinstance(payload.get("model"), str) else model
        elif what == "compacted":
            held = payload.get("replacement_history")
            summary = [{"type": "message", "role": "user", "content": payload.get("message")}]
            segments.append((held if isinstance(held, list) else summary, []))
        elif what == "response_item" and payload.get("type") not in openai_responses.BESIDE:
            segments[-1][1].append(payload)
    if not any(items for _, items in segments):
        raise TraceError("no response_item in the rollout")
    filled = [s for s in segments if s[1]]
    for n, (held, items) in enumerate(filled, 1):
        source = Source(
            file=record.source.file, position=record.source.position if len(filled) == 1 else f"context {n}"
        )
        suffix = f"/{n}" if len(filled) > 1 else ""
        try:
            yield _trace(meta, held, items, model, source, options, suffix)
        except TraceError as error:
            yield Failure.of(source, error)


def _trace(
    meta: Mapping[str, Any],
    held: list[Any],
    items: list[Any],
    model: str | None,
    source: Source,
    options: ReadOptions,
    suffix: str,
) -> Trace:
    told = meta.get("base_instructions", meta.get("instructions"))
    told = told.get("text") if isinstance(told, Mapping) else told
    system = [{"role": "system", "content": told}] if isinstance(told, str) and told else []
    messages = [*system, *given(openai_responses.turns(held)), *openai_responses.turns(items)]
    kept = {k: v for k, v in meta.items() if k not in ("instructions", "base_instructions", "id") and v is not None}
    if meta.get("id"):
        kept["trace_id"] = str(meta["id"])
    return build_trace(kept, messages, source, options, known={"trace_id"}, suffix=suffix, model=model)
