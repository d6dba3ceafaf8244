"""Define the boundary types that hold numbers: requests to an engine, its scores, and the targets made from them.

They are frozen dataclasses of numpy arrays. Torch-free. Shape legend: S sequence tokens, T step tokens, K kept
vocabulary entries per position, G gathered ids. All log-probabilities are natural logarithms (nats).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from hintdistill.core.notebook import target_html, target_plot
from hintdistill.core.plain import plain
from hintdistill.core.types import Fidelity, Split, TargetKind

Choice = Literal["only", "best", "outranked", "other_level"]
"""Rank of a hint among several for one finding: the only one, the best of its level, outranked by another of its level,
or the best of a level that is not trained on."""


@dataclass(frozen=True)
class ScoreRequest:
    """Ask for scores of `ids[start:end]`, given everything before. Requests hold token ids only; text never reaches an
    engine."""

    ids: np.ndarray
    """int64 [S]; positions at or after `end` are never read."""
    start: int
    end: int
    group: str | None = None
    """Requests of one group are scored on the union of their ids. A group holds the views of one step, all of the same
    step length."""
    gather_ids: np.ndarray | None = None
    """int64 [G]: ids whose log-probabilities are returned at every scored position."""

    def __post_init__(self) -> None:
        if not 0 < self.start < self.end <= len(self.ids):
            raise ValueError(f"cannot score ids[{self.start}:{self.end}] of {len(self.ids)}: need 0 < start < end <= S")


@dataclass(frozen=True)
class Scores:
    """Hold the scores of one view for each token of a step. Every number is finite, except the padding of `topk_*`."""

    sampled: np.ndarray
    """float32 [T]: log-probability of the actual token."""
    topk_ids: np.ndarray
    """int64 [T, K]: the kept ids, unique within a row; shorter rows are padded with -1."""
    topk_logprobs: np.ndarray
    """float32 [T, K]: their log-probabilities; -inf at id -1."""
    tail_logprob: np.ndarray
    """float32 [T]: log(1 - sum of p over the kept ids and the sampled id, each counted once); -inf if nothing is
    left."""
    gathered: np.ndarray | None = None
    """float32 [T, G]: log-probabilities of `gather_ids`, if the request has them."""
    top1: np.ndarray | None = None
    """int64 [T]: the id this view would continue with."""


@dataclass(frozen=True)
class Measurement:
    """Measure the effect of one hint (or placebo) on a step, for the gate. All numbers are in nats."""

    position: int | None
    """The decision token: index into the step's tokens of the first token of the span at which the hinted view's top-1
    leaves the sampled token. If it never does (`flips` is false), the token at which the odds of the best alternative
    rose most; None if every alternative stays negligible under the hint."""
    instead_id: int | None
    """The token that the hinted view prefers there, or its best alternative."""
    effect: float
    """Hint effect at the decision token; 0.0 without a decision token."""
    plain_logprob: float
    """Log-probability of the decision token without the hint; 0.0 without a decision token."""
    max_raise: float
    """Largest hint effect over the quoted tokens that are not negligible under the hint, up to the token at which the
    hinted view departs; 0.0 without a quote."""
    specificity: float
    """Mean effect on the span minus mean effect on the step's other tokens, minus the same under the placebos."""
    legal_mass_gain: float | None
    """Increase in the probability of the legal continuations at the decision token; None if no schema defines them."""
    best_placebo: float
    """Lowest effect of any placebo at the decision token."""
    odds: float | None = None
    """Log-odds of `instead_id` against the sampled token under the hint, minus the same without it; 0.0 without a
    decision token, None in targets of schema 2, which are judged by their hint effect alone."""
    rise: float | None = None
    """Increase of the log-probability of `instead_id`; odds = rise - effect."""
    placebo_odds: float | None = None
    """Largest odds of the same token at the same place under any placebo."""
    placebo_odds_median: float | None = None
    """Median over the placebos of the odds of that token, so that a single placebo that happens to work does not
    decide."""
    flips: bool = True
    """Whether the hinted view's top-1 leaves the sampled token."""


