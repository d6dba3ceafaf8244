"""Decide whether a warmed-up student is accepted, within bounds that were written down before the first try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """The bounds that a student must meet on validation tasks."""

    errors: tuple[float, float] = (0.30, 0.70)
    """Share of the tasks that need a call which it gets wrong."""
    irrelevance: tuple[float, float] = (0.60, 0.90)
    """Share of the tasks without a right call in which it calls nothing."""
    kept: float = 0.90
    """Share of its right answers that stay right under a placebo."""
    class_errors: int = 20
    """Errors of one class, at least, on which the hint repairs more than the placebo does."""
    p: float = 0.05
    """One-sided sign test over the errors of that class that one of the two repairs and the other does not."""


ACCEPT = (
    "errors on tasks that need a call .30 to .70; no call on tasks that need none .60 to .90; a placebo keeps at least .90 of the right "
    "answers; and on a class of at least 20 errors the true hint repairs more than the placebo does (one-sided sign test, p < .05)"
)


def sign_test(wins: int, losses: int) -> float:
    """Probability of at least so many wins where wins and losses are equally likely; ties are left out."""
    n = wins + losses
    return sum(comb(n, k) for k in range(wins, n + 1)) / 2**n


def verdict(rows: Sequence[Mapping[str, Any]], bounds: Bounds) -> dict[str, Any]:
    """Figures, and the reasons against the student; none of them is a reason by itself to change the bounds.

    Args:
        rows: of each task `call` (whether one is due), `error` (its class, or None), `placebo_right`, and for errors `hint_right`. Without
            the last two, what the student does under messages is not judged (`kept` and `classes` are None).
    """
    calls, others = [r for r in rows if r["call"]], [r for r in rows if not r["call"]]
    figures: dict[str, Any] = {
        "errors": round(sum(r["error"] is not None for r in calls) / len(calls), 4),
        "calls": len(calls),
        "by_class": dict(Counter(r["error"] for r in rows if r["error"]).most_common()),
        "irrelevance": round(sum(r["error"] is None for r in others) / len(others), 4),
        "no_calls": len(others),
        "right": sum(r["error"] is None for r in rows),
        "kept": None,
        "classes": None,
    }
    limits = {"errors": bounds.errors, "irrelevance": bounds.irrelevance}
    reasons = []
    if all("placebo_right" in r for r in rows):
        kept = sum(r["placebo_right"] for r in rows if r["error"] is None)
        figures |= {"kept": round(kept / max(1, figures["right"]), 4), "classes": _classes(rows)}
        limits["kept"] = (bounds.kept, 1.0)
        if not any(_reached(c, bounds) for c in figures["classes"]):
            reasons.append("the hint beats the placebo on no class of enough errors")
    for name, (low, high) in limits.items():
        if not low <= figures[name] <= high:
            reasons.append(f"{name} {figures[name]:.2f}")
    return {"accepted": not reasons and figures["kept"] is not None, "reasons": reasons, **figures}


def _reached(found: Mapping[str, Any], bounds: Bounds) -> bool:
    """Whether the hint repairs more errors of a class than the placebo does, and by more than chance."""
    enough = found["errors"] >= bounds.class_errors
    return bool(enough and found["hint"] > found["placebo"] and found["p"] < bounds.p)


def _classes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    wrong = [r for r in rows if r["error"] is not None]
    out = []
    for name, n in Counter(r["error"] for r in wrong).most_common():
        own = [r for r in wrong if r["error"] == name]
        wins = sum(r["hint_right"] and not r["placebo_right"] for r in own)
        losses = sum(r["placebo_right"] and not r["hint_right"] for r in own)
        repaired = {"hint": sum(r["hint_right"] for r in own), "placebo": sum(r["placebo_right"] for r in own)}
        out.append({"class": name, "errors": n, **repaired, "p": round(sign_test(wins, losses), 5)})
    return out
