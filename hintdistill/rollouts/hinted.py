"""Let the hinted student act in the environment, which gives the best success that distillation could reach.

Every episode is first played without hints. If the critic finds a root error, the episode is continued from that step
with the critic's hint above it, and so on for later errors. The hint is present only for its own step, as in training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hintdistill.core.errors import HintdistillError
from hintdistill.core.types import Critique, Finding, Trace
from hintdistill.injection.splice import Injector
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.sampling import Branch, Episode, Sampler

Judge = Callable[[Sequence[Trace]], dict[str, Critique]]
"""Returns critiques by trace id; a trace that the critic could not read is absent."""


@dataclass(frozen=True)
class HintedPlay:
    """Hold the episodes that the hinted student plays."""

    episodes: tuple[Episode, ...]
    """The final state of each episode, in order."""
    corrected: tuple[Corrected, ...]
    """Every step that was sampled under a hint."""
    unplaced: dict[str, int]
    """Findings whose hint could not be spliced, by reason; their errors remain."""


@dataclass(frozen=True)
class Corrected:
    """Hold a step sampled under a hint to replace an erring one."""

    episode: Episode
    step: int
    finding: Finding


def play_hinted(
    sampler: Sampler, suite: TaskSuite, episodes: Iterable[Episode], judge: Judge, injector: Injector, passes: int = 3
) -> HintedPlay:
    """Continue finished episodes from their root errors, at most `passes` times."""
    current = list(episodes)
    hinted_at = [-1] * len(current)
    corrected: list[Corrected] = []
    unplaced: Counter[str] = Counter()
    for _ in range(passes):
        critiques = judge([e.trace for e in current if e.failure is None])
        at, branches, findings = [], [], []
        for i, episode in enumerate(current):
            finding = _next_root(critiques.get(episode.trace.id), hinted_at[i]) if episode.failure is None else None
            if finding is None:
                continue
            try:
                injection = injector.inject(episode.trace, finding)
            except HintdistillError as error:
                unplaced[error.reason] += 1
                hinted_at[i] = finding.step
                continue
            at.append(i)
            branches.append(Branch(episode.trace, finding.step, injection.context_ids, injection.hinted_context_ids))
            findings.append(finding)
        if not branches:
            break
        for i, finding, episode in zip(at, findings, sampler.branches(suite, branches), strict=True):
            current[i], hinted_at[i] = episode, finding.step
            corrected.append(Corrected(episode, finding.step, finding))
    return HintedPlay(tuple(current), tuple(corrected), dict(unplaced))


def _next_root(critique: Critique | None, after: int) -> Finding | None:
    roots = [f for f in critique.findings if f.caused_by is None and f.step > after] if critique else []
    return min(roots, key=lambda f: f.step, default=None)
