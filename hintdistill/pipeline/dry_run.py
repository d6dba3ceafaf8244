"""`hintdistill run --dry-run`: what a run would read and ask of whom, without a model and without writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hintdistill.config import RunConfig
from hintdistill.core.types import Trace
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.stages import check_inputs, stage_named, stages_between
from hintdistill.pipeline.store import RunDir
from hintdistill.recipes import reads_reward


@dataclass(frozen=True)
class DryRun:
    """What a run would do; nothing is written and no model is loaded."""

    traces: int
    failures: int
    steps: int
    train_traces: int
    holdout_traces: int
    critics: dict[str, dict[str, int]]
    """Per critic, requests and prompt tokens, at most; a server without critic.llm.tokenizer is counted at three bytes a token."""
    tool_schemas: int
    recorded_ids: int
    """Steps whose token ids are recorded."""


def dry_run(config: RunConfig, until: str = "report", *, trust: bool = False) -> DryRun:
    """Read the traces and say what the run would ask of whom. Raises what `check_inputs` raises.

    Args:
        trust: see `pipeline.run.run`.
    """
    with in_use(config, trust):
        return _dry_run(config, until)


def _dry_run(config: RunConfig, until: str) -> DryRun:
    from hintdistill.pipeline import critique, outcome
    from hintdistill.traces.groups import group_traces
    from hintdistill.traces.reading import read_traces

    check_inputs(config, until)
    ctx = RunContext(config, RunDir(Path()), Console(quiet=True))
    traces: list[Trace] = []
    failures = 0
    for read in read_traces(config.traces.path, ctx.read_options()):
        if isinstance(read, Trace):
            traces.append(read)
        else:
            failures += 1
        if config.traces.limit is not None and len(traces) == config.traces.limit:
            break
    splits = [ctx.split_of(group) for group in group_traces(traces)]
    trains = stage_named("train") in stages_between(until=until)
    if trains and config.run.rounds is None and reads_reward(config.train.effective_recipe):
        outcome.check_outcomes(config, [t for t, s in zip(traces, splits, strict=True) if s == "train"])
    return DryRun(
        traces=len(traces),
        failures=failures,
        steps=sum(len(t.step_indices) for t in traces),
        train_traces=splits.count("train"),
        holdout_traces=splits.count("holdout"),
        critics=critique.asked(ctx, traces),
        tool_schemas=len({name for t in traces for name in t.tool_schemas}),
        recorded_ids=sum(t.messages[i].token_ids is not None for t in traces for i in t.step_indices),
    )
