"""What the outcome-reward term is trained on: the rewards of this run's own rollouts, and their sampled steps."""

from __future__ import annotations

from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext
from hintdistill.training.reward import Baseline, OutcomeRow, TraceOutcome, outcome_rows, trace_outcomes


def outcome_data(
    ctx: RunContext, baseline: Baseline = "group", normalise: bool = False
) -> tuple[dict[str, TraceOutcome], list[OutcomeRow]]:
    """Reward and advantage by trace id, and the rows of the term, from the traces of the training split.

    A round's failed episodes (cut or endless ones, environments that broke) are no traces and have no part in it.

    Raises:
        InputError: a trace has no reward.
        EmptyFunnelError: no rollout has an advantage, or none has recorded ids and log-probabilities.
    """
    traces = [trace for _, trace, split in read.load(ctx) if split == "train"]
    outcomes = trace_outcomes(traces, baseline, normalise)
    rows, left_out = outcome_rows(traces, outcomes, ctx.renderer)
    if lost := {reason: n for reason, n in left_out.items() if reason != "no_advantage"}:
        ctx.voice.warn(f"outcome term: steps left out: {', '.join(f'{n} {reason}' for reason, n in lost.items())}")
    sample = ctx.config.rollout.sample
    if sample.temperature != 1.0:
        ctx.voice.warn(
            f"outcome term: rollouts were sampled at temperature {sample.temperature:g}, but log-probabilities are recorded "
            "at 1, so the importance ratio is not that of the policy that sampled"
        )
    return outcomes, rows
