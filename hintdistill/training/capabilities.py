"""What the training stage can give a recipe; what is not listed here stops a run before it starts. Torch-free."""

from __future__ import annotations

from hintdistill.config import RunConfig, TrainSection
from hintdistill.core.extensions import ENGINES


def available(config: TrainSection, engine: str = "transformers", several: bool = True) -> frozenset[str]:
    """Return the needs (names of `recipes.needs.HOW`) that a training with these settings meets.

    Traces may carry rewards, and the tasks they name are groups; where these do not, the run says so when it has read them.

    Args:
        engine: `rescore.engine.backend`: stored targets hold what that engine's capabilities let it be asked.
        several: whether a task may have several rollouts, or all of a round are compared.
    """
    outcome = {"reward", "several_rollouts"} if several else {"reward"}
    if config.target_source == "stored":
        return frozenset(outcome | ({"union_support"} if "gather" in ENGINES.get(engine).capabilities else set()))
    met = {"union_support", "in_step_teacher", "full_vocabulary"} | outcome
    return frozenset(met | ({"external_teacher"} if config.effective_recipe.teacher.model is not None else set()))


def several_rollouts(config: RunConfig) -> bool:
    """Return whether the rollouts of this run can be compared with each other; of traces from files that shows when
    they are read."""
    alone = config.run.rounds is not None and config.rollout.sample.per_task == 1
    return not alone or config.train.outcome.baseline == "round"
