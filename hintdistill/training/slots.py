"""A slot: one step of a row that carries loss, made from a stored target or from a sampled step of a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from hintdistill.core.errors import InputError
from hintdistill.core.scores import Target, TargetHead
from hintdistill.core.types import UNKNOWN_ACTION
from hintdistill.objectives.scorebank import RECORDED
from hintdistill.objectives.spans import span_mask
from hintdistill.recipes import Term
from hintdistill.training.reward import PASSED, OutcomeData, OutcomeRow, TraceOutcome

ACTION = "action"
"""The loss span that excludes a step's reasoning."""
REWARD = "reward"
"""Name of an outcome slot's weights."""


@dataclass(frozen=True)
class Slot:
    """Hold one step of a row that carries loss: T scored tokens, K kept entries."""

    key: str
    kind: str
    """`hint`, `anchor`, or another kind that a term names as its `rows`; `outcome` for a step that only the reward
    trains."""
    start: int
    """Position of the step's first token in the row."""
    length: int
    """T"""
    insert_at: int
    """Position in the row at which the teacher's sequence has the hint's tokens."""
    block: torch.Tensor
    """int64 [H]: the hint's tokens; empty for an anchor."""
    sampled: torch.Tensor
    """int64 [T]: the step's tokens."""
    weights: dict[str, torch.Tensor]
    """float32 [T] by term: its loss span, normalised over all slots; for an outcome slot under `REWARD`, the same
    number for all tokens."""
    span: tuple[int, int]
    """Half-open range of the quoted tokens."""
    support_ids: torch.Tensor
    """int64 [T, K], padded with -1; K is 0 for an outcome slot, which has no target."""
    target: torch.Tensor
    """float32 [T, K+1]: stored teacher log-probabilities and tail."""
    plain: torch.Tensor
    """float32 [T, K+1]: stored plain log-probabilities and tail."""
    decision: int
    """Index of the decision token; -1 if there is none."""
    error_class: str | None = None
    legal_ids: torch.Tensor | None = None
    """int64 [G]: the ids that the tool schemas allow at the decision token; None if the schemas do not constrain it."""
    outcome: TraceOutcome | None = None
    """The outcome of its trace; None if the recipe uses no reward."""
    behaviour: torch.Tensor | None = None
    """float32 [T]: the log-probability of each token when it was sampled, temperature 1; None if it was not recorded."""
    views: Mapping[str, tuple[int, torch.Tensor]] = field(default_factory=dict)
    """Further contexts by name: the position of their tokens in the row, and the tokens, int64."""

    @property
    def token_weights(self) -> torch.Tensor:
        """Return float32 [T]: the weights of the first term on this slot."""
        return next(iter(self.weights.values()))

    @property
    def positions(self) -> range:
        """Return the positions of the row whose next token is scored."""
        return range(self.start - 1, self.start + self.length - 1)

    @property
    def columns(self) -> torch.Tensor:
        """Return int64 [T]: the index of each sampled token in the support, which always contains it."""
        return (self.support_ids == self.sampled[:, None]).int().argmax(-1)

    @property
    def recorded(self) -> torch.Tensor:
        """Return float32 [T]: the log-probabilities by which an importance ratio divides; those of the initial weights
        if none are recorded."""
        if self.behaviour is not None or not self.support_ids.shape[1]:
            return torch.zeros(self.length) if self.behaviour is None else self.behaviour
        return self.plain[torch.arange(self.length), self.columns]

    def facts(self) -> dict[str, torch.Tensor]:
        """Return the facts that the recipe's weights may use about a slot, [T] each."""
        known = {name: torch.from_numpy(fact) for name, fact in quote_facts(self.span, self.length).items()}
        known |= {"error_span": known["in_quote"], RECORDED: self.recorded}
        if self.outcome is None:
            return known
        ended = {
            "reward": self.outcome.reward,
            "advantage": self.outcome.advantage,
            "group_acc": self.outcome.group_accuracy,
        }
        # a quote in a rollout that succeeded is what was done right there
        well = float(self.outcome.reward > PASSED)
        known |= {"key_span": known["in_quote"] * well, "error_span": known["in_quote"] * (1 - well)}
        sets = {n: torch.tensor(v).expand(self.length, len(v)) for n, v in self.outcome.perplexities.items()}
        return known | {name: torch.full((self.length,), value) for name, value in ended.items()} | sets


