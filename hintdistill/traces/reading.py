"""Read any format into Trace (1. read): list the files, detect the format, call its reader.

Every record becomes a `Trace` or a `Failure` with file, position and reason; no record is skipped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hintdistill.core.effects import declared_effect
from hintdistill.core.errors import InputError, TraceError
from hintdistill.core.types import Source, ToolEffect, Trace
from hintdistill.traces.archives import ZIP_ERRORS
from hintdistill.traces.files import TraceFile, all_files
from hintdistill.traces.guards import guarded
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.records import read_values
from hintdistill.traces.refusals import not_a_trace
from hintdistill.traces.registry import TraceFormat, format_named, recognise
from hintdistill.traces.repeats import Repeats, context_of, marks_of
from hintdistill.traces.schemas import parse_tools
from hintdistill.traces.turns import trace_id

GENERIC = "openai_chat"
"""The format whose error describes what an unknown record lacks."""

__all__ = ["Deduplicator", "Failure", "ReadOptions", "load_tool_effects", "load_tools", "read_file", "read_traces"]


def load_tools(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Load tool schemas from a JSON file with a list of OpenAI function schemas, bare or wrapped; the key `effect` is
    removed.

    Raises:
        InputError: the file is missing or contains no tool schemas, or an `effect` is neither `reads` nor `changes`.
    """
    _check_effects(path, _declared_tools(path))
    # the student's prompt is not where an effect belongs
    return tuple(
        {k: _without_effect(v) if k == "function" else v for k, v in _without_effect(tool).items()}
        for tool in _declared_tools(path)
    )


def load_tool_effects(path: str | Path) -> dict[str, ToolEffect]:
    """Return the effects that a file of schemas declares for its tools (`effect: reads` or `changes`), by name.

    Raises:
        InputError: as for `load_tools`.
    """
    tools = _declared_tools(path)
    _check_effects(path, tools)
    found = {t["function"]["name"]: declared_effect(t) for t in tools}
    return {name: effect for name, effect in found.items() if effect is not None}


def _declared_tools(path: str | Path) -> tuple[dict[str, Any], ...]:
    import json

    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"no tool schemas at {path}", hint="traces.tools must name a JSON file with a list of schemas"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    try:
        tools = parse_tools(data)
    except TraceError as error:
        raise InputError(f"{path}: {error.message}") from error
    if not tools:
        raise InputError(f"{path} contains no tool schema")
    return tools


def _check_effects(path: str | Path, tools: Sequence[dict[str, Any]]) -> None:
    for tool in tools:
        for given in (tool, tool["function"]):
            if "effect" in given and given["effect"] not in ("reads", "changes"):
                name = tool["function"]["name"]
                raise InputError(f"{path}: the effect of {name} must be `reads` or `changes`, not {given['effect']!r}")


def _without_effect(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in schema.items() if k != "effect"}


def read_traces(
    paths: Sequence[str | Path], options: ReadOptions = ReadOptions(), keep: Deduplicator | None = None
) -> Iterator[Trace | Failure]:
    """Read every record of every file, in a stable order. A turn that appears in several records counts as the
    student's only once.

    `keep` records facts about the files, e.g. the format of each.

    Raises:
        InputError: a path does not exist, or a folder contains no trace file.
        ConfigError: `options.format` is not a known format.
    """
    keep = keep or Deduplicator()
    for file in all_files(paths):
        if file.foreign:
            keep.foreign.append(file)
        else:
            yield from read_file(file, options, keep)


class Deduplicator:
    """Ensure across all files of one reading that each trace id and each turn is used once."""

    def __init__(self) -> None:
        self.formats: dict[str, str] = {}
        """The format of each file's records; if a file mixes formats, the last one."""
        self.watch: Callable[[Record, str, list[Trace | Failure]], None] | None = None
        """A callback that receives each record, the name of its format, and all outcomes made from it."""
        self.foreign: list[TraceFile] = []
        """Files of unknown kinds, which were not read."""
        self._seen: dict[str, tuple[str, int]] = {}
        self._repeats = Repeats()

    def check(self, outcome: Trace | Failure, calls: bool = False) -> Trace | Failure:
        """Return the outcome, or a failure if it, or all of its turns, were already read.

        Args:
            outcome: the trace or failure that a reader made from a record.
            calls: whether the format logs single calls, whose earlier turns also appear in other records.
        """
        if isinstance(outcome, Failure) or not outcome.step_indices or _only_a_greeting(outcome):
            return outcome if isinstance(outcome, Failure) else _without_step(outcome)
        assert outcome.source is not None
        marks = marks_of(outcome.messages)
        context = context_of(outcome)
        said = hash((context, marks[-1], outcome.reward))
        if outcome.id in self._seen:
            where, before = self._seen[outcome.id]
            if before == said:
                text = f"trace id {outcome.id!r} with the same messages was already read from {where}"
                return Failure(outcome.source, "duplicate_id", text)
            # ids that a source did not keep unique cost no trace
            outcome = outcome.model_copy(update={"id": self._renamed(outcome, where)})
        checked = self._repeats.check(outcome, marks, context, calls)
        if isinstance(checked, Trace):
            self._seen[outcome.id] = str(outcome.source), said
        return checked

    def _renamed(self, trace: Trace, where: str) -> str:
        assert trace.source is not None
        name, n = f"{trace.id}@{trace_id({}, trace.source)}", 1
        while (made := name if n == 1 else f"{name}.{n}") in self._seen:
            n += 1
        return made


def read_file(
    file: TraceFile, options: ReadOptions = ReadOptions(), keep: Deduplicator | None = None
) -> Iterator[Trace | Failure]:
    """Read every record of one file; a file that cannot be opened or unpacked is one failure.

    Args:
        file: from `files.all_files`.
        options: how to read.
        keep: the state of the reading so far, which keeps ids and turns unique.

    Raises:
        ConfigError: `options.format` is not a known format.
    """
    forced = None if options.format == "auto" else format_named(options.format)
    yield from _outcomes(read_records(file, options), forced, options, keep or Deduplicator())


