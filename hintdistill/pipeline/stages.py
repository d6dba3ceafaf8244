"""The stages of a run; this module alone defines their order.

read → critique → inject → rescore → (revise → inject → rescore, if `critic.revise` is on) → train → report

Each stage determines its work from the rows of the stage before, does the missing part, and records which rows are
current. Stages communicate only through the run folder, so a kill at any moment costs the work of one batch. `run`, the
rounds, the planner and the ablation all use `each_stage` or `run_stages`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError, PromptError
from hintdistill.core.extensions import HINT_SOURCES
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir

# A stage imports its module when it runs or checks, so that a run that ends before the weights are needed loads no torch.


class Stage(Protocol):
    """One stage of a run. It has no state: everything is in the context and its run folder."""

    name: str
    """The stage's name on the command line and in the run folder's index."""
    needs_weights: bool
    """Whether it computes with the student's weights; the planner actually runs the other stages."""

    def check(self, ctx: RunContext) -> None:
        """Raise errors that would stop the stage and can be detected before anything is written; see `check_inputs`."""

    def run(self, ctx: RunContext) -> None:
        """Do the stage's missing work."""


class Read:
    """Turn every record into a row, a trace or a failure."""

    name, needs_weights = "read", False

    def check(self, ctx: RunContext) -> None:
        """Raise InputError if the traces or tools cannot be read; a loop that plays episodes reads none."""
        from hintdistill.traces.files import trace_files

        if ctx.config.run.rounds is None or ctx.config.rollout.source == "replay":
            trace_files(ctx.config.traces.path, "traces.path")
        if ctx.config.train.hold.path:
            trace_files(ctx.config.train.hold.path, "train.hold.path")
        ctx.read_options()

    def run(self, ctx: RunContext) -> None:
        """Read all files, including those of hold traces."""
        from hintdistill.pipeline import hold, read

        read.run(ctx)
        hold.read(ctx)


class Critique:
    """Let the critics locate errors and write hints."""

    name, needs_weights = "critique", False

    def check(self, ctx: RunContext) -> None:
        """Raise PromptError if a prompt does not lint, ConfigError or InputError if a critic cannot be created."""
        from hintdistill.pipeline import critique

        unsound = [p for n in ctx.library.names() if not n.startswith("critic/") for p in ctx.library.lint(n)]
        if unsound:
            raise PromptError("; ".join(unsound))
        critique.critics(ctx)

    def run(self, ctx: RunContext) -> None:
        """Ask for the missing critiques."""
        from hintdistill.pipeline import critique

        critique.run(ctx)


class Inject:
    """Select findings, splice their hints in, and make their twins."""

    name, needs_weights = "inject", False

    def check(self, ctx: RunContext) -> None:
        """Raise ModelError if the student's tokenizer or template cannot be used."""
        _ = ctx.renderer

    def run(self, ctx: RunContext) -> None:
        """Make the missing injections, then the missing twins."""
        from hintdistill.pipeline import inject, twins

        inject.run(ctx)
        twins.run(ctx)


class Rescore:
    """Score every injection with and without its hint, and let the gate decide."""

    name, needs_weights = "rescore", True

    def check(self, ctx: RunContext) -> None:
        """Raise ConfigError if the scoring engine must not be used, or hold traces cannot be played."""
        ctx.check_scoring_engine()
        if (split := ctx.config.train.hold.split) is not None:
            from hintdistill.rollouts.evaluate import load_suite, tasks_of

            assert ctx.config.rollout.environment is not None
            tasks_of(load_suite(ctx.config.rollout.environment), split, None)

    def run(self, ctx: RunContext) -> None:
        """Score the items that have no target yet."""
        from hintdistill.pipeline import rescore

        rescore.run(ctx)


class Train:
    """Train the student on the accepted targets."""

    name, needs_weights = "train", True

    def check(self, ctx: RunContext) -> None:
        """Raise ConfigError if the recipe needs something that this run lacks, or a tracker is not installed."""
        from hintdistill.recipes import require_met
        from hintdistill.training.capabilities import available, several_rollouts
        from hintdistill.training.trackers import check_trackers

        config = ctx.config
        met = available(config.train, config.rescore.engine.backend, several_rollouts(config))
        met |= HINT_SOURCES.get(str(config.injecting.hint)).meets
        require_met(config.train.effective_recipe, met)
        check_trackers(config.train)

    def run(self, ctx: RunContext) -> None:
        """Train, unless the student in the folder was trained with exactly these targets and settings."""
        from hintdistill.pipeline import train

        train.run(ctx)


class Report:
    """Measure the changes and write the report."""

    name, needs_weights = "report", True

    def check(self, ctx: RunContext) -> None:
        """Raise ConfigError, InputError or ServiceError if a repository, off-target set or environment cannot be
        used."""
        from hintdistill.traces.files import trace_files
        from hintdistill.training.push import check_push

        config = ctx.config
        check_push(config.train.push)
        for name, path in config.report.off_target.items():
            trace_files([path], f"report.off_target.{name}")
        if config.rollout.environment is not None:
            from hintdistill.rollouts.evaluate import load_suite, tasks_of

            if config.rollout.sample.backend == "server":
                from hintdistill.core.http import HttpClient
                from hintdistill.rollouts.server import asked

                # whether it may be asked; nothing is sent
                HttpClient(asked(config.rollout.sample.server))
            suite = load_suite(config.rollout.environment)
            for split in config.rollout.splits:
                tasks_of(suite, split, None)
            if config.run.rounds is not None:
                tasks_of(suite, config.rollout.sample.split, None, config.rollout.sample.tasks)

    def run(self, ctx: RunContext) -> None:
        """Make the missing measurements and write the report."""
        from hintdistill.pipeline import report

        report.run(ctx, kept_warnings(ctx.rundir))


