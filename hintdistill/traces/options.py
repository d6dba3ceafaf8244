"""Options of reading traces, and the results of reading other than traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, ToolEffect

MAX_RECORD_BYTES = 256 * 2**20
"""Default size limit of one record, and of one session that is read whole."""


@dataclass(frozen=True)
class ReadOptions:
    """Options of every reader."""

    format: str = "auto"
    """A format's name in the registry, or `auto` to detect the format of each record."""
    student_role: str = "assistant"
    """Role or speaker name of the student in the source; all other assistants are read as users."""
    token_ids: str = "use"
    """`ignore` drops recorded token ids, so that every step is rendered through the chat template."""
    tools: tuple[dict[str, Any], ...] = ()
    """Used for traces that carry no tool schemas."""
    tool_effects: Mapping[str, ToolEffect] = field(default_factory=dict)
    """Effects by tool name; they apply to every trace that has the tool, wherever its schema came from."""
    max_record_bytes: int = MAX_RECORD_BYTES
    """Size limit of a record in bytes; a larger record is refused, which bounds memory."""


@dataclass(frozen=True)
class Record:
    """Hold one decoded JSON value and its position. For formats of file scope, it is the list of all values of a
    file."""

    value: Any
    source: Source


@dataclass(frozen=True)
class Failure:
    """Describe a record that is not a usable trace, and the reason."""

    source: Source
    reason: str
    """Short reason for the funnel counts."""
    message: str

    @classmethod
    def of(cls, source: Source, error: TraceError) -> Failure:
        """Convert an error that occurred while reading a record into a failure."""
        return cls(source, getattr(error, "code", "not_a_trace"), error.message)
