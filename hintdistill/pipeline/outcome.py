"""Provide the outcomes that training uses: the rewards of this run's own rollouts, and their sampled steps."""

from __future__ import annotations

from collections.abc import Sequence

from hintdistill.config import RunConfig
from hintdistill.core.storage import content_key
from hintdistill.core.types import SampledFrom, Trace
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
    """Return reward and advantage by trace id, and the rows of the outcome-reward term, from the traces of the training
    split.

    The result is empty if the recipe uses no reward, and has no rows if its coupling is not additive. A round's failed
    episodes (cut, endless, or with a broken environment) are not traces and are not included.

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
    if elsewhere := sampled_elsewhere(ctx.config):
        ctx.console.warn(f"outcome term: {elsewhere}")
    return OutcomeData(outcomes, rows, key)


def sampled_elsewhere(config: RunConfig) -> str | None:
    """Return a warning about importance ratios if rollouts are not drawn from the model's own distribution, else
    None."""
    sample = config.rollout.sample
    how = SampledFrom(temperature=sample.temperature, top_p=sample.top_p, top_k=sample.top_k, min_p=sample.min_p)
    if how.whole:
        return None
    said = ", ".join(f"{name} {value:g}" for name, value in how.model_dump(exclude_defaults=True).items())
    return (
        f"rollouts were sampled at {said}, but log-probabilities are recorded at temperature 1 over the whole "
        "vocabulary, so the importance ratio does not refer to the policy that sampled them"
    )


def require_outcomes(ctx: RunContext) -> None:
    """Raise what `outcome_data` would raise as soon as the traces are read, before a critic is asked or a step is
    scored."""
    if reads_reward(ctx.config.train.effective_recipe):
        check_outcomes(ctx.config, [trace for _, trace, split in read.load(ctx) if split == "train"])


def check_outcomes(config: RunConfig, traces: Sequence[Trace]) -> None:
    """Make the same checks for the traces of a training split, for a recipe that uses rewards."""
    outcomes = _outcomes(config, traces)
    if config.train.effective_recipe.coupling.kind == "additive":
        require_pulling(traces, outcomes)


def _outcomes(config: RunConfig, traces: Sequence[Trace]) -> dict[str, TraceOutcome]:
    section = config.train
    needed = reads_advantage(section.effective_recipe)
    return trace_outcomes(traces, section.outcome.baseline, section.outcome.normalise, advantage_needed=needed)
