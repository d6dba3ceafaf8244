"""The features that the training stage offers to recipes; a recipe that needs any other feature stops the run before it
starts. This module does not import torch."""

from __future__ import annotations

from hintdistill.config import RunConfig, TrainSection
from hintdistill.core.extensions import ENGINES


def available(config: TrainSection, engine: str = "transformers", several: bool = True) -> frozenset[str]:
    """Return the needs (names of `recipes.needs.HOW`) that a training run with these settings meets.

    Traces may carry rewards, and the tasks they name form groups; if they do not, the run reports it after reading
    them.

    Args:
        engine: `rescore.engine.backend`, because stored targets contain only what that engine can return.
        several: whether a task may have several rollouts, or all rollouts of a round are compared.
    """
    outcome = {"reward", "several_rollouts"} if several else {"reward"}
    if config.target_source == "stored":
        return frozenset(outcome | ({"union_support"} if "gather" in ENGINES.get(engine).capabilities else set()))
    met = {"union_support", "in_step_teacher", "full_vocabulary"} | outcome
    return frozenset(met | ({"external_teacher"} if config.effective_recipe.teacher.model is not None else set()))


def several_rollouts(config: RunConfig) -> bool:
    """Return whether the rollouts of this run can be compared with each other; for traces from files, this is known
    only after reading them."""
    alone = config.run.rounds is not None and config.rollout.sample.per_task == 1
    return not alone or config.train.outcome.baseline == "round"
