"""Measure the effect of a hint on a step, and decide whether the gate accepts it.

The gate uses two values at the decision token: the fall of the sampled token, and the log-odds of the hinted view's
token against it (`odds`). If a student is sure of its error, the hint shows as a fall. If it gives its error .3 and the
right token .01, the hint shows as a rise, which the odds contain. Both are compared with the placebos' values in the
same place, because any change of context lowers a sampled token: the step was sampled without it.

The gate rejects hints without an effect. It cannot distinguish a wrong hint from a right one: a confident hint for the
wrong tool has the same effect, and `benchmarks/gate.py` reports how often such hints pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hintdistill.config import GateSection
from hintdistill.core.scores import Measurement, Scores, Target, TargetHead
from hintdistill.core.types import HELD, Injection

T = TypeVar("T", bound=TargetHead)

NEGLIGIBLE = math.log(0.05)
"""Log-probability under the hint below which a quoted token does not count as raised, and an alternative is not
considered."""
HARMFUL = frozenset({"primed"})
"""Reasons for which a hint counts as harmful; `rank_hints` puts such hints last."""


@dataclass(frozen=True)
class View:
    """Hold one view's scores of a step, and the plain scores that it is compared with."""

    scores: Scores
    plain: Scores

    @property
    def effect(self) -> np.ndarray:
        """Return the change of each sampled token's log-probability, float32 [T], nats."""
        return self.scores.sampled - self.plain.sampled

    @property
    def top1(self) -> np.ndarray:
        """The view's most likely id at each position, int64 [T]."""
        return first_choice(self.scores)

    def odds(self, position: int, token: int) -> float:
        """Return the rise, over the plain view, of the log-odds of `token` against the sampled token, nats.

        If a view did not keep the token, its largest possible value is used, because it is below every kept value.
        """
        hinted = logprob_at_most(self.scores, position, token) - float(self.scores.sampled[position])
        plain = logprob_at_most(self.plain, position, token) - float(self.plain.sampled[position])
        return hinted - plain

    def alternative(self, position: int, sampled: int) -> int | None:
        """Return the most likely id other than the sampled one; None if this view kept no other."""
        ids, logprobs = self.scores.topk_ids[position], self.scores.topk_logprobs[position]
        keep = (ids >= 0) & (ids != sampled)
        return int(ids[keep][logprobs[keep].argmax()]) if keep.any() else None


def logprob_at_most(scores: Scores, position: int, token: int) -> float:
    """Return the log-probability of a token, nats; the largest possible value if the view did not keep the token."""
    ids, logprobs = scores.topk_ids[position], scores.topk_logprobs[position]
    hit = np.flatnonzero(ids == token)
    if len(hit):
        return float(logprobs[hit[0]])
    return float(min(logprobs[ids >= 0].min(), max(scores.tail_logprob[position], -60.0)))


def first_choice(scores: Scores) -> np.ndarray:
    """Return the id with the largest log-probability at each position, int64 [T]."""
    if scores.top1 is not None:
        return scores.top1
    return scores.topk_ids[np.arange(len(scores.topk_ids)), scores.topk_logprobs.argmax(1)]


def gathered(scores: Scores) -> np.ndarray:
    """Return the log-probabilities of the requested ids, float32 [T, G]; empty if the engine cannot gather."""
    return scores.gathered if scores.gathered is not None else np.zeros((len(scores.sampled), 0), np.float32)


def measure(injection: Injection, view: View, placebos: Sequence[View]) -> Measurement:
    """Measure one hinted view against the plain one and against placebos."""
    start, end = injection.span
    position, instead, flips = _decision(injection, view)
    effect, has_quote = view.effect, injection.quote_found != "whole_step"
    # once the view has left the sampled tokens, it does not come to those that follow
    stop = position + 1 if flips and position is not None else end
    quoted = effect[start:stop][view.scores.sampled[start:stop] > NEGLIGIBLE]
    specificity = _contrast(effect, start, end)
    specificity -= float(np.mean([_contrast(p.effect, start, end) for p in placebos] or [0.0]))
    raised = float(max(0.0, quoted.max())) if has_quote and len(quoted) else 0.0
    if position is None or instead is None:
        odds = dict.fromkeys(("odds", "rise", "placebo_odds", "placebo_odds_median"), 0.0)
        return Measurement(None, None, 0.0, 0.0, raised, specificity, None, 0.0, flips=False, **odds)
    own, others = view.odds(position, instead), [p.odds(position, instead) for p in placebos] or [0.0]
    return Measurement(
        position=position,
        instead_id=instead,
        effect=float(effect[position]),
        plain_logprob=float(view.plain.sampled[position]),
        max_raise=raised,
        specificity=specificity,
        legal_mass_gain=_legal_gain(injection, position, gathered(view.plain), gathered(view.scores)),
        best_placebo=min((float(p.effect[position]) for p in placebos), default=0.0),
        odds=own,
        rise=own + float(effect[position]),
        placebo_odds=max(others),
        placebo_odds_median=float(np.median(others)),
        flips=flips,
    )


