"""Train other recipes on the real model: the traces of a seed, each recipe's own contexts, equal rows and steps.

What is measured is what the arms of benchmarks/real.py are measured on, so their rows can stand in one table.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.realmodel import arms, jobs
from benchmarks.realmodel.plan import Plan, recipe_hash
from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError
from hintdistill.core.storage import content_key
from hintdistill.pipeline import rescore
from hintdistill.pipeline.arms import ArmTraining, Budget, draw_rows, result_of, train_arm
from hintdistill.pipeline.compare_recipes import copied
from hintdistill.pipeline.outcome import outcome_data
from hintdistill.pipeline.progress import Advance
from hintdistill.pipeline.stages import run_stages


@dataclass(frozen=True)
class RecipeJob:
    """One recipe on the traces of a seed; `of` is the plan of the arms."""

    of: Plan
    recipe: str
    seed: int

    units = 1

    @property
    def name(self) -> str:
        """Folder of the job."""
        return f"seed{self.seed}/recipe.{self.recipe}"

    @property
    def plan(self) -> Plan:
        """The arms' plan with the recipe in the place of the configuration's."""
        data = self.of.config.model_dump(mode="json")
        data["train"]["recipe"] = self.recipe
        # made anew, because a copy would keep the recipe that the section has already resolved
        return replace(self.of, config=RunConfig.model_validate(data))

    @property
    def shared(self) -> jobs.RealJob:
        """The job whose traces these are."""
        return jobs.RealJob(self.of, "shared", self.seed)

    def key(self) -> str:
        """Key of the arms' plan, the seed, and everything that the recipe says."""
        return content_key("real recipe", self.seed, self.of.content(), recipe_hash(self.plan.config))

    def run(self, advance: Advance) -> dict[str, Any]:
        """Make the recipe's contexts, score, train, measure. Raises ConfigError if the traces of the seed are owed."""
        if result_of(self.of.folder, self.shared) is None:
            raise ConfigError(f"{self.shared.name} is owed", hint="benchmarks/real.py arms plays the traces")
        folder, shared = self.of.folder / self.name, self.of.folder / self.shared.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared / "rollouts.jsonl", folder / "rollouts.jsonl")
        copied(shared / "run", folder / "run")
        with jobs.opened(self.plan, self.seed, folder) as data:
            run_stages(data.ctx, first="inject", until="rescore")
            found = [t for t in rescore.load(data.ctx) if t.kind == "hint"]
            # a recipe that trains every step leaves none to hold
            held = [] if data.ctx.config.injecting.steps else data.anchors()
            own = [*found, *held]
            plan = self.plan
            section = arms.section_of("recipe", plan.config.train, plan.train, {})
            budget = Budget(plan.budget["rows"], plan.budget["anchors"] if held else 0, plan.budget["steps"])
            chosen, distinct = draw_rows(own, budget, data.salt)
            base = data.ctx.initial_folder
            run, outcomes = data.ctx.config.run, outcome_data(data.ctx)
            training = ArmTraining(self.name, data.ctx.model_folder, base, run, section, budget.steps, outcomes)
            summary = train_arm(training, chosen, folder / "student", folder / "train")
        return {
            "arm": "recipe",
            "label": self.recipe,
            "seed": self.seed,
            "distinct": distinct,
            "available": Counter(t.kind for t in own if t.accepted),
            "steps": summary.steps,
            "measured": jobs.measured(plan, self.seed, folder / "student"),
        }


def recipe_jobs(plan: Plan, recipes: Sequence[str], seeds: Sequence[int]) -> list[RecipeJob]:
    """Return a job for every recipe and seed."""
    return [RecipeJob(plan, recipe, seed) for seed in seeds for recipe in recipes]
