"""`hintdistill compare-recipes CONFIG a b c`: train one student per recipe on the same traces, with equally many rows
and optimiser steps.

The configuration is run unchanged up to its scored hints (`base/`); every student is evaluated on its held-out findings
and clean steps. Each recipe then gets a copy of that folder. If its teacher reads other contexts, they are made and
scored there (`recipes/NAME/`). Training and evaluation are jobs of the runner of arms (`arms/`), so a kill costs one
job.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig, TrainSection
from hintdistill.config.file import validate
from hintdistill.core.errors import ConfigError, EmptyFunnelError, TripwireError
from hintdistill.core.models import model_key
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key, disk_errors, write_atomic
from hintdistill.core.types import HELD
from hintdistill.pipeline import train
from hintdistill.pipeline.arms import (
    ArmTraining,
    Budget,
    changed,
    draw_rows,
    result_of,
    run_owed,
    train_arm,
    training_content,
)
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.controls import FEW_STEPS, Bench, ControlsSettings
from hintdistill.pipeline.outcome import outcome_data
from hintdistill.pipeline.progress import Advance, Console
from hintdistill.pipeline.run import run as run_until
from hintdistill.pipeline.stages import check_inputs, stages_between
from hintdistill.pipeline.store import RunDir
from hintdistill.recipes import load_recipe
from hintdistill.recipes.changes import called
from hintdistill.reporting.recipes import compared, markdown

DOCUMENT, PAGE = "compare.json", "compare.md"
ConfigOf = Callable[[str | None], RunConfig]
"""Returns the configuration with its recipe replaced by the one with this name or file; None keeps the recipe."""


@dataclass(frozen=True)
class RecipeArm:
    """Describe an arm: a recipe at a learning rate."""

    recipe: str
    """The name of a shipped recipe, or a recipe file."""
    rate: float | None = None
    """The learning rate; None uses the configuration's."""

    @property
    def name(self) -> str:
        """Return the arm's name in folders and in the table."""
        stem = Path(self.recipe).stem
        return stem if self.rate is None else f"{stem}@{self.rate:g}"

    @classmethod
    def parse(cls, word: str) -> RecipeArm:
        """Read `NAME` or `NAME@RATE`. Raises ConfigError for an unknown recipe or an invalid rate."""
        name, at, rate = word.partition("@")
        load_recipe(name)
        try:
            value = float(rate) if at else None
        except ValueError:
            raise ConfigError(f"{word}: {rate!r} is not a learning rate", hint=f"{name}@3e-5") from None
        if value is not None and not value > 0:
            raise ConfigError(f"{word}: a learning rate is greater than 0")
        return cls(name, value)


def parse_arms(words: Sequence[str]) -> list[RecipeArm]:
    """Parse the arms in their order. Raises ConfigError for fewer than two arms, or two arms with the same name."""
    arms = [RecipeArm.parse(w) for w in words]
    names = [a.name for a in arms]
    if twice := [n for n in names if names.count(n) > 1]:
        raise ConfigError(
            f"{twice[0]} is given twice", hint="to compare rates of one recipe, write NAME@1e-5 NAME@3e-5"
        )
    if len(arms) < 2:
        raise ConfigError(
            "a comparison needs at least two recipes", hint="e.g. compare-recipes CONFIG targeted hint_sd sdpo_feedback"
        )
    return arms


