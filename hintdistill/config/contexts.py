"""The part of the configuration that says what contexts are made of, beside traces and critics."""

from __future__ import annotations

from pydantic import Field

from hintdistill.config.base import Section
from hintdistill.core.paths import ConfigPath


class ContextsSection(Section):
    """Texts by task, and how much of a task's rollouts is shown; docs/contexts.md has the context makers."""

    solutions: ConfigPath | None = None
    """Reference solutions: JSON lines `{"task": …, "text": …}`, or traces that name their task. A trace's own field `solution` comes
    first."""
    demonstrations: ConfigPath | None = None
    """Demonstrations, in the same forms; a trace's own field `demonstration` comes first."""
    file: ConfigPath | None = None
    """Any other text by task, in the same forms, for the maker `file`: what a harness or a debate wrote elsewhere."""
    shown: int = Field(default=1, ge=1)
    """Rollouts of each outcome that a context of peers shows at most."""
    max_tokens: int = Field(default=4096, ge=1)
    """A document (solution, demonstration, rollouts) of more tokens is refused (`hint_too_long`)."""
