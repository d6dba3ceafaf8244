"""The entries of single findings in the report document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hintdistill.core.scores import Target
from hintdistill.core.types import Injection

TOP = 3
"""Number of continuations listed at a decision token."""
Decode = Callable[[Sequence[int]], str]
"""Converts token ids to text, including special tokens."""


@dataclass(frozen=True)
class After:
    """Hold the corrected student's log-probabilities of a step in its own context, without a hint, in nats."""

    sampled: np.ndarray
    """float32 [T]: log-probability of each token of the step."""
    position: int | None = None
    """The decision token to which `top` refers; None if there is no `top`."""
    top: Sequence[tuple[int, float]] = ()
    """Ids and log-probabilities of its most probable continuations there, in descending order."""


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
    after: After | None,
    passes: Sequence[bool],
    trained: bool,
    decode: Decode | None = None,
) -> dict[str, Any]:
    """Return the entry of one hint with its step, token by token.

    Args:
        contexts: the end of the context's text above the hint, and the text between hint and step.
        after: None if nothing was trained.
        passes: for each placebo, whether the gate would accept it.
        decode: converts the hint's tokens and the most likely continuations to text; without it the entry has neither.
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
        "hint_block": decode([int(i) for i in t.block_ids]) if decode else None,
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
        "decision": _decision(t, after, decode),
        "specificity_nats": t.specificity,
        "legal_mass_gain": t.legal_mass_gain,
        "placebos": _placebos(t, passes),
        "context_above": above,
        "context_below": below,
        "tokens": _tokens(t, None if after is None else after.sampled),
    }


def _decision(t: Target, after: After | None, decode: Decode | None) -> dict[str, Any] | None:
    """Return the decision token of a finding, with its probabilities; None if the hint changes nothing."""
    decision = t.decision
    if decision is None:
        return None
    return {
        "position": decision.position,
        "token": decision.token,
        "instead": decision.instead,
        "before": float(np.exp(decision.logprob_plain)),
        "hinted": float(np.exp(decision.logprob_hinted)),
        "after": None if after is None else float(np.exp(after.sampled[decision.position])),
        "effect_nats": decision.effect,
        "odds_nats": decision.odds,
        "flips": decision.flips,
        **({"top": _top(t, decision.position, after, decode)} if decode else {}),
    }


def _top(t: Target, position: int, after: After | None, decode: Decode) -> dict[str, Any]:
    """Return the most likely continuations at the decision token before training, under the hint and after training;
    None if unknown."""
    known = {
        "before": _best(t.support_ids[position], t.plain_logprobs[position]),
        "hinted": _best(t.support_ids[position], t.teacher_logprobs[position]),
        "after": list(after.top) if after is not None and after.top and after.position == position else None,
    }
    return {
        when: None
        if some is None
        else [{"text": decode([i]), "p": float(np.exp(logprob))} for i, logprob in some[:TOP]]
        for when, some in known.items()
    }


def _best(ids: np.ndarray, logprobs: np.ndarray) -> list[tuple[int, float]]:
    """Return the ids with the largest log-probabilities in descending order, without padding."""
    found = [(int(ids[i]), float(logprobs[i])) for i in np.argsort(-logprobs, kind="stable") if ids[i] >= 0]
    return [(i, p) for i, p in found if np.isfinite(p)]


def _tokens(t: Target, after: np.ndarray | None) -> list[dict[str, Any]]:
    """Return the step token by token, with probabilities before, under the hint and after training."""
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
    """Return the entry of a finding that was never scored, with the reason."""
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


def failed_entry(injection: Injection, failure: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a finding whose scoring failed, with the reason."""
    return {
        "trace": injection.trace_id,
        "step": injection.finding.step,
        "error_class": injection.finding.error_class,
        "quote": injection.finding.quote,
        "reason": failure["reason"],
        "message": failure.get("message"),
    }