class Comparison:
    """Hold what the arms share, and each recipe's own scored targets."""

    def __init__(self, base: RunContext, own: dict[str, RunContext], settings: ControlsSettings) -> None:
        """Store the arguments; `own` maps each recipe to its run's context. Raises EmptyFunnelError if there is nothing
        to train or evaluate on."""
        self.bench, self.own, self.settings = Bench(base, settings), own, settings
        self.targets: dict[str, list[Target]] = {}
        for recipe, ctx in own.items():
            self.targets[recipe] = list(train.selected(ctx))
            if not any(t.kind == "hint" for t in self.targets[recipe]):
                raise EmptyFunnelError(
                    f"{recipe} has no accepted hint from a training trace",
                    hint=f"`hintdistill show {ctx.rundir.path}` lists the outcome of each hint; leave the recipe "
                    "out, or provide its contexts",
                )

    def section_of(self, arm: RecipeArm) -> TrainSection:
        """Return the training settings of an arm."""
        own = self.own[arm.recipe].config.train.model_dump(mode="json")
        change = {} if arm.rate is None else {"learning_rate": arm.rate}
        data = {"train": changed(own, change), "run": {"model": "-"}, "traces": {"path": ["-"]}}
        return validate(data, f"compare-recipes, {arm.name}").train

    def budget_of(self, arm: RecipeArm) -> Budget:
        """Return the budget of an arm: equally many hint rows and steps in every arm, and held rows in the proportion
        of the recipe's own run."""
        targets, shared = self.targets[arm.recipe], self.bench.budget
        hints = sum(t.kind == "hint" for t in targets)
        twins = sum(t.kind == "twin" for t in targets)
        anchors = len(targets) - hints - twins
        others = {"twin": round(shared.rows * twins / hints)} if twins else {}
        return Budget(shared.rows, round(shared.rows * anchors / hints), shared.steps, others=others)


@dataclass(frozen=True)
class CompareJob:
    """A job that trains and evaluates one recipe at one rate."""

    of: Comparison
    arm: RecipeArm

    @property
    def name(self) -> str:
        """Return the arm's name."""
        return self.arm.name

    @property
    def units(self) -> int:
        """Return the number of optimiser steps."""
        return self.of.bench.budget.steps

    def key(self) -> str:
        """Return the key of both runs' targets, the arm's settings, and the settings equal in all arms."""
        contexts = (self.of.bench.ctx, self.of.own[self.arm.recipe])
        ctx = contexts[0]
        return content_key(
            "compare",
            self.arm.name,
            [[c.rundir.index(stage.name) for stage in stages_between(until="rescore")] for c in contexts],
            [model_key(folder).weights for folder in (ctx.model_folder, ctx.initial_folder)],
            training_content(self.of.section_of(self.arm)),
            self.of.budget_of(self.arm).content(),
            self.of.settings.clean_steps,
            ctx.config.run.model_dump(mode="json", include={"seed", "dtype"}),
        )

    def run(self, advance: Advance) -> dict[str, Any]:
        """Draw the rows, train and evaluate; the trained weights are removed afterwards."""
        of, bench, ctx = self.of, self.of.bench, self.of.own[self.arm.recipe]
        began, section, budget = time.monotonic(), of.section_of(self.arm), of.budget_of(self.arm)
        rows, distinct = draw_rows(of.targets[self.arm.recipe], budget, bench.salt)
        recipe = section.effective_recipe
        row: dict[str, Any] = {
            "arm": self.arm.name,
            "recipe": recipe.name,
            "called": called(recipe, ctx.config.inject.hint, ctx.config.inject.steps),
            "lowers_error": recipe.lowers_error,
            "learning_rate": section.rate,
            "rows": sum(t.kind == "hint" for t in rows),
            "anchors": sum(t.kind in HELD and t.kind not in budget.others for t in rows),
            **{f"{kind}s": sum(t.kind == kind for t in rows) for kind in budget.others},
            "distinct": distinct,
            "steps": 0,
            "not_read": None,
        }
        folder = bench.folder / "arms" / self.arm.name
        student, work = folder / "student", folder / "train"
        job = ArmTraining(
            self.arm.name,
            ctx.model_folder,
            ctx.initial_folder,
            ctx.config.run,
            section,
            budget.steps,
            outcome_data(ctx),
        )
        try:
            summary = train_arm(job, rows, student, work, advance)
            row |= {"train_seconds": time.monotonic() - began, "steps": summary.steps}
            row |= {"logprobs": bench.logprobs(student), "off_target": bench.moved(student)}
        except TripwireError as error:
            row["not_read"] = error.message
        bench.ctx.engines.pop(student, None)
        for used in (student, work):
            shutil.rmtree(used, ignore_errors=True)
        return row | {"seconds": time.monotonic() - began}


