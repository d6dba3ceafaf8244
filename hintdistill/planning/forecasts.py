"""What a stage would take, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StageForecast:
    """One stage."""

    stage: str
    tokens: int
    """That the student's model reads; of an LLM critic, its prompt tokens."""
    peak_bytes: int | None = None
    """Resident memory of the process at its worst moment, or device memory; None if it is not this process's."""
    parts: Mapping[str, int] | None = None
    """What the peak is made of."""
    seconds: float | None = None
    """None if nothing was measured."""
    fits: bool = True
    note: str = ""
