"""The effects of hints at the decision token over some findings, and how much of them training achieved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hintdistill.core.scores import TargetHead
from hintdistill.injection.levels import LEVELS


@dataclass(frozen=True)
class ScoredHint:
    """Hold the facts about a hint that the tables of a report need. Numbers refer to its decision token, and are None
    if there is none."""

    head: TargetHead
    plain: float | None
    """Log-probability without the hint, in nats."""
    hinted: float | None
    """Log-probability under the hint, in nats."""
    after: float | None
    """Log-probability after training, in nats; also None if nothing was trained."""
    placebos: Sequence[tuple[str, bool]]
    """Kind of each placebo, and whether the gate would accept it in the hint's place."""
    revised: bool = False
    """Whether the hint is the critic's second one, after the gate rejected the first."""

    @property
    def placebos_pass(self) -> list[bool]:
        """Return whether the gate would accept each placebo in the hint's place."""
        return [passes for _, passes in self.placebos]


def all_effects(scored: Sequence[ScoredHint]) -> dict[str, Any]:
    """Return `effects` of all findings: by verdict of the gate, class, level and split."""
    return {
        "all": effects(scored),
        "accepted": effects([s for s in scored if s.head.accepted]),
        "rejected": effects([s for s in scored if not s.head.accepted]),
        "by_class": {
            c: effects([s for s in scored if s.head.error_class == c])
            for c in sorted({s.head.error_class or "" for s in scored})
        },
        "by_level": {
            str(n): effects([s for s in scored if s.head.level == n])
            for n in LEVELS
            if any(s.head.level == n for s in scored)
        },
        "by_split": {split: effects([s for s in scored if s.head.split == split]) for split in ("train", "holdout")},
    }


def effects(scored: Sequence[ScoredHint]) -> dict[str, Any]:
    """Return the effects of hints at the decision token over some findings, with those of training if known."""
    pairs = [(s.plain, s.hinted) for s in scored if s.plain is not None and s.hinted is not None]
    drops = [hinted - plain for plain, hinted in pairs]
    targets = [s.head for s in scored]
    moved = [
        (s.plain - s.after, s.plain - s.hinted)
        for s in scored
        if s.plain is not None and s.hinted is not None and s.after is not None
    ]
    return {
        "n": len(targets),
        "with_decision": len(pairs),
        "accepted": sum(t.accepted for t in targets),
        "decision_effect_mean_nats": mean(drops),
        "decision_effect_median_nats": float(np.median(drops)) if drops else None,
        "odds_mean_nats": mean([t.measurement.odds for t in targets if t.measurement is not None]),
        "odds_over_placebos_mean_nats": mean([_over_placebos(t) for t in targets]),
        "specificity_mean_nats": mean([t.specificity for t in targets if t.specificity is not None]),
        "legal_mass_gain_mean": mean([t.legal_mass_gain for t in targets if t.legal_mass_gain is not None]),
        "error_probability": {
            "before": mean([float(np.exp(plain)) for plain, _ in pairs]),
            "hinted": mean([float(np.exp(hinted)) for _, hinted in pairs]),
            "after": mean([None if s.after is None else float(np.exp(np.float32(s.after))) for s in scored]),
        },
        "moved": {
            "n": len(moved),
            "training_nats": mean([trained for trained, _ in moved]),
            "hint_nats": mean([hinted for _, hinted in moved]),
        },
    }


def _over_placebos(t: TargetHead) -> float | None:
    """Return the odds of a hint beyond the median of its placebos, in nats."""
    m = t.measurement
    return None if m is None or m.odds is None or m.placebo_odds_median is None else m.odds - m.placebo_odds_median


def moved_line(document: Mapping[str, Any]) -> str | None:
    """Return a line on the effect of training on accepted findings; None if nothing was trained or measured."""
    moved = document["effects"]["accepted"].get("moved") or {"n": 0}
    if not moved["n"]:
        return None
    return (
        f"training moved the decision token by {moved['training_nats']:.2f} of the hint's {moved['hint_nats']:.2f} nats "
        f"(mean of {moved['n']} accepted findings)"
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
