"""1. read: any format → Trace. One file per format, and the sniffing that picks it.

Every record met becomes a `Trace` or a `Failure` with file, position and reason; nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.errors import InputError, TraceError
from hintdistill.traces import native, openai_chat
from hintdistill.traces.files import Malformed, read_records, trace_files
from hintdistill.traces.options import ReadOptions
from hintdistill.types import Source, Trace

__all__ = ["Failure", "ReadOptions", "load_tools", "read_traces"]


@dataclass(frozen=True)
class Failure:
    """A record that is not a usable trace, and why."""

    source: Source
    reason: str
    """Short name for the funnel counts."""
    message: str


def load_tools(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Tool schemas from a JSON file: a list of OpenAI function schemas, bare or wrapped.

    Raises:
        InputError: the file is missing or holds no tool schemas.
    """
    import json

    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no tool schemas at {path}", hint="traces.tools names a JSON file with a list") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    try:
        tools = openai_chat.parse_tools(data)
    except TraceError as error:
        raise InputError(f"{path}: {error.message}") from error
    if not tools:
        raise InputError(f"{path} holds no tool schema")
    return tools


def read_traces(paths: Sequence[str | Path], options: ReadOptions = ReadOptions()) -> Iterator[Trace | Failure]:
    """Read every record of every file, in a stable order.

    Raises:
        InputError: a path does not exist, or a folder holds no trace file.
    """
    seen: dict[str, Source] = {}
    for file in trace_files(paths):
        for record in read_records(file):
            outcome = _parse(record, options)
            if isinstance(outcome, Trace):
                if outcome.id in seen:
                    text = f"trace id {outcome.id!r} was already read from {seen[outcome.id]}"
                    outcome = Failure(record.source, "duplicate_id", text)
                else:
                    seen[outcome.id] = record.source
            yield outcome


def _parse(record: Any, options: ReadOptions) -> Trace | Failure:
    if isinstance(record, Malformed):
        return Failure(record.source, record.reason, record.message)
    try:
        reader = (
            native
            if options.format == "native" or (options.format == "auto" and native.fits(record.value))
            else openai_chat
        )
        trace = reader.parse(record.value, record.source, options)
    except TraceError as error:
        return Failure(record.source, getattr(error, "code", "not_a_trace"), error.message)
    except RecursionError:
        return Failure(record.source, "too_deep", "the record is nested too deeply")
    if not trace.step_indices:
        roles = ", ".join(sorted({m.role for m in trace.messages})) or "none"
        return Failure(
            record.source,
            "no_assistant_step",
            f"no message of the student (roles present: {roles}); traces.student_role says which role it is",
        )
    return trace
