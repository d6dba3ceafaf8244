"""Success and error rates in an environment."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hintdistill.core.effects import tool_effect
from hintdistill.core.errors import ConfigError, EnvironmentFailure
from hintdistill.core.extensions import ENVIRONMENTS
from hintdistill.core.importing import load_object
from hintdistill.core.registry import loaded
from hintdistill.core.types import Finding, Trace
from hintdistill.critics.rules import call_results, error_text
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.rendering import Renderer
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.generation import Generator
from hintdistill.rollouts.sampling import Episode, Sampler, SamplingOptions


@dataclass(frozen=True)
class Outcome:
    """Describe the result of one episode, for paired comparisons."""

    task: str
    success: bool
    errors: tuple[str, ...]
    """Classes of the root errors found by the environment's own checker."""
    failure: str | None = None
    calls: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By tool effect (`reads`, `changes`): the number of the student's calls, and of those answered by an error."""


@dataclass(frozen=True)
class Evaluation:
    """Hold the results of one set of weights on one split; shares are of episodes."""

    episodes: int
    success_rate: float
    error_rate: float
    """Share of episodes in which the environment's own checker finds at least one root error."""
    errors: dict[str, float]
    """Share of episodes with a root error of each class."""
    failures: dict[str, int]
    """Number of episodes that failed without a result or reached a token limit, by reason; they count as
    unsuccessful."""
    tools: dict[str, dict[str, float]] = field(default_factory=dict)
    """By tool effect (`reads`, `changes`): `calls` and `successful` calls per episode, and `error_rate`, the share of
    calls answered by an error. Empty if the effects of the tools are unknown."""


def load_suite(spec: str) -> TaskSuite:
    """Return a TaskSuite from `path/to/file.py:Name` or `package.module:Name`, or by the name under which a package has
    registered it.

    Raises:
        ConfigError: the module or the name does not exist, or is not a TaskSuite.
    """
    if ":" not in spec and spec in ENVIRONMENTS:
        suite = loaded(ENVIRONMENTS.get(spec).implementation)
    else:
        suite = load_object(spec, "rollout.environment", "environment")
    suite = suite() if isinstance(suite, type) else suite
    if not isinstance(suite, TaskSuite):
        raise ConfigError(f"{spec} is not a TaskSuite", hint="it needs splits(), make() and check(trace)")
    return suite


def tasks_of(suite: TaskSuite, split: str, limit: int | None = None, patterns: Sequence[str] = ("*",)) -> list[str]:
    """Return the tasks of a split whose names match one of the shell-style patterns.

    Raises:
        ConfigError: there is no such split (the error lists the existing ones), or no task matches.
    """
    splits = suite.splits()
    if split not in splits:
        raise ConfigError(f"the environment has no split {split!r}", hint=f"the splits are {', '.join(splits)}")
    found = [t for t in splits[split] if any(fnmatch.fnmatchcase(t, p) for p in patterns)]
    if not found:
        raise ConfigError(f"no task of the split {split!r} matches {', '.join(patterns)}")
    return found[:limit]


def checked(suite: TaskSuite, trace: Trace) -> list[Finding]:
    """Return the errors that the environment's own checker finds in a trace. Raises EnvironmentFailure if it raises or
    returns anything but findings."""
    try:
        found = list(suite.check(trace))
    except Exception as error:
        raise EnvironmentFailure(f"check raised {type(error).__name__}: {error}") from error
    if not all(isinstance(f, Finding) for f in found):
        raise EnvironmentFailure("check returned something other than findings")
    return found


def outcome_of(suite: TaskSuite, episode: Episode) -> Outcome:
    """Judge a finished episode; if the checker raises on it, it counts as failed, with the reason."""
    try:
        found = checked(suite, episode.trace)
    except EnvironmentFailure as error:
        return Outcome(episode.task, False, (), episode.failure or episode.cut or error.message)
    classes = sorted({f.error_class for f in found if f.caused_by is None})
    success = episode.failure is None and (episode.trace.reward or 0.0) > 0.5
    return Outcome(
        episode.task, success, tuple(classes), episode.failure or episode.cut, calls_by_effect(episode.trace)
    )


def calls_by_effect(trace: Trace) -> dict[str, list[int]]:
    """Count the calls in the student's own steps by tool effect, and those answered by an error."""
    out: dict[str, list[int]] = {}
    for found in call_results(trace):
        effect = tool_effect(trace, found.call.name)
        if effect is None or found.step in trace.given_steps:
            continue
        counted = out.setdefault(effect, [0, 0])
        counted[0] += 1
        counted[1] += error_text(found.result) is not None
    return out


def lost_changes(before: Evaluation, after: Evaluation, bound: float | None) -> str | None:
    """Return a message if successful state-changing calls per episode fell by a larger share than `bound`; None
    otherwise.

    Privileged distillation can lose such calls although a small split shows no fall of success.
    """
    first, last = before.tools.get("changes"), after.tools.get("changes", {"successful": 0.0})
    if bound is None or first is None or first["successful"] <= 0:
        return None
    fallen = 1 - last["successful"] / first["successful"]
    if fallen <= bound:
        return None
    return (
        f"successful state-changing calls fell by {fallen:.0%}, from {first['successful']:.3g} to "
        f"{last['successful']:.3g} per episode; the bound is {bound:.0%} (rollout.stop.max_changes_drop)"
    )


def summarise(outcomes: Iterable[Outcome]) -> Evaluation:
    """Return the rates over outcomes.

    Raises:
        EnvironmentFailure: no episode was finished.
    """
    played = list(outcomes)
    failures = Counter(o.failure for o in played if o.failure)
    if played and sum(failures.values()) == len(played):
        reason, count = failures.most_common(1)[0]
        raise EnvironmentFailure(f"all {len(played)} episodes failed; the reason for {count} of them: {reason}")
    n = max(1, len(played))
    by_class = Counter(c for o in played for c in o.errors)
    return Evaluation(
        episodes=len(played),
        success_rate=sum(o.success for o in played) / n,
        error_rate=sum(bool(o.errors) for o in played) / n,
        errors={k: v / n for k, v in sorted(by_class.items())},
        failures=dict(failures.most_common(5)),
        tools=_tools(played),
    )


def _tools(played: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    out = {}
    for effect in sorted({e for o in played for e in o.calls}):
        calls, errors = (sum(o.calls[effect][i] for o in played if effect in o.calls) for i in (0, 1))
        n = len(played)
        out[effect] = {"calls": calls / n, "successful": (calls - errors) / n, "error_rate": errors / calls}
    return out


def evaluate(
    engine: TransformersEngine,
    renderer: Renderer,
    suite: TaskSuite,
    tasks: Sequence[str],
    options: SamplingOptions,
    progress: Callable[[int], None] | None = None,
    keep: Callable[[Episode, Outcome], None] | None = None,
) -> Evaluation:
    """Play every task once and return the rates; `keep` is called with each episode. Raises EnvironmentFailure if none
    was finished."""
    return summarise(outcomes(engine, renderer, suite, tasks, options, progress, keep))


def outcomes(
    engine: TransformersEngine | Generator,
    renderer: Renderer,
    suite: TaskSuite,
    tasks: Sequence[str],
    options: SamplingOptions,
    progress: Callable[[int], None] | None = None,
    keep: Callable[[Episode, Outcome], None] | None = None,
) -> Iterator[Outcome]:
    """Play every task once and yield its outcome according to the suite's checker."""
    for episode in Sampler(engine, renderer, options).episodes(suite, tasks, progress):
        outcome = outcome_of(suite, episode)
        if keep is not None:
            keep(episode, outcome)
        yield outcome
