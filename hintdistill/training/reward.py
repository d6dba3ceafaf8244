"""Outcome rewards as training data: what each rollout's reward says of its steps, and the rows of the outcome-reward term.

The rollouts of one task in one round are a group; a rollout's advantage is its reward minus the group's mean. Every step of
a rollout carries the rollout's advantage, and its tokens the log-probabilities they were sampled with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from hintdistill.errors import EmptyFunnelError, HintdistillError, InputError
from hintdistill.objectives.couplings import group_advantage
from hintdistill.rendering import Renderer
from hintdistill.types import Trace

Baseline = Literal["group", "round"]
PASSED = 0.5
"""A reward above this counts as a success in a group's accuracy."""


@dataclass(frozen=True)
class TraceOutcome:
    """What the reward says of one rollout; the facts `reward`, `advantage` and `group_acc` of all its steps."""

    reward: float
    advantage: float
    group_accuracy: float
    """Share of the group's rollouts that succeeded."""
    group_size: int


@dataclass(frozen=True)
class OutcomeRow:
    """One sampled step of a rollout: C context tokens, T sampled ones."""

    key: str
    trace_id: str
    step: int
    ids: torch.Tensor
    """int64 [C + T]: context and step, no hint."""
    length: int
    """T"""
    behaviour: torch.Tensor
    """float32 [T]: log-probability of each token when it was sampled, temperature 1."""
    advantage: float
    weight: float
    """What Σ_t ℓ_t is multiplied by, so that the mean over all rows is the mean over all tokens, those of rollouts without an
    advantage included; fixed here, so that eight rows at once and eight accumulated give one gradient."""


def trace_outcomes(
    traces: Sequence[Trace], baseline: Baseline = "group", normalise: bool = False
) -> dict[str, TraceOutcome]:
    """Reward and advantage of every rollout, by trace id.

    Args:
        baseline: `group`: the mean over rollouts of the same task; one that is alone learns nothing. `round`: the mean over
            all rollouts given, for rounds that play each task once.
        normalise: divide by the standard deviation of the group (GRPO), which weighs groups of like rollouts up.

    Raises:
        InputError: a trace has no reward, or two have the same id; names it.
        EmptyFunnelError: no advantage is other than zero, and what to do about it.
    """
    for trace in traces:
        if trace.reward is None or not math.isfinite(trace.reward):
            raise InputError(
                f"trace {trace.id} has the reward {trace.reward}; the outcome term needs one on every trace"
            )
    if twice := [i for i, n in Counter(t.id for t in traces).items() if n > 1]:
        raise InputError(f"two traces are called {twice[0]}")
    groups = [t.task_id or t.id if baseline == "group" else "all" for t in traces]
    rewards = torch.tensor([float(t.reward or 0.0) for t in traces])
    advantages = group_advantage(rewards, groups, normalise=normalise).tolist()
    if not any(abs(a) > 1e-9 for a in advantages):
        alone = baseline == "group" and len(set(groups)) == len(groups)
        raise EmptyFunnelError(
            f"no advantage among {len(traces)} rollouts: " + ("each task was played once" if alone else "all rewards are alike"),
            hint="set rollout.sample.per_task to 4 or more, or take the round's mean as baseline" if alone
            else "the outcome term has nothing to learn from here; tasks that sometimes succeed would do",
        )  # fmt: skip
    sizes, passed = Counter(groups), Counter(g for g, r in zip(groups, rewards.tolist(), strict=True) if r > PASSED)
    return {
        t.id: TraceOutcome(r, a, passed[g] / sizes[g], sizes[g])
        for t, g, r, a in zip(traces, groups, rewards.tolist(), advantages, strict=True)
    }


def outcome_rows(
    traces: Sequence[Trace], outcomes: Mapping[str, TraceOutcome], renderer: Renderer
) -> tuple[list[OutcomeRow], dict[str, int]]:
    """A row for every sampled step of a rollout with an advantage, and how many steps make none, by reason.

    Steps that were not sampled from the student alone (given ones, ones sampled under a hint) and steps without recorded ids
    and log-probabilities make no row: `not_sampled`, `unrecorded`. Rollouts at their group's mean pull nowhere: `no_advantage`.

    Raises:
        InputError: as many ids as log-probabilities are not recorded at a step.
        EmptyFunnelError: no step can be used.
    """
    usable: list[tuple[Trace, int, np.ndarray, np.ndarray, int]] = []
    left_out: Counter[str] = Counter()
    for trace in traces:
        for k in range(len(trace.step_indices)):
            message = trace.step(k)
            if k in trace.given_steps or message.extra.get("hinted"):
                left_out["not_sampled"] += 1
                continue
            if not message.token_ids or not message.logprobs:
                left_out["unrecorded"] += 1
                continue
            if len(message.token_ids) != len(message.logprobs):
                raise InputError(
                    f"trace {trace.id}, step {k}: {len(message.token_ids)} ids, {len(message.logprobs)} log-probs"
                )
            try:
                rendered = renderer.step(trace, k)
            except HintdistillError as error:
                left_out[error.reason] += 1
                continue
            ids = np.array(rendered.context_ids + rendered.step_ids, np.int64)
            usable.append((trace, k, ids, np.array(message.logprobs, np.float32), len(rendered.step_ids)))
    pulling = [u for u in usable if abs(outcomes[u[0].id].advantage) > 1e-9]
    left_out["no_advantage"] += len(usable) - len(pulling)
    if not pulling:
        raise EmptyFunnelError(
            f"no step for the outcome term ({', '.join(f'{n} {r}' for r, n in left_out.items() if n)})",
            hint="rollouts keep ids and log-probabilities; traces from elsewhere may not",
        )
    # rows without a pull are left out of the forward pass, not out of the mean
    weight = len(pulling) / sum(length for *_, length in usable)
    rows = [
        OutcomeRow(f"outcome:{t.id}:{k}", t.id, k, torch.from_numpy(ids), n, torch.from_numpy(then), outcomes[t.id].advantage, weight)
        for t, k, ids, then, n in pulling
    ]  # fmt: skip
    return rows, {reason: n for reason, n in left_out.items() if n}
