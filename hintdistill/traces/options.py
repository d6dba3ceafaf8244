"""How traces are read; what `config.TracesSection` says, without the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReadOptions:
    """Options of every reader."""

    format: str = "auto"
    student_role: str = "assistant"
    token_ids: str = "use"
    """`ignore` drops recorded token ids, so that every step is rendered through the chat template."""
    tools: tuple[dict[str, Any], ...] = ()
    """Used for traces that carry no tool schemas."""
