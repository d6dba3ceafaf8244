"""Success and error rates in an environment."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hintdistill.core.errors import ConfigError, EnvironmentFailure
from hintdistill.core.extensions import ENVIRONMENTS
from hintdistill.core.importing import load_object
from hintdistill.core.registry import loaded
from hintdistill.core.types import Finding, Trace
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.rendering import Renderer
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.sampling import Episode, Sampler, SamplingOptions


@dataclass(frozen=True)
class Outcome:
    """How one episode went; what paired comparisons are made of."""

    task: str
    success: bool
    errors: tuple[str, ...]
    """Classes of the root errors that the environment's own checker sees."""
    failure: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """How one set of weights did on one split; shares are of episodes."""

    episodes: int
    success_rate: float
    error_rate: float
    """Share of episodes with at least one root error that the environment's own checker sees."""
    errors: dict[str, float]
    """Share of episodes with a root error of that class."""
    failures: dict[str, int]
    """Episodes that came to nothing or ran into a limit of tokens, by reason; they count as unsuccessful."""


def load_suite(spec: str) -> TaskSuite:
    """A TaskSuite from `path/to/file.py:Name` or `package.module:Name`, or by the name that a package has registered.

    Raises:
        ConfigError: the module or the name does not exist, or is no TaskSuite.
    """
    if ":" not in spec and spec in ENVIRONMENTS:
        suite = loaded(ENVIRONMENTS.get(spec).implementation)
    else:
        suite = load_object(spec, "rollout.environment", "environment")
    suite = suite() if isinstance(suite, type) else suite
    if not isinstance(suite, TaskSuite):
        raise ConfigError(f"{spec} is no TaskSuite", hint="it needs splits(), make() and check(trace)")
    return suite


def tasks_of(suite: TaskSuite, split: str, limit: int | None = None, patterns: Sequence[str] = ("*",)) -> list[str]:
    """The tasks of a split whose names match one of the shell-style patterns.

    Raises:
        ConfigError: there is no such split (the error names those there are), or no task matches.
    """
    splits = suite.splits()
    if split not in splits:
        raise ConfigError(f"the environment has no split {split!r}", hint=f"it has {', '.join(splits)}")
    found = [t for t in splits[split] if any(fnmatch.fnmatchcase(t, p) for p in patterns)]
    if not found:
        raise ConfigError(f"no task of the split {split!r} matches {', '.join(patterns)}")
    return found[:limit]


def checked(suite: TaskSuite, trace: Trace) -> list[Finding]:
    """What the environment's own checker sees in a trace. Raises EnvironmentFailure where it raises or gives no findings."""
    try:
        found = list(suite.check(trace))
    except Exception as error:
        raise EnvironmentFailure(f"check raised {type(error).__name__}: {error}") from error
    if not all(isinstance(f, Finding) for f in found):
        raise EnvironmentFailure("check returned something else than findings")
    return found


def outcome_of(suite: TaskSuite, episode: Episode) -> Outcome:
    """Judge a finished episode; one that the checker breaks on counts as failed, with the reason."""
    try:
        found = checked(suite, episode.trace)
    except EnvironmentFailure as error:
        return Outcome(episode.task, False, (), episode.failure or episode.cut or error.message)
    classes = sorted({f.error_class for f in found if f.caused_by is None})
    success = episode.failure is None and (episode.trace.reward or 0.0) > 0.5
    return Outcome(episode.task, success, tuple(classes), episode.failure or episode.cut)


def summarise(outcomes: Iterable[Outcome]) -> Evaluation:
    """Rates over outcomes.

    Raises:
        EnvironmentFailure: not a single episode came to an end.
    """
    played = list(outcomes)
    failures = Counter(o.failure for o in played if o.failure)
    if played and sum(failures.values()) == len(played):
        reason, count = failures.most_common(1)[0]
        raise EnvironmentFailure(f"all {len(played)} episodes failed; {count} of them: {reason}")
    n = max(1, len(played))
    by_class = Counter(c for o in played for c in o.errors)
    return Evaluation(
        episodes=len(played),
        success_rate=sum(o.success for o in played) / n,
        error_rate=sum(bool(o.errors) for o in played) / n,
        errors={k: v / n for k, v in sorted(by_class.items())},
        failures=dict(failures.most_common(5)),
    )


def evaluate(
    engine: TransformersEngine,
    renderer: Renderer,
    suite: TaskSuite,
    tasks: Sequence[str],
    options: SamplingOptions,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Play every task once and count. Raises EnvironmentFailure where not a single episode came to an end."""
    episodes = Sampler(engine, renderer, options).episodes(suite, tasks, progress)
    return summarise(outcome_of(suite, e) for e in episodes)