@dataclass(frozen=True)
class DecisionToken:
    """Describe the decision token in words."""

    position: int
    token: str
    instead: str
    logprob_plain: float
    logprob_hinted: float
    odds: float | None = None
    """Increase of the log-odds of `instead` against `token` under the hint, nats."""
    flips: bool = True
    """Whether the hint changes the first choice here; if not, `instead` is the best alternative."""

    @property
    def effect(self) -> float:
        """Hint effect at the decision token, nats; negative if the hint makes the sampled token less likely."""
        return self.logprob_hinted - self.logprob_plain


@dataclass(frozen=True)
class Placebo:
    """Hold the scores of a placebo: a hint that should have no effect, in the same place."""

    kind: str
    """A name of `injection.placebos.PLACEBO_KINDS`."""
    text: str
    hint_effect: np.ndarray
    """float32 [T], nats."""
    measurement: Measurement
    """The placebo measured like a hint, against the other placebos. It gives the gate's null distribution."""
    odds: float | None = None
    """Odds, under this placebo, of the token that the *hint* prefers, at the hint's decision token; None without a
    decision token."""


@dataclass(frozen=True, kw_only=True)
class TargetHead:
    """Hold a target without its arrays: the light columns of a row, which suffice for selection."""

    key: str
    trace_id: str
    step: int
    kind: TargetKind
    split: Split
    span: tuple[int, int]
    """Quoted tokens, half-open; the whole step without a quote."""
    action_start: int | None = None
    """Index of the first step token after the reasoning; `UNKNOWN_ACTION` if it cannot be determined; None in rows of
    earlier releases, which lack it."""
    insert_at: int = 0
    error_class: str | None = None
    fidelity: Fidelity = "ids"
    level: int | None = None
    """Level of the hint, 0 to 3; see `injection.levels`. None without a hint, and in targets of schema 2."""
    candidate: str = ""
    """Number of this hint among several for its finding; empty for the only one."""
    choice: Choice = "only"
    """The rank of the hint among them."""
    measurement: Measurement | None = None
    guards: tuple[str, ...] = ()
    accepted: bool = False
    reasons: tuple[str, ...] = ()
    """Reasons for the rejection; empty if accepted."""
    recorded_gap: float | None = None
    """Mean |log p recorded - log p now| over the step, nats per token, if the trace recorded log-probabilities."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Keys of the weights and of the renderer (tokenizer and template) with which this row was made."""

    @property
    def specificity(self) -> float | None:
        """Specificity in nats; below zero, the hint affects the error rather than the style."""
        return None if self.measurement is None else self.measurement.specificity

    @property
    def legal_mass_gain(self) -> float | None:
        """Probability that the legal continuations gained at the decision token; None if no schema defines them."""
        return None if self.measurement is None else self.measurement.legal_mass_gain


