"""Read the traces (stage 1): every record becomes a row, a trace or a failure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError, EmptyFunnelError, InputError
from hintdistill.core.rows import Rows
from hintdistill.core.storage import REPAIR, content_key
from hintdistill.core.types import Split, Trace
from hintdistill.pipeline.context import RunContext, trace_key
from hintdistill.pipeline.store import RunDir
from hintdistill.reporting.inspection import HELD_ELSEWHERE, empty_files_error
from hintdistill.traces.files import not_read
from hintdistill.traces.groups import Grouper
from hintdistill.traces.options import Failure
from hintdistill.traces.reading import Deduplicator, read_traces

SHOWN = 5
"""Number of failures that are printed individually."""
AT_ONCE = 64
"""Number of rows written together."""

LoadedTrace = tuple[str, Trace, Split]
"""Row key, trace and split."""


def run(ctx: RunContext) -> None:
    """Read all files and store their records as rows.

    Raises:
        InputError: a path does not exist.
        ConfigError: the folder contains traces, but none of them is being read now; in this case nothing is written.
        EmptyFunnelError: there is no usable trace.
    """
    seen = _Seen()
    for row, outcome, file in _written(ctx, seen):
        seen.take(row, outcome, file)
    # before the index of rows: whoever finds that one finds the groups of the same reading
    groups = [f"{k} {g}" for k, g in zip(seen.traces, seen.grouper.groups(), strict=True)]
    set_groups(ctx.rundir, list(seen.keys), groups)
    ctx.rundir.set_index("read", list(seen.keys))
    ctx.rundir.note(formats=dict(sorted(seen.formats.items())))
    _say(ctx, seen)
    if not seen.usable:
        raise EmptyFunnelError(
            f"no usable trace in {', '.join(ctx.config.traces.path)}: "
            + "; ".join(f"{f['source']}: {f['message']}" for f in seen.failures[:3]),
            hint="a trace is an object with `messages`, at least one of them from the student; see docs/traces.md",
        )
    _check_files(ctx, seen.files)


@dataclass
class _File:
    """Hold the result of reading one file."""

    traces: int = 0
    lost: dict[str, Any] | None = None
    """The first record that is neither a trace nor contained in another one."""


@dataclass
class _Seen:
    """Hold the results of reading, without the traces."""

    keys: dict[str, None] = field(default_factory=dict)
    """Keys of all rows in order, without repetitions."""
    traces: dict[str, None] = field(default_factory=dict)
    """Row keys of traces."""
    grouper: Grouper = field(default_factory=Grouper)
    usable: int = 0
    failed: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    """The first failures."""
    blind: int = 0
    """Number of traces that call tools but contain no schemas."""
    files: dict[str, _File] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    keep: Deduplicator = field(default_factory=Deduplicator)

    def take(self, row: dict[str, Any], outcome: Trace | Failure, file: str | None) -> None:
        """Add the next row."""
        new = row["key"] not in self.keys
        self.keys[row["key"]] = None
        of = self.files.setdefault(file, _File()) if file is not None else None
        if isinstance(outcome, Trace):
            self.usable += 1
            if new:
                self.traces[row["key"]] = None
                self.grouper.add(outcome)
                self.blind += _calls_without_schemas(row["trace"])
            if of is not None:
                of.traces += 1
                self.formats[self.keep.formats.get(str(file)) or "unknown"] += 1
            return
        if new:
            self.failed += 1
            if len(self.failures) < SHOWN:
                self.failures.append(row["failure"])
        if of is not None and of.lost is None and outcome.reason not in HELD_ELSEWHERE:
            of.lost = row["failure"]


def _written(ctx: RunContext, seen: _Seen) -> Iterator[tuple[dict[str, Any], Trace | Failure, str | None]]:
    """Yield the row of every record after storing it, with its format and its file.

    Raises:
        ConfigError: see `run`.
    """
    store, limit = ctx.rundir.store("traces"), ctx.config.traces.limit
    have = ctx.rundir.rows("traces")
    held = any("trace" in row for row in store.rows())
    # of a folder that holds traces, nothing is written before one of them is met again
    waits, owed = held, list[dict[str, Any]]()
    with ctx.console.progress("read", None) as advance:
        for outcome in read_traces(ctx.config.traces.path, ctx.read_options(), seen.keep):
            advance(1)
            row = _row(outcome)
            if row["key"] in have:
                waits = waits and "trace" not in row
            elif row["key"] not in seen.keys:
                owed.append(row)
            if len(owed) >= AT_ONCE and not waits:
                store.extend(owed)
                owed.clear()
            yield row, outcome, outcome.source.file if outcome.source is not None else None
            if limit is not None and seen.usable == limit:
                break
    if waits and seen.usable:
        held_traces = sum("trace" in row for row in store.rows())
        raise ConfigError(
            f"{ctx.rundir.path} contains a run on other traces: none of its {held_traces} traces is in "
            f"{', '.join(ctx.config.traces.path)}",
            hint="choose another folder with run.dir=",
        )
    store.extend(owed)


def _say(ctx: RunContext, seen: _Seen) -> None:
    ctx.console.note(f"read: {seen.usable} traces, {seen.failed} failed records")
    for failure in seen.failures:
        ctx.console.warn(f"{failure['source']}: {failure['message']}")
    if seen.failed > SHOWN:
        more = f"{seen.failed - SHOWN} more records failed; all are in {ctx.rundir.store('traces').path}"
        ctx.console.warn(more)
    if (line := not_read(seen.keep.foreign)) is not None:
        ctx.console.warn(line)
    if seen.blind:
        ctx.console.warn(
            f"{seen.blind} traces call tools but contain no tool schemas, so their calls cannot be "
            "checked; set traces.tools to a file of schemas"
        )


def _check_files(ctx: RunContext, files: Mapping[str, _File]) -> None:
    """Raise an error if a file yields no step, unless the settings allow it: reading nine of ten files is not a
    success.

    Raises:
        InputError: there is such a file, and traces.allow_empty_files is not set.
    """
    empty = []
    tools = ctx.config.traces.tools
    for name, file in files.items():
        if file.traces or file.lost is None:
            continue
        if tools is not None and Path(name).resolve() == Path(tools).resolve():
            continue  # the schemas may lie beside the traces
        empty.append(f"{file.lost['source']}: {file.lost['message']}")
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


def keys(ctx: RunContext) -> Iterator[tuple[str, Split]]:
    """Yield the row key and the split of each current trace, in reading order, without reading the traces."""
    for line in groups(ctx):
        key, _, group = line.partition(" ")
        yield key, ctx.split_of(group)


def count(ctx: RunContext) -> int:
    """Return how many current traces there are."""
    return len(groups(ctx))


def each(ctx: RunContext) -> Iterator[LoadedTrace]:
    """Yield the current traces, in reading order, one at a time.

    Raises:
        InputError: a row is missing from the folder or damaged.
    """
    rows = ctx.rundir.rows("traces")
    current, again = itertools.tee(keys(ctx))
    for (key, split), (_, row) in zip(current, rows.each(k for k, _ in again), strict=True):
        yield key, _trace(rows, key, row), split


def open_traces(ctx: RunContext) -> Callable[[str], Trace]:
    """Return a function that reads a current trace by its row key. It raises InputError if the row is missing from the
    folder."""
    rows = ctx.rundir.rows("traces")
    return lambda key: _trace(rows, key, rows.get(key))


def _trace(rows: Rows, key: str, row: Mapping[str, Any] | None) -> Trace:
    if row is None:
        raise InputError(f"{rows.path} lacks the row {key}, which the read stage made", hint=REPAIR)
    return Trace.model_validate(row["trace"])


def load(ctx: RunContext) -> list[LoadedTrace]:
    """Return the current traces, in reading order, all in memory; see `each`."""
    return list(each(ctx))


def set_groups(rundir: RunDir, keys: Sequence[str], groups: Sequence[str]) -> None:
    """Store the groups of the traces among some rows; see `groups`."""
    rundir.set_index("groups", [content_key("read", list(keys)), *groups])


def groups(ctx: RunContext) -> list[str]:
    """Yield the row key and group of each current trace, in reading order, as `KEY GROUP`.

    In a folder of an older release without stored groups, they are computed from the traces.
    """
    current = ctx.rundir.index("read") or []
    if (found := ctx.rundir.index("groups")) and found[0] == content_key("read", current):
        return found[1:]
    grouper, named = Grouper(), list[str]()
    for row in ctx.rundir.each("read", "traces"):
        if "trace" in row:
            grouper.add(Trace.model_validate(row["trace"]))
            named.append(row["key"])
    return [f"{k} {g}" for k, g in zip(named, grouper.groups(), strict=True)]
