"""The entries of single findings in the report document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hintdistill.core.scores import Target
from hintdistill.core.types import Injection


def _placebos(t: Target, passes: Sequence[bool]) -> list[dict[str, Any]]:
    decision = t.decision
    return [
        {
            "kind": p.kind,
            "text": p.text,
            "passes": passed,
            "effect_nats": float(p.hint_effect[decision.position]) if decision else None,
            "odds_nats": p.odds,
        }
        for p, passed in zip(t.placebos, passes, strict=True)
    ]


def finding_entry(
    t: Target,
    injection: Injection | None,
    contexts: tuple[str, str],
    after: np.ndarray | None,
    passes: Sequence[bool],
    trained: bool,
) -> dict[str, Any]:
    """One hint with its step, token by token.

    Args:
        contexts: the end of the context's text above the hint, and what stands between hint and step.
        after: float32 [T], log-probabilities after training; None where nothing was trained.
        passes: of each placebo, whether the gate would accept it.
    """
    above, below = contexts
    return {
        "key": t.key,
        "trace": t.trace_id,
        "step": t.step,
        "split": t.split,
        "error_class": t.error_class,
        "quote": injection.finding.quote if injection else None,
        "critic": injection.finding.critic if injection else None,
        "evidence": injection.finding.evidence if injection else None,
        "hint": t.hint,
        "level": t.level,
        "candidate": t.candidate,
        "choice": t.choice,
        "placement": "/".join(filter(None, (injection.placement, injection.role))) if injection else None,
        "notes": list(injection.notes) if injection else [],
        "fidelity": t.fidelity,
        "accepted": t.accepted,
        "reasons": list(t.reasons),
        "guards": list(t.guards),
        "trained": trained,
        "decision": _decision(t, after),
        "specificity_nats": t.specificity,
        "legal_mass_gain": t.legal_mass_gain,
        "placebos": _placebos(t, passes),
        "context_above": above,
        "context_below": below,
        "tokens": _tokens(t, after),
    }


def _decision(t: Target, after: np.ndarray | None) -> dict[str, Any] | None:
    """The decision token of a finding, with its probabilities; None where the hint changes nothing."""
    decision = t.decision
    if decision is None:
        return None
    return {
        "position": decision.position,
        "token": decision.token,
        "instead": decision.instead,
        "before": float(np.exp(decision.logprob_plain)),
        "hinted": float(np.exp(decision.logprob_hinted)),
        "after": None if after is None else float(np.exp(after[decision.position])),
        "effect_nats": decision.effect,
        "odds_nats": decision.odds,
        "flips": decision.flips,
    }


def _tokens(t: Target, after: np.ndarray | None) -> list[dict[str, Any]]:
    """The step token by token, with probabilities before, under the hint and after training."""
    return [
        {
            "text": text,
            "quoted": t.span[0] <= i < t.span[1],
            "before": float(np.exp(t.plain_sampled[i])),
            "hinted": float(np.exp(t.teacher_sampled[i])),
            "after": None if after is None else float(np.exp(after[i])),
            "instead": t.instead[i],
        }
        for i, text in enumerate(t.tokens)
    ]


def unscored_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """A finding that was never scored, with the reason."""
    finding = row["finding"]
    failure = row.get("failure", {})
    return {
        "trace": row["trace_id"],
        "step": finding["step"],
        "error_class": finding["error_class"],
        "quote": finding.get("quote"),
        "reason": row.get("skipped") or failure.get("reason"),
        "message": failure.get("message"),
    }
