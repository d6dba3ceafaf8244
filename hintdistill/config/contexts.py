"""The section about the sources of contexts other than traces and critics."""

from __future__ import annotations

from pydantic import Field

from hintdistill.config.base import Section
from hintdistill.core.paths import ConfigPath


class ContextsSection(Section):
    """Set texts by task, and how many rollouts of a task are shown; docs/contexts.md describes the context makers."""

    solutions: ConfigPath | None = None
    """Reference solutions: JSON lines `{"task": …, "text": …}`, or traces that name their task. The field `solution` of
    a trace takes precedence."""
    demonstrations: ConfigPath | None = None
    """Demonstrations, in the same forms; the field `demonstration` of a trace takes precedence."""
    file: ConfigPath | None = None
    """Any other text by task, in the same forms, for the maker `file`, e.g. text that a harness or a debate wrote."""
    shown: int = Field(default=1, ge=1)
    """Maximum number of rollouts of each outcome that a context of peers shows."""
    max_tokens: int = Field(default=4096, ge=1)
    """Documents (solutions, demonstrations, rollouts) with more tokens are refused (`hint_too_long`)."""
