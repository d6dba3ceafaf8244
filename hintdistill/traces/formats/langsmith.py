"""LangSmith runs: `{id, trace_id, run_type, inputs, outputs, extra}`, alone, in a list, or as the `post`/`patch` of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.formats.exchanges import Exchange, ToolRun, traces_of
from hintdistill.traces.formats.observed import messages_in
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.values import as_text, listed

NAME = "langsmith"
SCOPE: Literal["file"] = "file"


def fits(value: Any) -> bool:
    """Return whether the record is a run, or a batch of runs."""
    if not isinstance(value, dict):
        return False
    return _is_run(value) or any(isinstance(value.get(k), list) for k in ("post", "patch"))


def _is_run(value: Any) -> bool:
    return isinstance(value, Mapping) and "id" in value and ("run_type" in value or "dotted_order" in value)


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield the traces of a file, by trace id; a batch's patches complete its posts."""
    runs: dict[str, dict[str, Any]] = {}
    for value in record.value:
        batch = [*listed(value.get("post")), *listed(value.get("patch"))] if isinstance(value, Mapping) else []
        for run in batch if batch else [value]:
            if _is_run(run):
                held = runs.setdefault(str(run["id"]), {})
                held.update({k: v for k, v in run.items() if v not in (None, {}, []) or k not in held})
    if not runs:
        raise TraceError("the file contains no run")
    by_trace: dict[str, list[dict[str, Any]]] = {}
    for run in runs.values():
        by_trace.setdefault(str(run.get("trace_id") or run["id"]), []).append(run)
    for key, held_runs in by_trace.items():
        source = Source(file=record.source.file, position=f"trace {key}")
        done = [
            ToolRun(str(r.get("start_time")), None, r.get("name"), as_text(_result(r)))
            for r in held_runs
            if r.get("run_type") == "tool"
        ]
        try:
            yield from traces_of(
                key, [_exchange(r) for r in held_runs], done, source, options, {"run_count": len(held_runs)}
            )
        except TraceError as error:
            yield Failure.of(source, error)


def _result(run: Mapping[str, Any]) -> Any:
    outputs = run.get("outputs")
    return outputs.get("output", outputs) if isinstance(outputs, Mapping) else outputs


def _exchange(run: Mapping[str, Any]) -> Exchange:
    extra = run.get("extra")
    asked = extra.get("invocation_params") if isinstance(extra, Mapping) else None
    inputs, outputs = run.get("inputs"), run.get("outputs")
    tools: list[Any] = next(
        (
            p["tools"]
            for p in (asked, inputs)
            if isinstance(p, Mapping) and isinstance(p.get("tools"), list) and p["tools"]
        ),
        [],
    )
    metadata = extra.get("metadata") if isinstance(extra, Mapping) else None
    model = metadata.get("ls_model_name") if isinstance(metadata, Mapping) else None
    said_by = outputs.get("model") if isinstance(outputs, Mapping) else None
    return Exchange(
        id=str(run["id"]),
        parent=str(run.get("parent_run_id")),
        start=str(run.get("start_time")),
        read=messages_in(inputs, "user"),
        said=messages_in(outputs, "assistant"),
        is_call=run.get("run_type") == "llm",
        tools=list(tools),
        model=said_by if isinstance(said_by, str) else model,
    )
