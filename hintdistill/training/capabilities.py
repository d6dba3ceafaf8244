"""What the training stage can give a recipe; what is not listed here stops a run before it starts. Torch-free."""

from __future__ import annotations

from hintdistill.config import TrainSection


def available(config: TrainSection, engine: str = "transformers") -> frozenset[str]:
    """The needs (names of `recipes.needs.HOW`) that a training with these settings meets.

    `engine` is `rescore.engine.backend`: stored targets hold what the engine that made them could be asked.
    """
    if config.target_source == "stored":
        return frozenset({"union_support"}) if engine == "transformers" else frozenset()
    met = {"union_support", "in_step_teacher", "full_vocabulary"}
    return frozenset(met | ({"external_teacher"} if config.objective.teacher.model is not None else set()))