@dataclass(frozen=True, kw_only=True)
class Target(TargetHead):
    """Hold the distribution to match on one step, the effect of the hint, and the gate's decision.

    `support_ids` is the union of the student's top-k, the teacher's top-k and the sampled id; the tails are the rest of
    the vocabulary. When targets are made, the student equals the plain view, because nothing has been trained yet.
    Targets of the kinds in `HELD` have no hint: their teacher is the plain view itself, and they hold the student in
    place.
    """

    context_ids: np.ndarray
    """int64 [C]: the student's (un-hinted) context."""
    step_ids: np.ndarray
    """int64 [T]"""
    support_ids: np.ndarray
    """int64 [T, K], -1 pads"""
    teacher_logprobs: np.ndarray
    """float32 [T, K], -inf at pads"""
    plain_logprobs: np.ndarray
    """float32 [T, K], -inf at pads"""
    teacher_tail: np.ndarray
    """float32 [T]"""
    plain_tail: np.ndarray
    """float32 [T]"""
    teacher_sampled: np.ndarray
    """float32 [T]"""
    plain_sampled: np.ndarray
    """float32 [T]"""
    block_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [H]: the hint's tokens, spliced into the teacher's context at `insert_at`; empty for an anchor."""
    hint: str | None = None
    placebos: tuple[Placebo, ...] = ()
    tokens: tuple[str, ...] = ()
    """The step's tokens as text."""
    instead: tuple[str, ...] = ()
    """The teacher's preferred token at each position, as text."""
    legal_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [G]: the ids that the tool schemas allow at the decision token; empty if they do not restrict it."""
    sampler_logprobs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """float32 [T]: the step's log-probabilities at the time of sampling, at temperature 1 over the whole vocabulary;
    empty if the trace recorded none, or those of another distribution."""
    views: Mapping[str, tuple[int, np.ndarray]] = field(default_factory=dict)
    """Further contexts by name: the insertion point in the context, and the tokens as int64; see `Injection.views`."""

    def __repr__(self) -> str:
        """Return one line: position, kind and verdict, without arrays and text."""
        verdict = "accepted" if self.accepted else f"rejected: {', '.join(self.reasons) or 'not judged'}"
        decision = self.decision
        said = (
            f", {decision.token!r} {np.exp(decision.logprob_plain):.3f} → {np.exp(decision.logprob_hinted):.3f}"
            if decision is not None
            else ""
        )
        kind = f"{self.error_class} " if self.error_class else ""
        return f"Target({self.trace_id}:{self.step} {kind}{self.kind}, {len(self.step_ids)} tokens{said}, {verdict})"

    _repr_html_, plot = target_html, target_plot

    @property
    def hint_effect(self) -> np.ndarray:
        """E_t = log p(teacher) - log p(plain) of each sampled token, float32 [T], nats. Alone it proves nothing."""
        return self.teacher_sampled - self.plain_sampled

    @property
    def decision(self) -> DecisionToken | None:
        """The token at which the hint changes the course, or comes closest to changing it; None if it changes
        nothing."""
        m = self.measurement
        if m is None or m.position is None:
            return None
        return DecisionToken(
            position=m.position,
            token=self.tokens[m.position],
            instead=self.instead[m.position],
            logprob_plain=float(self.plain_sampled[m.position]),
            logprob_hinted=float(self.teacher_sampled[m.position]),
            odds=m.odds,
            flips=m.flips,
        )

    def to_dict(self, distributions: bool = False) -> dict[str, Any]:
        """Return the target as JSON: every field, `hint_effect`, `decision` and the five largest `shifts`.

        Args:
            distributions: also return the arrays `context_ids`, `support_ids`, `teacher_logprobs` and `plain_logprobs`,
                the largest part of a target; -inf becomes null.
        """
        large = () if distributions else ("context_ids", "support_ids", "teacher_logprobs", "plain_logprobs")
        made = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name not in large}
        decision = None if self.decision is None else {**plain(self.decision), "effect": plain(self.decision.effect)}
        return made | {"hint_effect": plain(self.hint_effect), "decision": decision, "shifts": plain(self.shifts())}

    def shifts(self, n: int = 5) -> list[TokenShift]:
        """Return the `n` tokens whose probability the hint changed most, largest change first."""
        change = np.abs(np.exp(self.teacher_sampled) - np.exp(self.plain_sampled))
        order = np.argsort(-change, kind="stable")[:n]
        return [
            TokenShift(
                position=int(t),
                token=self.tokens[t],
                before=float(np.exp(self.plain_sampled[t])),
                after=float(np.exp(self.teacher_sampled[t])),
                instead=self.instead[t],
            )
            for t in order
        ]


@dataclass(frozen=True)
class TokenShift:
    """Describe one token that the hint shifted: its probability before and under the hint, and the teacher's preferred
    token."""

    position: int
    token: str
    before: float
    after: float
    instead: str
