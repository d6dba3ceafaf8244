"""Measure a student in an environment, task by task, and its movement on steps that should not have changed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hintdistill.config.rollout import RolloutSection, SampleSection
from hintdistill.core.errors import EnvironmentFailure, HintdistillError
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.types import SampledFrom, Trace
from hintdistill.injection.rendering import Renderer
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.evaluate import checked
from hintdistill.rollouts.generation import SamplingOptions
from hintdistill.rollouts.sampling import Episode


@dataclass(frozen=True)
class Setting:
    """Define a split, and the distribution from which its episodes are sampled."""

    split: str
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @classmethod
    def of(cls, split: str, how: SampledFrom) -> Setting:
        """Return the setting of a split."""
        return cls(split, **how.model_dump())

    @property
    def how(self) -> SampledFrom:
        """Return the distribution."""
        return SampledFrom(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p)

    @property
    def name(self) -> str:
        """Return a name such as `test@0`, `test@1`, `test@0.7,top_p=0.9`."""
        filters = [f",{n}={v:g}" for n, v in self.how.model_dump(exclude_defaults=True).items() if n != "temperature"]
        return f"{self.split}@{self.temperature:g}{''.join(filters)}"


def measured_from(section: RolloutSection) -> SampledFrom:
    """Return the distribution from which success is measured."""
    return _distribution(section)


def played_from(section: RolloutSection) -> SampledFrom:
    """Return the distribution from which the fresh episodes of a round are sampled."""
    return _distribution(section.sample)


def _distribution(section: RolloutSection | SampleSection) -> SampledFrom:
    if section.temperature == 0:
        # greedy: no filter can change the likeliest token
        return SampledFrom(temperature=0.0)
    return SampledFrom(temperature=section.temperature, top_p=section.top_p, top_k=section.top_k, min_p=section.min_p)


def options_of(section: RolloutSection, how: SampledFrom | float, seed: int, logprobs: bool = False) -> SamplingOptions:
    """Return the sampling options of a config section; `how` is a distribution, or a temperature without filters."""
    drawn = how if isinstance(how, SampledFrom) else SampledFrom(temperature=how)
    return SamplingOptions(
        **drawn.model_dump(),
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
    """Return steps from the initial policy's own episodes on measured tasks that no loss touches.

    `other_steps`: steps without an error, from traces with one; `clean`: steps from traces without any. The
    environment's own checker decides, because these steps are not trained on.

    Args:
        limit: maximum number of steps per set, drawn with `seed`.
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
        chosen[name] += [(trace, k) for k in trace.own_steps if k not in wrong]
    return {name: _requests(renderer, steps, limit, seed) for name, steps in chosen.items() if steps}


def step_requests(renderer: Renderer, episodes: Sequence[Episode], limit: int, seed: int) -> list[ScoreRequest]:
    """Return every step of successful episodes, e.g. on near-misses."""
    good = [e.trace for e in episodes if e.failure is None and (e.trace.reward or 0.0) > 0.5]
    return _requests(renderer, [(t, k) for t in good for k in t.own_steps], limit, seed)


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
    """Return the options as plain data for keys; filters without effect are left out."""
    data = asdict(options)
    plain = SampledFrom().model_dump(exclude={"temperature"})
    return {name: value for name, value in data.items() if name not in plain or value != plain[name]}