def read_records(file: TraceFile, options: ReadOptions = ReadOptions()) -> Iterator[Record | Failure]:
    """Yield the JSON values of one file, before any format is detected; a file that cannot be opened or unpacked is one
    failure."""
    if file.refused is not None:
        yield file.refused
        return
    try:
        if (rows := file.rows()) is not None:
            yield from _rows(rows, file.name)
            return
        with file.open() as stream:
            yield from read_values(stream, file.name, options.max_record_bytes)
    except (OSError, *ZIP_ERRORS) as error:
        yield Failure(Source(file=file.name, position="file"), "unreadable", f"cannot be read to its end: {error}")


def _rows(rows: Iterator[tuple[str, Any]], name: str) -> Iterator[Record | Failure]:
    """Yield the rows of a table as records; a table without rows is a failure."""
    empty = True
    for place, value in rows:
        empty = False
        yield Record(value, Source(file=name, position=place))
    if empty:
        yield Failure(Source(file=name, position="file"), "empty_file", "the table contains no row")


def _outcomes(
    values: Iterator[Record | Failure], forced: TraceFormat | None, options: ReadOptions, keep: Deduplicator
) -> Iterator[Trace | Failure]:
    """Convert records to traces: one by one, or together if the format is spread over the file's lines."""
    for value in values:
        if isinstance(value, Failure):
            yield value
            continue
        found = forced or recognise(value.value)
        if found is not None and found.SCOPE == "file":
            yield from _together(found, value, values, options, keep)
            return
        yield from _parse(found, value, options, keep)


def _together(
    found: TraceFormat, first: Record, values: Iterator[Record | Failure], options: ReadOptions, keep: Deduplicator
) -> Iterator[Trace | Failure]:
    gathered: list[Any] = []
    for value in chain((first,), values):
        if isinstance(value, Failure):
            yield value
        else:
            gathered.append(value.value)
    yield from _parse(found, Record(gathered, Source(file=first.source.file, position="record 1")), options, keep)


def _parse(
    found: TraceFormat | None, record: Record, options: ReadOptions, keep: Deduplicator
) -> Iterable[Trace | Failure]:
    try:
        if found is not None and options.format != "auto":
            _check_forced(found, record)
        if found is not None:
            keep.formats[record.source.file] = found.NAME
        elif (reason := not_a_trace(record.value)) is not None:
            raise TraceError(reason)
        empty = True
        seen: list[Trace | Failure] | None = [] if keep.watch is not None else None
        # the generic reader says of an unknown record what it lacks
        for outcome in (found or format_named(GENERIC)).traces(record, options):
            empty = False
            checked = keep.check(_understood(outcome, options), getattr(found, "CALLS", False))
            if seen is not None:
                seen.append(checked)
            yield checked
        if keep.watch is not None and seen:
            keep.watch(record, GENERIC if found is None else found.NAME, seen)
        if empty:
            yield Failure(record.source, "empty_record", "contains no conversation")
    except TraceError as error:
        yield _refused(keep, record, found, Failure.of(record.source, error))
    except RecursionError:
        yield _refused(keep, record, found, Failure(record.source, "too_deep", "the record is nested too deeply"))
    except Exception as error:
        # a reader, ours or an extension's, met what it did not expect: this record is lost, loudly, and the run goes on
        name = GENERIC if found is None else found.NAME
        text = f"the {name} reader failed: {type(error).__name__}: {error}"
        yield _refused(keep, record, found, Failure(record.source, READER_ERROR, text))


def _refused(keep: Deduplicator, record: Record, found: TraceFormat | None, failure: Failure) -> Failure:
    """Return the failure of a whole record, and pass it to the callback if there is one."""
    if keep.watch is not None:
        keep.watch(record, GENERIC if found is None else found.NAME, [failure])
    return failure


def _understood(outcome: Trace | Failure, options: ReadOptions) -> Trace | Failure:
    """Return a trace that obeys the rules of `guards` and has the tool effects declared in the file of tool schemas."""
    if isinstance(outcome, Failure) or not outcome.step_indices:
        return outcome
    # who plays the user opens the conversation: that is a step of its own
    outcome = guarded(outcome, answers=options.student_role == "assistant")
    if isinstance(outcome, Failure) or not options.tool_effects:
        return outcome
    known = {name: effect for name, effect in options.tool_effects.items() if name in outcome.tool_schemas}
    return outcome.model_copy(update={"tool_effects": {**known, **outcome.tool_effects}}) if known else outcome


READER_ERROR = "reader_error"
"""Reason of a failure that is a bug of a reader; please report it."""


def _check_forced(found: TraceFormat, record: Record) -> None:
    """Refuse a record that does not fit the forced format, because readers rely on that check. The two formats with the
    most precise errors report the problem themselves."""
    first = record.value[0] if found.SCOPE == "file" else record.value
    if found.NAME not in ("native", GENERIC) and not found.fits(first):
        raise TraceError(f"not in the format {found.NAME}, which traces.format requires")


def _only_a_greeting(trace: Trace) -> bool:
    """Return whether the student said nothing after the first user message."""
    return trace.messages[-1].role != "assistant" and len(trace.given_steps) == len(trace.step_indices)


def _without_step(trace: Trace) -> Failure:
    assert trace.source is not None
    roles = ", ".join(sorted({m.role for m in trace.messages})) or "none"
    return Failure(
        trace.source,
        "no_assistant_step",
        f"no message of the student (roles present: {roles}); traces.student_role sets the student's role",
    )
