"""Any Gymnasium environment with discrete or text actions as a TaskSuite (needs the extra `gymnasium`).

    # lake.py, then rollout.environment=lake.py:LAKE
    LAKE = GymnasiumSuite("FrozenLake-v1", "Cross the lake without falling in.", actions=("left", "down", "right", "up"),
                          is_slippery=False)

A task is a seed. Discrete actions become one tool, `act`, whose argument is an enum of the action names; text actions
are the assistant's own words. The observation is the text that the environment renders (`render_mode="ansi"`), or else
the observation itself in written form. A call that is not an action is answered with an error; it costs a step, but
does not end the episode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hintdistill.core.errors import ConfigError, EnvironmentFailure
from hintdistill.core.types import Finding, Message, Trace
from hintdistill.rollouts.environment import Environment, Reply, Start

_MARKED = re.compile(r"\x1b\[[\d;]*m([^\x1b]*)\x1b\[0m")
_ESCAPES = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
SPLITS = {"train": 1000, "validation": 200, "test": 300}
"""Number of tasks per split; the seeds of the splits do not overlap."""


class GymnasiumSuite:
    """Define the tasks of one Gymnasium environment id."""

    def __init__(
        self,
        env_id: str,
        goal: str,
        *,
        actions: Sequence[str] = (),
        splits: Mapping[str, int] = SPLITS,
        max_turns: int | None = None,
        success: Callable[[float], float] = float,
        opening: Sequence[Message] = (),
        **settings: Any,
    ) -> None:
        """
        Args:
            env_id: an id for `gymnasium.make`.
            goal: the text that the student reads first.
            actions: a name for each discrete action; default `action_0`, `action_1`, …
            max_turns: number of assistant messages after which an episode ends; default: the environment's own limit.
            success: maps the sum of the episode's rewards to the reward of the trace.
            opening: messages between goal and first observation: a demonstration, whose assistant messages are
                `given=True`.
            settings: passed to `gymnasium.make`.

        Raises:
            ConfigError: Gymnasium is not installed, the id is unknown, or its actions are neither discrete nor text.
        """
        self.env_id, self.goal, self.settings, self._splits = env_id, goal, settings, dict(splits)
        self.max_turns, self.success, self.opening = max_turns, success, tuple(opening)
        self.actions = tuple(actions)
        probe = self._new()
        spaces = _gymnasium().spaces
        if isinstance(probe.action_space, spaces.Discrete):
            count = int(probe.action_space.n)
            self.actions = self.actions or tuple(f"action_{i}" for i in range(count))
            if len(self.actions) != count:
                raise ConfigError(f"{env_id} has {count} actions, but {len(self.actions)} names were given")
        elif not isinstance(probe.action_space, spaces.Text) or self.actions:
            raise ConfigError(
                f"{env_id} takes {probe.action_space}; a student can write only discrete and text actions"
            )
        self.first_action = int(getattr(probe.action_space, "start", 0))
        probe.close()

    def _new(self) -> Any:
        gymnasium = _gymnasium()
        try:
            plain = gymnasium.make(self.env_id, **self.settings)
            if "ansi" not in plain.metadata.get("render_modes", ()):
                return plain
            plain.close()
            return gymnasium.make(self.env_id, render_mode="ansi", **self.settings)
        except gymnasium.error.Error as error:
            raise ConfigError(f"gymnasium cannot make {self.env_id}: {error}") from error

    def splits(self) -> dict[str, Sequence[str]]:
        """Return seeds by split."""
        out: dict[str, Sequence[str]] = {}
        first = 0
        for name, count in self._splits.items():
            out[name] = [f"{self.env_id}:{seed}" for seed in range(first, first + count)]
            first += count
        return out

    def make(self) -> Environment:
        """Return a fresh environment."""
        return GymnasiumEnvironment(self)

    def check(self, trace: Trace) -> list[Finding]:
        """Return the calls that were not actions of this environment, which can be detected without knowing the
        game."""
        return [
            Finding(step=k, error_class="illegal_action", critic="gymnasium")
            for k, i in enumerate(trace.step_indices)
            if k not in trace.given_steps and _error_after(trace, i)
        ]


class GymnasiumEnvironment:
    """Run one episode of a Gymnasium environment."""

    def __init__(self, suite: GymnasiumSuite) -> None:
        self.suite, self.env = suite, suite._new()
        self.total, self.turns = 0.0, 0

    def reset(self, task: str) -> Start:
        """Begin `task`, e.g. `FrozenLake-v1:17`; see `Environment`."""
        name, _, seed = task.rpartition(":")
        if name != self.suite.env_id or not seed.isdigit():
            raise ValueError(f"{task!r} is not a task of {self.suite.env_id}: expected {self.suite.env_id}:<seed>")
        observation, _ = self.env.reset(seed=int(seed))
        system, user = (
            Message(role="system", content=self.suite.goal),
            Message(role="user", content=self._say(observation)),
        )
        return Start((system, *self.suite.opening, user), self._tools())

    def step(self, message: Message) -> Reply:
        """Take the action that the message names; see `Environment`."""
        self.turns += 1
        try:
            action = self._action(message)
        except EnvironmentFailure as error:
            return self._answer(message, json.dumps({"error": error.message}), self._out_of_turns())
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.total += float(reward)
        done = bool(terminated or truncated) or self._out_of_turns()
        return self._answer(message, self._say(observation), done)

    def close(self) -> None:
        """Release the environment."""
        self.env.close()

    def _out_of_turns(self) -> bool:
        return self.suite.max_turns is not None and self.turns >= self.suite.max_turns

    def _answer(self, message: Message, text: str, done: bool) -> Reply:
        calls = message.tool_calls
        replies = (
            tuple(
                Message(
                    role="tool",
                    content=text if i == 0 else '{"error": "one action at a time"}',
                    name=c.name,
                    tool_call_id=c.id,
                )
                for i, c in enumerate(calls)
            )
            if calls
            else (Message(role="user", content=text),)
        )
        return Reply(replies, done, self.suite.success(self.total) if done else None)

    def _action(self, message: Message) -> Any:
        if not self.suite.actions:
            text = (message.content or "").strip()
            if not self.env.action_space.contains(text):
                raise EnvironmentFailure("this text is not an action here")
            return text
        if not message.tool_calls:
            raise EnvironmentFailure("call the tool act")
        call = message.tool_calls[0]
        name = (call.arguments or {}).get("action")
        if call.name != "act" or name not in self.suite.actions:
            raise EnvironmentFailure(f"call act with one of {', '.join(self.suite.actions)}")
        return self.suite.first_action + self.suite.actions.index(name)

    def _tools(self) -> tuple[dict[str, Any], ...]:
        if not self.suite.actions:
            return ()
        parameters = {
            "type": "object",
            "properties": {"action": {"type": "string", "enum": list(self.suite.actions)}},
            "required": ["action"],
            "additionalProperties": False,
        }
        return (
            {
                "type": "function",
                "function": {"name": "act", "description": "Take one action.", "parameters": parameters},
            },
        )

    def _say(self, observation: Any) -> str:
        if self.env.render_mode == "ansi":
            # a terminal's highlighting says where the student stands; without a terminal, brackets do
            return _ESCAPES.sub("", _MARKED.sub(r"[\1]", str(self.env.render()))).strip("\n")
        if isinstance(observation, str):
            return observation
        return json.dumps(observation, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)


def _error_after(trace: Trace, index: int) -> bool:
    following = trace.messages[index + 1 : index + 2]
    return bool(following) and (following[0].content or "").startswith('{"error"')


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError:
        raise ConfigError("this environment needs Gymnasium", hint="pip install 'hintdistill[gymnasium]'") from None
    return gymnasium
