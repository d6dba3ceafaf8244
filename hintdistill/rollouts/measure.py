"""What one set of weights does in an environment, task by task, and how far it moved where nothing should have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hintdistill.config import RolloutSection
from hintdistill.core.errors import EnvironmentFailure, HintdistillError
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.types import Trace
from hintdistill.injection.rendering import Renderer
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.evaluate import checked
from hintdistill.rollouts.generation import SamplingOptions
from hintdistill.rollouts.sampling import Episode


@dataclass(frozen=True)
class Setting:
    """A split at a temperature."""

    split: str
    temperature: float

    @property
    def name(self) -> str:
        """E.g. `test@0`, `test@1`."""
        return f"{self.split}@{self.temperature:g}"


def options_of(section: RolloutSection, temperature: float, seed: int, logprobs: bool = False) -> SamplingOptions:
    """Sampling options of a config section."""
    return SamplingOptions(
        temperature=temperature,
        max_new_tokens=section.max_new_tokens,
        max_steps=section.max_steps,
        batch_size=section.batch_size,
        seed=seed,
        logprobs=logprobs,
        timeout_s=section.timeout_s,
    )


def off_target_sets(
    suite: TaskSuite, renderer: Renderer, episodes: Sequence[Episode], limit: int, seed: int
) -> dict[str, list[ScoreRequest]]:
    """Steps of the initial policy's own episodes on measured tasks that no loss touches.

    `other_steps`: steps without an error, of traces with one; `clean`: steps of traces without any. The environment's own
    checker decides, because nothing is trained on these.

    Args:
        limit: at most this many steps per set, drawn with `seed`.
    """
    chosen: dict[str, list[tuple[Trace, int]]] = {"other_steps": [], "clean": []}
    for episode in episodes:
        if episode.failure is not None:
            continue
        trace = episode.trace
        try:
            wrong = {f.step for f in checked(suite, trace)}
        except EnvironmentFailure:
            continue  # what is wrong in it is unknown
        name = "other_steps" if wrong else "clean"
        chosen[name] += [(trace, k) for k in range(len(trace.step_indices)) if k not in wrong]
    return {name: _requests(renderer, steps, limit, seed) for name, steps in chosen.items() if steps}


def step_requests(renderer: Renderer, episodes: Sequence[Episode], limit: int, seed: int) -> list[ScoreRequest]:
    """Every step of successful episodes, e.g. on near-misses."""
    good = [e.trace for e in episodes if e.failure is None and (e.trace.reward or 0.0) > 0.5]
    return _requests(renderer, [(t, k) for t in good for k in range(len(t.step_indices))], limit, seed)


def _requests(renderer: Renderer, steps: list[tuple[Trace, int]], limit: int, seed: int) -> list[ScoreRequest]:
    if len(steps) > limit:
        steps = random.Random(f"off-target:{seed}").sample(steps, limit)
    out = []
    for trace, k in steps:
        try:
            rendered = renderer.step(trace, k)
        except HintdistillError:
            continue
        ids = np.array(rendered.context_ids + rendered.step_ids, np.int64)
        out.append(ScoreRequest(ids, len(rendered.context_ids), len(ids)))
    return out


def describe(options: SamplingOptions) -> dict[str, object]:
    """Options as plain data, for keys."""
    return asdict(options)
