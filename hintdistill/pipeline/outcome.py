"""What a training is told of outcomes: the rewards of this run's own rollouts, and their sampled steps."""

from __future__ import annotations

from collections.abc import Sequence

from hintdistill.config import RunConfig
from hintdistill.core.storage import content_key
from hintdistill.core.types import Trace
from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext
from hintdistill.recipes import reads_advantage, reads_reward
from hintdistill.training.reward import (
    NO_OUTCOME,
    OutcomeData,
    TraceOutcome,
    outcome_rows,
    require_pulling,
    trace_outcomes,
)


def outcome_data(ctx: RunContext) -> OutcomeData:
    """Reward and advantage by trace id, and the rows of the outcome-reward term, from the traces of the training split.

    Nothing where the recipe reads no reward, and no rows where its coupling is not additive. A round's failed episodes (cut or
    endless ones, environments that broke) are no traces and have no part in it.

    Raises:
        InputError: a trace has no reward.
        EmptyFunnelError: no rollout has an advantage, or none has recorded ids and log-probabilities.
    """
    section = ctx.config.train
    if not reads_reward(section.effective_recipe):
        return NO_OUTCOME
    loaded = [(key, trace) for key, trace, split in read.load(ctx) if split == "train"]
    traces = [trace for _, trace in loaded]
    outcomes = _outcomes(ctx.config, traces)
    key = content_key("outcome", sorted(key for key, _ in loaded), section.outcome.model_dump(mode="json"))
    if section.effective_recipe.coupling.kind != "additive":
        return OutcomeData(outcomes, key=key)
    rows, left_out = outcome_rows(traces, outcomes, ctx.renderer)
    if lost := {reason: n for reason, n in left_out.items() if reason != "no_advantage"}:
        ctx.console.warn(f"outcome term: steps left out: {', '.join(f'{n} {reason}' for reason, n in lost.items())}")
    sample = ctx.config.rollout.sample
    if sample.temperature != 1.0:
        ctx.console.warn(
            f"outcome term: rollouts were sampled at temperature {sample.temperature:g}, but log-probabilities are recorded "
            "at 1, so the importance ratio is not that of the policy that sampled"
        )
    return OutcomeData(outcomes, rows, key)


def require_outcomes(ctx: RunContext) -> None:
    """Raise what `outcome_data` would raise as soon as the traces are read, before a critic is asked or anything is scored."""
    if reads_reward(ctx.config.train.effective_recipe):
        check_outcomes(ctx.config, [trace for _, trace, split in read.load(ctx) if split == "train"])


def check_outcomes(config: RunConfig, traces: Sequence[Trace]) -> None:
    """The same of the traces of a training split, for a recipe that reads rewards."""
    outcomes = _outcomes(config, traces)
    if config.train.effective_recipe.coupling.kind == "additive":
        require_pulling(traces, outcomes)


def _outcomes(config: RunConfig, traces: Sequence[Trace]) -> dict[str, TraceOutcome]:
    section = config.train
    needed = reads_advantage(section.effective_recipe)
    return trace_outcomes(traces, section.outcome.baseline, section.outcome.normalise, advantage_needed=needed)
