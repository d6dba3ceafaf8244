"""The formats: one module each, one protocol, found by name or by looking at a record.

Others are added from outside by an entry point in the group `hintdistill.trace_formats` whose object fulfils
`TraceFormat`; they are asked before the ones that ship.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, Protocol, runtime_checkable

from hintdistill.core.errors import ConfigError
from hintdistill.core.types import Trace
from hintdistill.traces.options import Failure, ReadOptions, Record

ENTRY_POINTS = "hintdistill.trace_formats"


@runtime_checkable
class TraceFormat(Protocol):
    """One way in which agents leave traces. A module is one."""

    NAME: str
    """What `traces.format` calls it."""
    SCOPE: Literal["record", "file"]
    """`file`: the values of a file together are what `traces` gets, because a session is spread over its lines."""

    def fits(self, value: Any) -> bool:
        """Whether a decoded record (for file scope: one value of the file) is in this format. Cheap; never raises."""

    def traces(self, record: Record, options: ReadOptions) -> Iterable[Trace | Failure]:
        """The traces of one record. Raises TraceError where there is none; the text says why."""


SHIPPED = (
    "native",
    "atif",
    "nemo_gym",
    "verifiers_v1",
    "verifiers",
    "rllm",
    "inspect_log",
    "tau2",
    "toolbench",
    "langfuse",
    "langsmith",
    "sessions",
    "adk",
    "openhands",
    "openhands_events",
    "swe_agent",
    "claude_code",
    "codex",
    "eval_protocol",
    "spans",
    "sharegpt",
    "anthropic",
    "vllm",
    "openai_responses",
    "conversation",
    "openai_chat",
)
"""Asked in this order: what says its own name first, what is told by its shape last."""


@cache
def formats() -> tuple[TraceFormat, ...]:
    """Every format, those of entry points first.

    Raises:
        ConfigError: an entry point does not load, or is no TraceFormat.
    """
    found: list[TraceFormat] = []
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        try:
            loaded = point.load()
        except Exception as error:
            raise ConfigError(f"the trace format {point.name} ({point.value}) does not load: {error}") from error
        if not isinstance(loaded, TraceFormat):
            raise ConfigError(f"the trace format {point.name} ({point.value}) lacks NAME, SCOPE, fits or traces")
        found.append(loaded)
    shipped: list[Any] = [importlib.import_module(f"hintdistill.traces.formats.{name}") for name in SHIPPED]
    return (*found, *shipped)


def format_named(name: str) -> TraceFormat:
    """The format of that name. Raises ConfigError with the nearest one."""
    by_name = {f.NAME: f for f in formats()}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1)
    raise ConfigError(
        f"no trace format {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint=f"traces.format is auto or one of {', '.join(sorted(by_name))}",
    )


def recognise(value: Any) -> TraceFormat | None:
    """The first format a record fits, or None."""
    return next((f for f in formats() if f.fits(value)), None)