def quote_facts(span: tuple[int, int], length: int) -> dict[str, np.ndarray]:
    """Return the facts about a step's quote, float32 [T] each: `in_quote`, and `since_error`, which counts from the
    quote's start."""
    index = np.arange(length, dtype=np.float32)
    return {"in_quote": ((index >= span[0]) & (index < span[1])).astype(np.float32), "since_error": index - span[0]}


def known_action(target: TargetHead) -> int:
    """Return the index of the first step token that is not reasoning. Raises InputError, naming the step, if it is
    unknown."""
    start = target.action_start
    if start is not None and start != UNKNOWN_ACTION:
        return start
    where = f"trace {target.trace_id}, step {target.step} ({target.kind})"
    if start is None:
        raise InputError(
            f"{where}: the loss span `{ACTION}` needs the end of the step's reasoning, which this "
            "target of an earlier release does not record",
            hint="start a new run folder, or train with span: step",
        )
    raise InputError(
        f"{where}: the loss span `{ACTION}` needs the end of the step's reasoning, which cannot be found in its tokens",
        hint="leave this target out, or train with span: step",
    )


def loss_weights(target: Target, term: Term) -> np.ndarray:
    """Return the weight of each step token before normalisation, float32 [T]: the term's loss span, see
    `objectives.spans`.

    Raises InputError; see `known_action`.
    """
    facts = quote_facts(target.span, len(target.step_ids))
    if term.span == ACTION:
        facts["in_action"] = np.arange(len(target.step_ids)) >= known_action(target)
    facts["certain"] = np.exp(target.plain_sampled) >= term.min_probability
    weights: np.ndarray = span_mask(term, facts, np.ones(len(target.step_ids), np.float32))
    return weights


def slot_of_outcome(row: OutcomeRow, outcome: OutcomeData, share: float) -> Slot:
    """Return the slot of a sampled step; `share` is the number of all slots divided by that of the reward's slots."""
    start = len(row.ids) - row.length
    none = torch.zeros(row.length, 1)
    return Slot(
        key=row.key,
        kind="outcome",
        start=start,
        length=row.length,
        insert_at=start,
        block=row.ids[:0],
        sampled=row.ids[start:],
        weights={REWARD: torch.full((row.length,), row.weight * share)},
        span=(0, row.length),
        support_ids=row.ids.new_zeros(row.length, 0),
        target=none,
        plain=none,
        decision=-1,
        outcome=outcome.outcomes[row.trace_id],
        behaviour=row.behaviour,
    )


def slot_of_target(target: Target, weights: dict[str, np.ndarray], outcome: TraceOutcome | None = None) -> Slot:
    """Return the slot of a target, with its static weights by term (float32 [T] each) and the outcome of its trace."""
    legal = target.legal_ids
    at = None if target.measurement is None else target.measurement.position
    return Slot(
        key=target.key,
        kind=target.kind,
        start=len(target.context_ids),
        length=len(target.step_ids),
        # without a hint nothing is inserted, wherever that would be
        insert_at=target.insert_at if len(target.block_ids) else len(target.context_ids),
        block=torch.from_numpy(target.block_ids.astype(np.int64)),
        sampled=torch.from_numpy(target.step_ids.astype(np.int64)),
        weights={n: torch.from_numpy(w) for n, w in weights.items()},
        span=target.span,
        support_ids=torch.from_numpy(target.support_ids),
        target=_with_tail(target.teacher_logprobs, target.teacher_tail),
        plain=_with_tail(target.plain_logprobs, target.plain_tail),
        decision=-1 if at is None else at,
        error_class=target.error_class,
        legal_ids=torch.from_numpy(legal) if len(legal) else None,
        outcome=outcome,
        behaviour=torch.from_numpy(target.sampler_logprobs) if len(target.sampler_logprobs) else None,
        views={n: (at, torch.from_numpy(ids.astype(np.int64))) for n, (at, ids) in target.views.items()},
    )


def _with_tail(kept: np.ndarray, tail: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([kept, tail[:, None]], 1).astype(np.float32))
