"""Names of the arms, tables and intervals as text, for the pages and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "hint": "targeted hint",
    "placebo": "placebo hint",
    "wrong_hint": "wrong hint",
    "random_step": "random other step",
    "full_trace": "hint in system prompt, whole trace",
    "sft_success": "SFT on own successes",
    "sft_corrected": "SFT on hinted corrections",
    "sft_gold": "SFT on right answers at the errors",
    "gold_steps": "more warm-up on right answers",
    "twins": "targeted hint, with twins",
    "stale": "hint, traces one round stale",
    "foreign": "hint, another policy's traces",
    "replay": "hint, fresh steps at another policy's prefixes",
    "llm_critic": "hint, LLM critic",
    "hint_outcome": "hint beside an outcome reward",
}


def interval(x: Mapping[str, float] | None, digits: int = 3, sign: bool = False) -> str:
    """`.612 (.570–.655)`."""
    if x is None or x["mean"] is None:
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"
    return (
        f"{x['mean']:{form}} ({x['low']:{form}} to {x['high']:{form}})"
        if x["low"] is not None
        else f"{x['mean']:{form}}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def main_arms(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The arms that are not critic noise."""
    return [(a, e) for a, e in data["arms"].items() if ":" not in a]
