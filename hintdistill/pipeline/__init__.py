"""The six stages in order, resumable.

Each stage works out what it owes from the rows of the stage before, does what is not there yet, and says which rows are
current. Nothing is passed between stages but the run folder, so a kill at any moment costs the work of one batch.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError, PromptError
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import STAGES, RunDir
from hintdistill.recipes import reads_reward, require_met
from hintdistill.training import processes

__all__ = ["STAGES", "Console", "Plan", "RunContext", "plan", "report_only", "run", "run_folder"]


def run_folder(config: RunConfig, name: str) -> Path:
    """Where the run goes: `run.dir`, or `runs/<config>-<UTC time>`."""
    if config.run.dir is not None:
        return Path(config.run.dir)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return Path("runs") / f"{name}-{now}"


def run(
    config: RunConfig, folder: Path, *, resume: bool = False, until: str = "report", console: Console | None = None
) -> Path:
    """Run the stages up to and including `until`; returns the run folder.

    Of several processes, the main one runs the stages; the others wait, and train with it.

    Raises:
        ConfigError: the folder is in use, or `until` is no stage.
        HintdistillError: whatever stopped a stage; everything done before it is kept.
    """
    if until not in STAGES:
        raise ConfigError(f"no stage {until!r}", hint=f"the stages are {', '.join(STAGES)}")
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    if processes.world() == 1:
        return _lead(config, folder, resume, until, console or Console())
    from hintdistill.engines.transformers import pick_device

    device = pick_device(config.run.device)
    if not processes.is_main():
        processes.follow(device)
        return folder
    with processes.leading(device):
        return _lead(config, folder, resume, until, console or Console())


def _lead(config: RunConfig, folder: Path, resume: bool, until: str, console: Console) -> Path:
    check_inputs(config, until)
    if config.run.rounds is not None and until != "report":
        raise ConfigError(f"run.rounds is a loop over all stages and cannot end at {until!r}", hint="unset run.rounds")
    rundir = RunDir.create(folder, config, resume=resume)
    try:
        if config.run.rounds is not None:
            from hintdistill.pipeline.rounds import run_rounds

            run_rounds(config, rundir, console)
            push(config, folder, console)
            return folder
        ctx = RunContext(config, rundir, console)
        for stage in STAGES[: STAGES.index(until) + 1]:
            console.warnings.clear()
            _module(stage).run(ctx)
            if stage == "read" and until in ("train", "report"):
                _module("outcome").require_outcomes(ctx)
            if stage == "rescore" and config.critic.revise and _module("revise").run(ctx):
                _module("inject").run(ctx)
                _module("rescore").run(ctx)
            rundir.set_index(f"{stage}-warnings", console.warnings)
            if stage == "train" and until == "report":
                # the report writes the card again, with its numbers
                _module("report").card(ctx)
        if until != "report":
            _module("report").write(ctx, measure=False)
        else:
            push(config, folder, console)
    finally:
        rundir.close()
    return folder


def report_only(config: RunConfig, folder: Path, console: Console | None = None) -> None:
    """Measure what is owed and write the report of an existing run again."""
    rundir = RunDir.create(folder, config, resume=True)
    try:
        _module("report").run(RunContext(config, rundir, console or Console()))
    finally:
        rundir.close()


def push(config: RunConfig, folder: Path, console: Console, repository: str | None = None) -> str | None:
    """Upload the run's student to `repository`, else to `train.push`; None where neither is set, or nothing was trained.

    Raises:
        ConfigError: there is no token, or the name is none.
        InputError: `repository` is given and the run has no student.
        ServiceError: the hub cannot be reached or refuses.
    """
    student, name = folder / "student", repository or config.train.push
    if name is None or (repository is None and not student.is_dir()):
        return None
    from hintdistill.training.push import push_student

    where = push_student(student, name, config.train)
    console.note(f"pushed {student} → {where}")
    return where


def check_inputs(config: RunConfig, until: str) -> None:
    """Fail on what is missing before anything is written.

    Raises:
        ModelError, InputError, ConfigError: a path, model, prompt folder or environment that cannot be used.
    """
    from hintdistill.pipeline import critique
    from hintdistill.traces.files import trace_files
    from hintdistill.training.capabilities import available, several_rollouts
    from hintdistill.training.push import check_push
    from hintdistill.training.trackers import check_trackers

    ctx = RunContext(config, RunDir(Path()), Console(quiet=True))
    if config.run.rounds is None:
        trace_files(config.traces.path)
    ctx.read_options()
    unsound = [p for n in ctx.library.names() if not n.startswith("critic/") for p in ctx.library.lint(n)]
    if unsound:
        raise PromptError("; ".join(unsound))
    critique.critics(ctx)
    if until in ("train", "report"):
        met = available(config.train, config.rescore.engine.backend, several_rollouts(config))
        require_met(config.train.effective_recipe, met)
        check_trackers(config.train)
    if until not in ("read", "critique"):
        _ = ctx.renderer
    if until in ("rescore", "train", "report"):
        ctx.check_scoring_engine()
    if until == "report":
        check_push(config.train.push)
        trace_files(list(config.report.off_target.values()))
        if config.rollout.environment is not None:
            from hintdistill.rollouts.evaluate import load_suite, tasks_of

            suite = load_suite(config.rollout.environment)
            for split in config.rollout.splits:
                tasks_of(suite, split, None)
            if config.run.rounds is not None:
                tasks_of(suite, config.rollout.sample.split, None, config.rollout.sample.tasks)


def _module(stage: str) -> Any:
    import importlib

    return importlib.import_module(f"hintdistill.pipeline.{stage}")


@dataclasses.dataclass(frozen=True)
class Plan:
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


def plan(config: RunConfig, until: str = "report") -> Plan:
    """Read the traces and say what the run would ask of whom. Raises what `check_inputs` raises."""
    from hintdistill.core.types import Trace
    from hintdistill.critics.llm import LLMCritic
    from hintdistill.pipeline import critique
    from hintdistill.traces.groups import group_traces
    from hintdistill.traces.reading import read_traces

    check_inputs(config, until)
    ctx = RunContext(config, RunDir(Path()), Console(quiet=True))
    traces: list[Trace] = []
    failures = 0
    for outcome in read_traces(config.traces.path, ctx.read_options()):
        if isinstance(outcome, Trace):
            traces.append(outcome)
        else:
            failures += 1
        if config.traces.limit is not None and len(traces) == config.traces.limit:
            break
    asked = {}
    for critic in critique.critics(ctx):
        each = [critic.estimate(t) for t in traces] if isinstance(critic, LLMCritic) else []
        asked[critic.name] = {
            "requests": sum(e.requests for e in each),
            "prompt_tokens": sum(e.prompt_tokens for e in each),
        }
    splits = [ctx.split_of(group) for group in group_traces(traces)]
    if until in ("train", "report") and config.run.rounds is None and reads_reward(config.train.effective_recipe):
        _module("outcome").check_outcomes(config, [t for t, s in zip(traces, splits, strict=True) if s == "train"])
    return Plan(
        traces=len(traces),
        failures=failures,
        steps=sum(len(t.step_indices) for t in traces),
        train_traces=splits.count("train"),
        holdout_traces=splits.count("holdout"),
        critics=asked,
        tool_schemas=len({name for t in traces for name in t.tool_schemas}),
        recorded_ids=sum(t.messages[i].token_ids is not None for t in traces for i in t.step_indices),
    )
