"""Outcome rewards as training data: what each rollout's reward means for its steps, and the rows of the outcome-reward
term.

The rollouts of one task in one round are a group; a rollout's advantage is its reward minus the group's mean. Every
step of a rollout carries the rollout's advantage, and its tokens carry the log-probabilities with which they were
sampled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from hintdistill.core.errors import EmptyFunnelError, HintdistillError, InputError
from hintdistill.core.scores import Target
from hintdistill.core.types import Trace
from hintdistill.injection.rendering import Renderer
from hintdistill.objectives.couplings import group_advantage

Baseline = Literal["group", "round"]
NOTHING = 1e-9
"""An advantage of at most this size is a rounding error."""
PASSED = 0.5
"""A reward above this counts as a success in a group's accuracy."""


@dataclass(frozen=True)
class TraceOutcome:
    """Hold what the reward says about one rollout: the facts `reward`, `advantage` and `group_acc` of all its steps."""

    reward: float
    advantage: float
    group_accuracy: float
    """Share of the group's rollouts that succeeded."""
    group_size: int
    group: str = ""
    """The rollouts with which it is compared."""
    perplexities: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By fact (`rollout_ppl_S`, `rollout_ppl_T`): this rollout's value, and those of the rollouts in its group with the
    same outcome, padded with NaN."""

    @property
    def pulls(self) -> bool:
        """Return whether it was better or worse than its group."""
        return abs(self.advantage) > NOTHING

    @property
    def passed(self) -> bool:
        """Return whether it counts as a success."""
        return self.reward > PASSED


@dataclass(frozen=True)
class OutcomeRow:
    """Hold one sampled step of a rollout: C context tokens, T sampled ones."""

    key: str
    trace_id: str
    step: int
    ids: torch.Tensor
    """int64 [C + T]: context and step without a hint; shared with a later step whose sequence begins with it."""
    length: int
    """T"""
    behaviour: torch.Tensor
    """float32 [T]: log-probability of each token when it was sampled, temperature 1."""
    advantage: float
    weight: float
    """Factor of Σ_t ℓ_t, chosen so that the mean over all rows is the mean over all tokens, including tokens of
    rollouts without an advantage; it is fixed here, so that eight rows at once and eight accumulated rows give the same
    gradient."""


@dataclass(frozen=True)
class OutcomeData:
    """Hold what a training run knows about the outcomes of its rollouts."""

    outcomes: Mapping[str, TraceOutcome] = field(default_factory=dict)
    """The facts by trace id, for a recipe that uses rewards."""
    rows: Sequence[OutcomeRow] = ()
    """The rows of the outcome-reward term, for a recipe whose coupling is additive."""
    key: str | None = None
    """Content key of all inputs."""


NO_OUTCOME = OutcomeData()


def trace_outcomes(
    traces: Sequence[Trace], baseline: Baseline = "group", normalise: bool = False, *, advantage_needed: bool = True
) -> dict[str, TraceOutcome]:
    """Return the reward and advantage of every rollout, by trace id.

    Args:
        baseline: `group` is the mean over rollouts of the same task, so that a single rollout has no advantage. `round`
            is the mean over all given rollouts, for rounds that play each task once.
        normalise: divide by the standard deviation of the group (GRPO), which gives groups with similar rewards more
            weight.
        advantage_needed: whether it is an error if no rollout is better or worse than its group.

    Raises:
        InputError: a trace has no reward, or two have the same id; the message names it and a remedy.
        EmptyFunnelError: every advantage is zero; the message names a remedy.
    """
    without = [t for t in traces if t.reward is None or not math.isfinite(t.reward)]
    if without:
        raise InputError(
            f"trace {without[0].id} has the reward {without[0].reward}, and {len(without) - 1} others "
            f"of {len(traces)} traces have none either; the outcome term needs a reward on every trace",
            hint="give every trace a number under `reward` (docs/traces.md), remove traces without one, or "
            "train without an outcome: train.recipe.coupling.kind=none, or a recipe that uses no reward",
        )
    if twice := [i for i, n in Counter(t.id for t in traces).items() if n > 1]:
        raise InputError(f"two traces have the id {twice[0]}")
    groups = [t.task_id or t.id if baseline == "group" else "all" for t in traces]
    rewards = torch.tensor([float(t.reward or 0.0) for t in traces])
    advantages = group_advantage(rewards, groups, normalise=normalise).tolist()
    if advantage_needed and all(abs(a) <= NOTHING for a in advantages):
        alone = baseline == "group" and len(set(groups)) == len(groups)
        raise EmptyFunnelError(
            f"no advantage among {len(traces)} rollouts: "
            + ("each task was played only once" if alone else "all rewards are equal"),
            hint="set rollout.sample.per_task to 4 or more, or train.outcome.baseline=round"
            if alone
            else "the outcome term needs tasks that sometimes succeed",
        )
    sizes, passed = Counter(groups), Counter(g for g, r in zip(groups, rewards.tolist(), strict=True) if r > PASSED)
    return {
        t.id: TraceOutcome(r, a, passed[g] / sizes[g], sizes[g], g)
        for t, g, r, a in zip(traces, groups, rewards.tolist(), advantages, strict=True)
    }


@dataclass
class SampledLikelihood:
    """Sum up the log-probabilities with which a rollout's scored tokens were sampled, in nats."""

    student: float = 0.0
    teacher: float = 0.0
    tokens: int = 0

    def add(self, target: Target, carried: np.ndarray) -> None:
        """Add the tokens of a step that have loss (bool [T]), with the sampler's log-probabilities if recorded, or else
        the initial policy's."""
        then = target.sampler_logprobs if len(target.sampler_logprobs) else target.plain_sampled
        self.student += float(then[carried].sum())
        self.teacher += float(target.teacher_sampled[carried].sum())
        self.tokens += int(carried.sum())


