"""How traces are read, and what reading yields besides traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, ToolEffect

MAX_RECORD_BYTES = 256 * 2**20
"""Default bound on one record, and on one session that is read whole."""


@dataclass(frozen=True)
class ReadOptions:
    """Options of every reader."""

    format: str = "auto"
    """A name of the registry, or `auto`: recognised record by record."""
    student_role: str = "assistant"
    """Role or speaker's name of the student in the source; every other assistant is somebody else, read as a user."""
    token_ids: str = "use"
    """`ignore` drops recorded token ids, so that every step is rendered through the chat template."""
    tools: tuple[dict[str, Any], ...] = ()
    """Used for traces that carry no tool schemas."""
    tool_effects: Mapping[str, ToolEffect] = field(default_factory=dict)
    """By tool's name; of every trace that has the tool, whoever gave its schema."""
    max_record_bytes: int = MAX_RECORD_BYTES
    """A larger record is refused, not read: memory is bounded by this."""


@dataclass(frozen=True)
class Record:
    """One decoded JSON value and where it stood. For formats of file scope: the list of all values of a file."""

    value: Any
    source: Source


@dataclass(frozen=True)
class Failure:
    """A record that is not a usable trace, and why."""

    source: Source
    reason: str
    """Short name for the funnel counts."""
    message: str

    @classmethod
    def of(cls, source: Source, error: TraceError) -> Failure:
        """Return the failure that an error becomes at the boundary of its record."""
        return cls(source, getattr(error, "code", "not_a_trace"), error.message)
