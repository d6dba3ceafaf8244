"""The native format: one Trace per line, with exactly the fields of that type and a schema version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from hintdistill.core.errors import TraceError
from hintdistill.core.types import TRACE_SCHEMA, Source, Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.values import check_plain

NAME = "native"
SCOPE: Literal["record"] = "record"
MARK = "hintdistill_trace"


def fits(value: Any) -> bool:
    """Return whether a record is marked as this format."""
    return isinstance(value, dict) and MARK in value


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a record. Raises TraceError."""
    yield parse(record.value, record.source, options)


def parse(value: Any, source: Source, options: ReadOptions) -> Trace:
    """Convert one record into a Trace. Raises TraceError for an unsupported version or an invalid record."""
    if not fits(value):
        raise TraceError(f"not a native trace: the key {MARK!r} is missing")
    if value[MARK] != TRACE_SCHEMA:
        raise TraceError(f"native trace of version {value[MARK]!r}, but this release reads version {TRACE_SCHEMA}")
    try:
        trace = Trace.model_validate({k: v for k, v in value.items() if k != MARK})
    except ValidationError as error:
        first = error.errors()[0]
        raise TraceError(f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None
    for place in (trace.extra, list(trace.tools), *(m.extra for m in trace.messages)):
        check_plain(place, "extra")
    update: dict[str, Any] = {"source": source}
    if not trace.tools and options.tools:
        update["tools"] = options.tools
    if options.token_ids == "ignore":
        blank = {"prompt_token_ids": None, "token_ids": None, "logprobs": None, "logprobs_of": None}
        update["messages"] = tuple(m.model_copy(update=blank) for m in trace.messages)
    return trace.model_copy(update=update)


def dump(trace: Trace) -> str:
    """Return one line of the native format. Fields with their default value are left out."""
    data = trace.model_dump(mode="json", exclude_defaults=True, exclude={"source"})
    return json.dumps({MARK: TRACE_SCHEMA, **data}, ensure_ascii=False, separators=(",", ":"))


def write(path: str | Path, traces: Iterable[Trace]) -> int:
    """Write traces as JSON lines and return their number."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for trace in traces:
            file.write(dump(trace) + "\n")
            count += 1
    return count
