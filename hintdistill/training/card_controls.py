"""Figures of the model card about the effects of hints and placebos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def hint_levels(rescore: Mapping[str, Any]) -> str:
    """Return the number of accepted and scored hints by level, as text."""
    taken = rescore.get("accepted_levels", {})
    return (
        ", ".join(f"level {n}: {taken.get(n, 0)} of {count}" for n, count in rescore.get("levels", {}).items())
        or "not recorded"
    )


def placebo_share(findings: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the mean effect of the placebos divided by that of the hints, at the decision token of accepted findings;
    None if there are none."""
    decided = [f for f in findings if f["accepted"] and f["decision"] is not None]
    hints = [f["decision"]["effect_nats"] for f in decided]
    placebos = [p["effect_nats"] for f in decided for p in f["placebos"] if p["effect_nats"] is not None]
    if not hints or not placebos or not sum(hints):
        return None
    return (sum(placebos) / len(placebos)) / (sum(hints) / len(hints))