ORDER: tuple[Stage, ...] = (Read(), Critique(), Inject(), Rescore(), Train(), Report())
"""The stages in the order in which they run; a revision comes after rescore."""
STAGES: tuple[str, ...] = tuple(stage.name for stage in ORDER)
"""The names of the stages, as accepted by `--until`."""


def stage_named(name: str) -> Stage:
    """Return the stage of that name. Raises ConfigError if there is none."""
    for stage in ORDER:
        if stage.name == name:
            return stage
    raise ConfigError(f"no stage {name!r}", hint=f"the stages are {', '.join(STAGES)}")


def stages_between(first: str = "read", until: str = "report") -> tuple[Stage, ...]:
    """Return the stages from `first` to `until`, both included, in order.

    Raises:
        ConfigError: a name is not a stage, or `until` comes before `first`.
    """
    start, end = ORDER.index(stage_named(first)), ORDER.index(stage_named(until))
    if end < start:
        raise ConfigError(f"{until} comes before {first}", hint=f"the stages are {', '.join(STAGES)}")
    return ORDER[start : end + 1]


def each_stage(
    ctx: RunContext, *, first: str = "read", until: str = "report", skip: Collection[str] = ()
) -> Iterator[str]:
    """Run the stages from `first` to `until`, and yield the name of each finished one.

    A caller that stops iterating stops the run at that point. The revision is part of rescore: it is finished when
    `rescore` is yielded. If training follows, the rewards that the recipe uses are required as soon as the traces are
    read, and the missing critiques as soon as the critics are done (`critic.allow_owed`). Each stage's warnings are
    kept in the index `<stage>-warnings`, even if it fails.

    Args:
        skip: names of stages whose existing rows are used unchanged.

    Raises:
        ConfigError: see `stages_between`.
        HintdistillError: an error stopped a stage; everything done before it is kept.
    """
    stages = stages_between(first, until)
    for stage in stages:
        if stage.name not in skip:
            _run_one(stage, ctx)
        if stage.name == "read" and stage_named("train") in stages:
            from hintdistill.pipeline.outcome import require_outcomes

            require_outcomes(ctx)
        if stage.name == "critique" and stage_named("train") in stages:
            from hintdistill.pipeline.critique import require_answered

            require_answered(ctx)
        if stage.name == "rescore" and ctx.config.critic.revise and not ctx.gathers:
            _revise(ctx)
        if stage.name == "train" and stage_named("report") in stages:
            from hintdistill.pipeline import report

            # the report writes the card again, with what it measured
            report.card(ctx, kept_warnings(ctx.rundir))
        yield stage.name


def run_stages(ctx: RunContext, *, first: str = "read", until: str = "report", skip: Collection[str] = ()) -> None:
    """Run the stages from `first` to `until`; see `each_stage`."""
    for _ in each_stage(ctx, first=first, until=until, skip=skip):
        pass


def write_report(ctx: RunContext) -> None:
    """Write the report of a run that has not reached its report stage; no measurement is made for it."""
    from hintdistill.pipeline import report

    report.write(ctx, kept_warnings(ctx.rundir), measure=False)


def kept_warnings(rundir: RunDir) -> list[str]:
    """Return the warnings of the stages before the report in order, without repetitions."""
    names = [name for name in STAGES if name != "report"]
    names.insert(names.index("rescore") + 1, "revise")
    return list(dict.fromkeys(text for name in names for text in rundir.index(f"{name}-warnings") or []))


def check_inputs(config: RunConfig, until: str = "report") -> None:
    """Raise an error for missing inputs before anything is written.

    Raises:
        ModelError, InputError, ConfigError, PromptError: a path, model, prompt folder or environment cannot be used.
    """
    ctx = RunContext(config, RunDir(Path()), Console(quiet=True))
    for stage in stages_between(until=until):
        stage.check(ctx)


def _run_one(stage: Stage, ctx: RunContext) -> None:
    with _keeping_warnings(ctx, stage.name):
        stage.run(ctx)


def _revise(ctx: RunContext) -> None:
    """Send rejected hints back once to the critic that wrote them; if one was rewritten, inject and rescore again."""
    from hintdistill.pipeline import revise

    with _keeping_warnings(ctx, "revise"):
        rewritten = revise.run(ctx)
    if rewritten:
        for name in ("inject", "rescore"):
            _run_one(stage_named(name), ctx)


@contextmanager
def _keeping_warnings(ctx: RunContext, name: str) -> Iterator[None]:
    """Keep the warnings raised inside under the stage's name, even if it fails."""
    ctx.console.warnings.clear()
    try:
        yield
    finally:
        ctx.rundir.set_index(f"{name}-warnings", ctx.console.warnings)