def ahead(config_of: ConfigOf, folder: Path, arms: Sequence[RecipeArm], settings: ControlsSettings) -> dict[str, Any]:
    """Describe the work of a comparison without changing anything. Raises ConfigError if a recipe needs something that
    its run lacks."""
    for config in (config_of(a.recipe) for a in arms):
        check_inputs(config, "train")
    recipes = {a.recipe: called(config_of(a.recipe).train.effective_recipe) for a in arms}
    steps = settings.steps or FEW_STEPS
    lines = [
        f"in {folder}: the stages up to rescore, once for the configuration and once for each "
        "recipe, which reuses identical results",
        *(f"{a.name} ({recipes[a.recipe]}): {steps} optimiser steps, then the evaluation" for a in arms),
    ]
    return {"folder": str(folder), "arms": [a.name for a in arms], "called": recipes, "steps": steps, "lines": lines}


def compare_recipes(
    config_of: ConfigOf,
    folder: Path,
    arms: Sequence[RecipeArm],
    settings: ControlsSettings,
    *,
    resume: bool = False,
    console: Console | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Train and evaluate the arms without a result, write compare.json and compare.md into the folder, and return the
    document.

    Args:
        config_of: makes the configuration for a recipe.
        settings: only `rows`, `steps` and `clean_steps` are used.
        trust: see `pipeline.run.run`.

    Raises:
        ConfigError: the folder already exists without `resume`, or a recipe needs something that its run lacks.
        EmptyFunnelError: there is nothing to train on, or no held-out finding to evaluate on.
    """
    console = console or Console()
    if folder.exists() and not resume:
        raise ConfigError(
            f"{folder} already exists", hint="--resume does the remaining work; or choose another run.dir"
        )
    configs = {a.recipe: config_of(a.recipe) for a in arms}
    # every recipe's needs are known before the first stage runs
    for config in configs.values():
        check_inputs(config, "train")
    base = folder / "base"
    run_until(config_of(None), base, resume=base.is_dir(), until="rescore", console=console, trust=trust)
    for recipe, config in configs.items():
        own = folder / "recipes" / Path(recipe).stem
        copied(base, own)
        run_until(config, own, resume=True, until="rescore", console=console, trust=trust)
    with in_use(config_of(None), trust), disk_errors(folder):
        return _compare(folder, config_of(None), configs, (arms, settings), console)


def copied(base: Path, own: Path) -> None:
    """Copy the traces, critiques and scores of the base run, first under a temporary name, so that a kill leaves no
    partial copy."""
    if own.is_dir():
        return
    aside = own.with_name(f"{own.name}.copying")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(base, aside)
    aside.rename(own)


def _compare(
    folder: Path,
    config: RunConfig,
    configs: dict[str, RunConfig],
    asked: tuple[Sequence[RecipeArm], ControlsSettings],
    console: Console,
) -> dict[str, Any]:
    arms, settings = asked
    opened: list[RunDir] = []

    def context(path: Path, of: RunConfig) -> RunContext:
        opened.append(RunDir.create(path, of, resume=True))
        return RunContext(of, opened[-1], console)

    try:
        base = context(folder / "base", config)
        own = {r: context(folder / "recipes" / Path(r).stem, c) for r, c in configs.items()}
        comparison = Comparison(base, own, settings)
        comparison.bench.folder = folder
        jobs = [CompareJob(comparison, arm) for arm in arms]
        before = comparison.bench.logprobs(base.model_folder)
        b = comparison.bench.budget
        console.note(f"compare-recipes: {len(jobs)} arms, each with {b.rows} hints and {b.steps} optimiser steps")
        results = folder / "results"
        run_owed(results, jobs, "compare-recipes", console)
        rows = [r for job in jobs if (r := result_of(results, job)) is not None]
        clean = {name: len(requests) for name, requests in comparison.bench.clean.items()}
        document = compared(comparison.bench.heldout, before, clean, {"rows": b.rows, "steps": b.steps}, rows)
    finally:
        for rundir in opened:
            rundir.close()
    write_atomic(folder / DOCUMENT, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
    write_atomic(folder / PAGE, markdown(document))
    return document
