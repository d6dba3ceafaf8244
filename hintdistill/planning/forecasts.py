"""The estimate for one stage, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StageForecast:
    """Describe one stage."""

    stage: str
    tokens: int
    """Tokens that the student's model reads; for an LLM critic, its prompt tokens."""
    peak_bytes: int | None = None
    """Largest resident memory of the process, or device memory; None if another process does the work."""
    parts: Mapping[str, int] | None = None
    """The parts of the peak."""
    seconds: float | None = None
    """None if nothing was measured."""
    fits: bool = True
    note: str = ""
