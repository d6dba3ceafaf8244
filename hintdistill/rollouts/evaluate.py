"""Success and error rates in an environment."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.engines.transformers import TransformersEngine
from hintdistill.errors import ConfigError, EnvironmentFailure
from hintdistill.rendering import Renderer
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.sampling import Sampler, SamplingOptions


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
    """Episodes that came to nothing, by reason; they count as unsuccessful."""


def load_suite(spec: str) -> TaskSuite:
    """A TaskSuite from `path/to/file.py:Name` or `package.module:Name`.

    Raises:
        ConfigError: the module or the name does not exist, or is no TaskSuite.
    """
    where, sep, name = spec.rpartition(":")
    if not sep:
        raise ConfigError(f"rollout.environment={spec!r} is not of the form path/to/file.py:Name")
    try:
        module = _module_of(where)
        suite = getattr(module, name)
        suite = suite() if isinstance(suite, type) else suite
    except FileNotFoundError:
        raise ConfigError(f"no environment file at {where}") from None
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load the environment {spec}: {error}") from error
    if not isinstance(suite, TaskSuite):
        raise ConfigError(f"{spec} is no TaskSuite", hint="it needs splits(), make() and check(trace)")
    return suite


def _module_of(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where).resolve()
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"hintdistill_environment_{path.stem}"
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being executed
    spec.loader.exec_module(module)
    return module


def tasks_of(suite: TaskSuite, split: str, limit: int | None) -> list[str]:
    """The tasks of a split. Raises ConfigError naming the splits there are."""
    splits = suite.splits()
    if split not in splits:
        raise ConfigError(f"the environment has no split {split!r}", hint=f"it has {', '.join(splits)}")
    return list(splits[split])[:limit]


def evaluate(
    engine: TransformersEngine,
    renderer: Renderer,
    suite: TaskSuite,
    tasks: Sequence[str],
    options: SamplingOptions,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Play every task once and count.

    Raises:
        EnvironmentFailure: not a single episode came to an end.
    """
    success, erring = 0, 0
    by_class: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for episode in Sampler(engine, renderer, options).episodes(suite, tasks, progress):
        if episode.failure:
            failures[episode.failure] += 1
        success += int((episode.trace.reward or 0.0) > 0.5)
        classes = {f.error_class for f in suite.check(episode.trace) if f.caused_by is None}
        erring += bool(classes)
        by_class.update(classes)
    n = len(tasks)
    if n and sum(failures.values()) == n:
        reason, count = failures.most_common(1)[0]
        raise EnvironmentFailure(f"all {n} episodes failed; {count} of them: {reason}")
    return Evaluation(
        episodes=n,
        success_rate=success / n if n else 0.0,
        error_rate=erring / n if n else 0.0,
        errors={k: v / n for k, v in sorted(by_class.items())},
        failures=dict(failures.most_common(5)),
    )
