"""Stage 1: every record becomes a row, a trace or a failure."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError, EmptyFunnelError
from hintdistill.core.storage import content_key
from hintdistill.core.types import Split, Trace
from hintdistill.pipeline.context import RunContext, trace_key
from hintdistill.reporting.inspection import HELD_ELSEWHERE, empty_files_error
from hintdistill.traces.files import not_read
from hintdistill.traces.groups import group_traces
from hintdistill.traces.options import Failure
from hintdistill.traces.reading import Deduplicator, read_traces

LoadedTrace = tuple[str, Trace, Split]
"""Row key, trace, split."""


def run(ctx: RunContext) -> None:
    """Read all files.

    Raises:
        InputError: a path does not exist.
        ConfigError: the folder holds traces, and none of them is read now; nothing is written then.
        EmptyFunnelError: no usable trace.
    """
    store = ctx.rundir.store("traces")
    have = store.by_key()
    rows: dict[str, dict[str, Any]] = {}
    by_file: dict[str, list[dict[str, Any]]] = {}
    limit, usable = ctx.config.traces.limit, 0
    keep = Deduplicator()
    with ctx.console.progress("read", None) as advance:
        for outcome in read_traces(ctx.config.traces.path, ctx.read_options(), keep):
            advance(1)
            row = _row(outcome)
            usable += "trace" in row
            rows[row["key"]] = row
            if outcome.source is not None:
                by_file.setdefault(outcome.source.file, []).append(row)
            if limit is not None and usable == limit:
                break
    held = {key for key, row in have.items() if "trace" in row}
    if held and usable and held.isdisjoint(rows):
        raise ConfigError(
            f"{ctx.rundir.path} is a run of other traces: none of its {len(held)} is among those of {', '.join(ctx.config.traces.path)}",
            hint="run.dir= puts this run elsewhere",
        )
    store.extend([row for key, row in rows.items() if key not in have])
    ctx.rundir.set_index("read", list(rows))
    read = [keep.formats.get(name) or "unknown" for name, some in by_file.items() for row in some if "trace" in row]
    ctx.rundir.note(formats=dict(sorted(Counter(read).items())))
    failures = [r["failure"] for r in rows.values() if "failure" in r]
    ctx.console.note(f"read: {usable} traces, {len(failures)} records that are none")
    for failure in failures[:5]:
        ctx.console.warn(f"{failure['source']}: {failure['message']}")
    if len(failures) > 5:
        ctx.console.warn(f"{len(failures) - 5} more records failed; all are in {store.path}")
    if (line := not_read(keep.foreign)) is not None:
        ctx.console.warn(line)
    blind = sum(_calls_without_schemas(r["trace"]) for r in rows.values() if "trace" in r)
    if blind:
        ctx.console.warn(
            f"{blind} traces call tools but carry no tool schemas, so no call can be checked; traces.tools names a file"
        )
    if not usable:
        raise EmptyFunnelError(
            f"no usable trace in {', '.join(ctx.config.traces.path)}: "
            + "; ".join(f"{f['source']}: {f['message']}" for f in failures[:3]),
            hint="a trace is an object with `messages`, one of which is the student's; see docs/traces.md",
        )
    _check_files(ctx, by_file)


def _check_files(ctx: RunContext, by_file: dict[str, list[dict[str, Any]]]) -> None:
    """A file without a step is an error unless told otherwise: nine of ten files read is no success.

    Raises:
        InputError: such a file, where traces.allow_empty_files is not set.
    """
    empty = []
    tools = ctx.config.traces.tools
    for name, rows in by_file.items():
        if tools is not None and Path(name).resolve() == Path(tools).resolve():
            continue  # the schemas may lie beside the traces
        lost = [r["failure"] for r in rows if "failure" in r and r["failure"]["reason"] not in HELD_ELSEWHERE]
        if lost and not any("trace" in r for r in rows):
            empty.append(f"{lost[0]['source']}: {lost[0]['message']}")
    if empty and not ctx.config.traces.allow_empty_files:
        raise empty_files_error(empty)
    if empty:
        ctx.console.warn(f"{len(empty)} files yielded no step of the student; the first: {empty[0]}")


def _calls_without_schemas(trace: dict[str, Any]) -> bool:
    return not trace.get("tools") and any(m.get("tool_calls") for m in trace["messages"])


def _row(outcome: Trace | Failure) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        failure = {"source": str(outcome.source), "reason": outcome.reason, "message": outcome.message}
        return {"key": content_key("failure", failure), "failure": failure}
    return {"key": trace_key(outcome), "trace": outcome.model_dump(mode="json", exclude_defaults=True)}


def load(ctx: RunContext) -> list[LoadedTrace]:
    """The current traces, in reading order."""
    rows = [row for row in ctx.rundir.current("read", "traces") if "trace" in row]
    traces = [Trace.model_validate(row["trace"]) for row in rows]
    groups = group_traces(traces)
    return [(row["key"], t, ctx.split_of(g)) for row, t, g in zip(rows, traces, groups, strict=True)]