def with_perplexities(
    outcomes: Mapping[str, TraceOutcome], likelihoods: Mapping[str, SampledLikelihood]
) -> dict[str, TraceOutcome]:
    """Return outcomes with the perplexities of their own set: the rollouts of a group with the same outcome (SCOPE's
    dual path).

    A rollout without any token that has loss belongs to no set.
    """
    sets: dict[tuple[str, bool], list[str]] = {}
    for trace_id in likelihoods:
        outcome = outcomes[trace_id]
        sets.setdefault((outcome.group, outcome.passed), []).append(trace_id)
    width = max((len(s) for s in sets.values()), default=0)
    out = dict(outcomes)
    for members in sets.values():
        for own in members:
            order = [own, *(m for m in members if m != own)]
            each = [likelihoods[m] for m in order]
            padding = (math.nan,) * (width - len(order))
            found = {
                "rollout_ppl_S": tuple(math.exp(-x.student / x.tokens) for x in each) + padding,
                "rollout_ppl_T": tuple(math.exp(-x.teacher / x.tokens) for x in each) + padding,
            }
            out[own] = replace(outcomes[own], perplexities=found)
    return out


def sampled_steps(trace: Trace, left_out: Counter[str]) -> list[int]:
    """Return every step that the student sampled by itself, with ids and log-probabilities; the other steps are counted
    by reason.

    `not_sampled`: given, or sampled under a hint; `unrecorded`: without ids or log-probabilities; `filtered_logprobs`:
    the log-probabilities do not refer to the model's own distribution (`Message.logprobs_of`).

    Raises:
        InputError: a step has different numbers of recorded ids and log-probabilities.
    """
    found = []
    for k in range(len(trace.step_indices)):
        message = trace.step(k)
        if k in trace.given_steps or message.extra.get("hinted"):
            left_out["not_sampled"] += 1
        elif not message.token_ids or not message.logprobs:
            left_out["unrecorded"] += 1
        elif message.own_logprobs is None:
            left_out["filtered_logprobs"] += 1
        elif len(message.token_ids) != len(message.logprobs):
            raise InputError(
                f"trace {trace.id}, step {k} has {len(message.token_ids)} token ids, but "
                f"{len(message.logprobs)} log-probabilities"
            )
        else:
            found.append(k)
    return found


def require_pulling(traces: Sequence[Trace], outcomes: Mapping[str, TraceOutcome]) -> None:
    """Raise EmptyFunnelError if no sampled step has an advantage; nothing is rendered."""
    left_out: Counter[str] = Counter()
    found = [(t, sampled_steps(t, left_out)) for t in traces]
    if not any(steps and outcomes[t.id].pulls for t, steps in found):
        raise _nothing_pulls(left_out)


def outcome_rows(
    traces: Sequence[Trace], outcomes: Mapping[str, TraceOutcome], renderer: Renderer
) -> tuple[list[OutcomeRow], dict[str, int]]:
    """Return a row for every sampled step of a rollout with an advantage, and the number of steps without a row, by
    reason.

    Steps that were not sampled from the student alone (given, or sampled under a hint) and steps without recorded ids
    and log-probabilities have no row: `not_sampled`, `unrecorded`. Steps of rollouts at their group's mean have none
    either: `no_advantage`.

    Raises:
        InputError: a step has different numbers of recorded ids and log-probabilities.
        EmptyFunnelError: no step is usable.
    """
    rows: list[OutcomeRow] = []
    tokens, left_out = 0, Counter[str]()
    for trace in traces:
        own: list[OutcomeRow] = []
        for k in reversed(sampled_steps(trace, left_out)):
            try:
                rendered = renderer.step(trace, k)
            except HintdistillError as error:
                left_out[error.reason] += 1
                continue
            length = len(rendered.step_ids)
            tokens += length
            if not outcomes[trace.id].pulls:
                left_out["no_advantage"] += 1
                continue
            ids = torch.tensor(rendered.context_ids + rendered.step_ids, dtype=torch.int64)
            if own and torch.equal(own[-1].ids[: len(ids)], ids):
                ids = own[-1].ids[: len(ids)]
            then = torch.tensor(trace.step(k).logprobs, dtype=torch.float32)
            key, advantage = f"outcome:{trace.id}:{k}", outcomes[trace.id].advantage
            own.append(OutcomeRow(key, trace.id, k, ids, length, then, advantage, 0.0))
        rows += reversed(own)
    if not rows:
        raise _nothing_pulls(left_out)
    # rows without a pull are left out of the forward pass, not out of the mean
    weighted = [replace(r, weight=len(rows) / tokens) for r in rows]
    return weighted, {reason: n for reason, n in left_out.items() if n}


def _nothing_pulls(left_out: Mapping[str, int]) -> EmptyFunnelError:
    reasons = ", ".join(f"{n} {r}" for r, n in left_out.items() if n)
    return EmptyFunnelError(
        f"no step for the outcome term ({reasons or 'no rollout with an advantage has a sampled step'})",
        hint="this toolkit's rollouts record ids and log-probabilities; traces from elsewhere may lack them",
    )
