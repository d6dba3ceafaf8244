"""The Environment protocol, by which fresh traces are sampled from an environment and success is measured.

The protocol is small, so that a tool environment in the style of verifiers, OpenEnv or Gymnasium can be wrapped in a
few lines: `reset` returns the opening messages and the tool schemas, and `step` takes one assistant message and returns
the messages that answer it. A `TaskSuite` defines the tasks; its `check` is used for measuring, and for judging twins.
A suite may have a further method, `tool_effects`, that says which tools change state; see `effects_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from hintdistill.core.errors import ConfigError
from hintdistill.core.types import Finding, Message, ToolEffect, Trace


@dataclass(frozen=True)
class Start:
    """Hold the messages and tools that the student sees first."""

    messages: tuple[Message, ...]
    """Opening messages. An assistant message among them is either an agent's greeting, before the first user message,
    or a demonstration, which is marked `given=True` and whose calls are answered by tool messages. Neither is a step of
    the student."""
    tools: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Reply:
    """Hold the environment's answer to one assistant message. With `done`, `reward` rates the episode."""

    messages: tuple[Message, ...]
    done: bool
    reward: float | None = None


class Environment(Protocol):
    """Run one episode at a time. An environment is not shared between threads."""

    def reset(self, task: str) -> Start:
        """Begin `task`. Raises ValueError for an unknown task."""
        ...

    def step(self, message: Message) -> Reply:
        """Answer one assistant message; `message.tool_calls` contains the calls parsed from its text."""
        ...


@runtime_checkable
class TaskSuite(Protocol):
    """Define a set of tasks with fixed splits, and create the environments to run them in."""

    def splits(self) -> dict[str, Sequence[str]]:
        """Return task names by split, e.g. `train`, `validation`, `test`."""
        ...

    def make(self) -> Environment:
        """Return a fresh environment."""
        ...

    def check(self, trace: Trace) -> Sequence[Finding]:
        """Return the errors in a trace that the environment itself can detect; the trace may end at any step.

        The result is used for measuring; if twins are made, a twin with an error in its step is dropped. It never
        selects what is corrected.
        """
        ...


def effects_of(suite: TaskSuite) -> dict[str, ToolEffect]:
    """Return the effects of a suite's tools by name, `reads` or `changes`; empty if the suite does not declare them.

    A suite declares them by the optional method `tool_effects() -> {name: "reads" | "changes"}`.

    Raises:
        ConfigError: the method raised an error, or returned another value.
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
            raise ConfigError(
                f"tool_effects of the environment gives the effect {effect!r} for {name!r}; it must be `reads` or "
                "`changes`"
            )
    return given