def _decision(injection: Injection, view: View) -> tuple[int | None, int | None, bool]:
    """Return the decision token, the view's alternative to it, and whether the view's first choice differs from the
    sampled token.

    If no first choice differs, the decision token is the token of the span at which the odds of the best alternative
    rose most, among alternatives that are not negligible under the hint.
    """
    start, end = injection.span
    step_ids, top1 = np.array(injection.step_ids), view.top1
    leaves = np.flatnonzero(top1[start:end] != step_ids[start:end])
    if len(leaves):
        position = int(leaves[0]) + start
        return position, int(top1[position]), True
    best: tuple[float, int, int] | None = None
    for t in range(start, end):
        if float(np.log1p(-min(np.exp(float(view.scores.sampled[t])), 1 - 1e-9))) < NEGLIGIBLE:
            continue
        token = view.alternative(t, int(step_ids[t]))
        if token is None or logprob_at_most(view.scores, t, token) < NEGLIGIBLE:
            continue
        odds = view.odds(t, token)
        if best is None or odds > best[0]:
            best = odds, t, token
    return (None, None, False) if best is None else (best[1], best[2], False)


def judge(m: Measurement, guards: Sequence[str], gate: GateSection) -> tuple[str, ...]:
    """Return the reasons for rejecting a hint, in the order of the checks; empty if it is accepted."""
    reasons = [name for name, check in _GUARDS if check is None or check in gate.checks if _has(guards, name)]
    primed = m.max_raise > gate.max_raise_nats
    if m.position is None or math.exp(m.plain_logprob) < gate.min_student_probability:
        reasons.append("no_effect" if m.position is None else "not_this_students_error")
        return (*reasons, "primed") if primed else tuple(reasons)
    if m.effect > -gate.min_drop_nats or (m.odds is not None and m.odds < gate.min_odds_nats):
        reasons.append("no_effect")
    if m.odds is None or m.placebo_odds_median is None:
        # a target of schema 2: the odds are not known
        if m.effect >= m.best_placebo:
            reasons.append("not_below_placebo")
    elif m.odds - m.placebo_odds_median < gate.min_odds_margin_nats:
        reasons.append("not_above_placebo")
    if "specific" in gate.checks and m.specificity >= 0:
        reasons.append("not_specific")
    if "legal_gain" in gate.checks and m.legal_mass_gain is not None and _too_little(m.legal_mass_gain, gate):
        reasons.append("mass_to_illegal")
    if primed:
        reasons.append("primed")
    return tuple(reasons)


def _too_little(gain: float, gate: GateSection) -> bool:
    """Return whether too little probability moved to legal continuations; True if there are none."""
    return gain <= 0 or gain < gate.min_legal_gain


_GUARDS = (
    ("leak", "leak"),
    ("dialect", "dialect"),
    ("illegal", "words"),
    ("vacuous", "words"),
    ("level", None),
    ("outranked", None),
    ("other_level", None),
)
"""Reasons that come from guards, with the check to which each belongs; those without a check always count."""


def _has(guards: Sequence[str], name: str) -> bool:
    return any(g == name or g.startswith(f"{name}:") for g in guards)


def decide(target: T, gate: GateSection) -> T:
    """Return the target with the gate's decision. With the gate disabled everything is accepted, and the reasons are
    kept. The gate does not judge held targets; for twins, see `twins`.
    """
    if target.measurement is None or target.kind in HELD:
        return target
    chosen = (target.choice,) if target.choice in ("outranked", "other_level") else ()
    reasons = judge(target.measurement, (*target.guards, *chosen), gate)
    # of several hints for one finding, one is trained on, whether they are judged or not
    return replace(target, accepted=not reasons or (gate.enabled is False and not chosen), reasons=reasons)


def harmful(target: TargetHead) -> bool:
    """Return whether a hint made the error more likely: a quoted token rose, or the odds of its alternative fell."""
    m = target.measurement
    return bool(HARMFUL & set(target.reasons)) or (m is not None and m.odds is not None and m.odds < 0)


def passing_placebos(targets: Iterable[Target], gate: GateSection) -> dict[str, tuple[int, int]]:
    """Return, by kind of placebo, the number that the gate would accept in the hint's place, and the total number."""
    out: dict[str, tuple[int, int]] = {}
    for target in targets:
        for placebo, passes in zip(target.placebos, placebos_pass(target, gate), strict=True):
            passed, n = out.get(placebo.kind, (0, 0))
            out[placebo.kind] = passed + passes, n + 1
    return out


def placebos_pass(target: Target, gate: GateSection) -> list[bool]:
    """Return for each placebo of a target whether the gate would accept it in place of the hint."""
    return [not judge(p.measurement, (), gate) for p in target.placebos]


def legal_ids(injection: Injection) -> np.ndarray | None:
    """Return every id that a schema allows anywhere in the step, int64 [G] in ascending order; None if no schema
    restricts the step."""
    ids = sorted({i for allowed in injection.legal.values() for i in allowed})
    return np.array(ids, np.int64) if ids else None


def _contrast(effect: np.ndarray, start: int, end: int) -> float:
    rest = np.concatenate([effect[:start], effect[end:]])
    return float(effect[start:end].mean() - (rest.mean() if len(rest) else 0.0))


def _legal_gain(injection: Injection, position: int, plain: np.ndarray, hinted: np.ndarray) -> float | None:
    allowed = injection.legal.get(position)
    if not allowed or not hinted.shape[1]:
        # no schema speaks of this position, or the engine cannot be asked about chosen ids
        return None
    ids = legal_ids(injection)
    assert ids is not None
    columns = np.searchsorted(ids, np.array(allowed, np.int64))
    return float(np.exp(hinted[position, columns]).sum() - np.exp(plain[position, columns]).sum())
