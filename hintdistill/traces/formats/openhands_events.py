"""OpenHands sessions: files that contain only events; see `openhands.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from hintdistill.core.types import Trace
from hintdistill.traces.formats import openhands
from hintdistill.traces.options import ReadOptions, Record

NAME = "openhands_events"
SCOPE: Literal["file"] = "file"


def fits(value: Any) -> bool:
    """Return whether the value is one event."""
    return openhands.is_event(value)


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Return the one trace of the file. Raises TraceError."""
    return openhands.traces(record, options)
