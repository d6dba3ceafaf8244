"""Evaluate schedules: any scalar of a recipe may change with the optimiser step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def scheduled(value: Any, step: int) -> float:
    """Return the scalar at an optimiser step (from 0): the value is a number, or {from, to, start, steps, kind} as a
    mapping or a recipe's part.

    `kind` is `linear` (the default) or `cosine`. Before `start` it is `from`, after `start + steps` it is `to`. Published:
    TRACE .5 → 0 over steps 10 to 40; RLSD .5 → 0 and StepOPSD .2 → 0 in 50; Veto's β .8 → 0.
    """
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, Mapping):
        value = value.model_dump(by_alias=True)
    first, last, steps = float(value["from"]), float(value["to"]), int(value["steps"])
    share = min(1.0, max(0.0, (step - int(value.get("start", 0))) / steps))
    if value.get("kind", "linear") == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return first + (last - first) * share


def moved(value: Any) -> bool:
    """Return whether a value is a schedule."""
    return isinstance(value, Mapping) or hasattr(value, "model_dump")


def at_step(values: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return parameters at an optimiser step: schedules become numbers, everything else stays unchanged."""
    return {n: scheduled(v, step) if moved(v) else v for n, v in values.items()}


def bound(value: Any, step: int) -> float | None:
    """Return a clip at an optimiser step; None stays None."""
    return None if value is None else scheduled(value, step)
