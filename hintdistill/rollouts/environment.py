"""The Environment protocol: how an environment is asked for fresh traces and for success.

An environment is small on purpose, so that a verifiers, OpenEnv or Gymnasium-style tool environment wraps in a few
lines: `reset` gives the opening messages and the tool schemas, `step` takes one assistant message and gives the
messages that answer it. A `TaskSuite` says which tasks exist; `check` measures, and judges twins if they are made. A suite
may have a third method, `tool_effects`, that says which tools change state; see `effects_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from hintdistill.core.errors import ConfigError
from hintdistill.core.types import Finding, Message, ToolEffect, Trace


@dataclass(frozen=True)
class Start:
    """What the student sees first."""

    messages: tuple[Message, ...]
    """Assistant messages among them are an agent's greeting, before the first user message, or a demonstration, which is marked
    `given=True`, as its calls are answered by tool messages. Neither is a step of the student."""
    tools: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Reply:
    """What the environment answers to one assistant message. With `done`, `reward` says how the episode went."""

    messages: tuple[Message, ...]
    done: bool
    reward: float | None = None


class Environment(Protocol):
    """One episode at a time. Not shared between threads."""

    def reset(self, task: str) -> Start:
        """Begin `task`. Raises ValueError for a task it does not know."""
        ...

    def step(self, message: Message) -> Reply:
        """Answer one assistant message; `message.tool_calls` holds what was parsed from its text."""
        ...


@runtime_checkable
class TaskSuite(Protocol):
    """A set of tasks, split once and for all, and the environments to run them in."""

    def splits(self) -> dict[str, Sequence[str]]:
        """Task names by split, e.g. `train`, `validation`, `test`."""
        ...

    def make(self) -> Environment:
        """Return a fresh environment."""
        ...

    def check(self, trace: Trace) -> Sequence[Finding]:
        """Return the errors the environment itself can see in a trace, which may end at any step.

        Measures; where twins are made, a twin in whose step it finds an error is dropped. Never selects what is corrected.
        """
        ...


def effects_of(suite: TaskSuite) -> dict[str, ToolEffect]:
    """Return the effects of a suite's tools by name: `reads` or `changes`; empty if it does not say.

    A suite says so by a method of its own choice, `tool_effects() -> {name: "reads" | "changes"}`.

    Raises:
        ConfigError: it raised, or gave something else.
    """
    ask = getattr(suite, "tool_effects", None)
    if ask is None:
        return {}
    try:
        given = dict(ask())
    except Exception as error:
        raise ConfigError(f"tool_effects of the environment raised {type(error).__name__}: {error}") from error
    for name, effect in given.items():
        if not isinstance(name, str) or effect not in ("reads", "changes"):
            raise ConfigError(f"tool_effects of the environment says {effect!r} of {name!r}, not `reads` or `changes`")
    return given
