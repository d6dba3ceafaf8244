"""Reduce the errors without training: a rule in the system prompt, tool names limited to the list, a renamed tool.

Each is the same model on the same tasks at the same sampling. What the environment is told and what the checker reads is the
errand as it is; only what the model reads (`rule`, `renamed_tool`) or may say (`constrained_names`) differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.realmodel import play
from benchmarks.realmodel.drafted import DraftedGenerator
from hintdistill.core.types import Finding, Message, Trace
from hintdistill.injection.rendering import Renderer
from hintdistill.rollouts.environment import Reply, Start
from hintdistill.rollouts.sampling import Episode

RULE = (
    "Rule: call one listed tool at a time until every thing that the user asked for is found, each once. "
    "If a result is an error, make the same call again. When all is found, say that it is done."
)
_LISTED = re.compile(r"(\w+)\(city\)")
_NAME = re.compile(r'<tool_call>\s*\{\s*"name":\s*"([^"]*)$')


def played(arm: str, world: play.World, tasks: Sequence[str], seed: int) -> list[play.Row]:
    """The rows of every task under an arm without training. Raises KeyError for another arm."""
    return {"rule": _ruled, "constrained_names": _constrained, "renamed_tool": _renamed}[arm](world, tasks, seed)


ARMS = ("rule", "constrained_names", "renamed_tool")


class _Suite:
    """A suite that differs in something from another."""

    def __init__(self, suite: Any) -> None:
        self.suite = suite

    def __getattr__(self, name: str) -> Any:
        return getattr(self.suite, name)


# -- a rule ------------------------------------------------------------------------------------------------------------


class Ruled(_Suite):
    """Put the rule at the end of every system prompt."""

    def make(self) -> Any:
        """A fresh environment."""
        return _RuledEnvironment(self.suite.make())


class _RuledEnvironment:
    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.step = environment.step

    def reset(self, task: str) -> Start:
        start: Start = self.environment.reset(task)
        first, *rest = start.messages
        return replace(start, messages=(first.model_copy(update={"content": f"{first.content}\n\n{RULE}"}), *rest))


def _ruled(world: play.World, tasks: Sequence[str], seed: int) -> list[play.Row]:
    ruled = replace(world, suite=Ruled(world.suite))
    return play.rows_of(ruled.suite, ruled.plain(tasks, seed))


# -- names held to the list --------------------------------------------------------------------------------------------


class ListedNames:
    """Which tokens may follow while the name of a tool is being said: those that go on with a listed name, or close it."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.by_text: dict[str, list[int]] = {}
        self.closing: list[int] = []
        for id_ in range(len(renderer.tokenizer)):
            text = renderer.decode([id_])
            self.by_text.setdefault(text, []).append(id_)
            if text.startswith('"'):
                self.closing.append(id_)
        self._listed: dict[bytes, tuple[str, ...]] = {}

    def listed(self, context: np.ndarray) -> tuple[str, ...]:
        """The tools that the system prompt at the beginning of a context lists."""
        key = context[:200].tobytes()
        if key not in self._listed:
            said = self.renderer.decode(context.tolist())
            self._listed[key] = tuple(_LISTED.findall(said.partition("Tools:")[2]))
        return self._listed[key]

    def __call__(self, context: np.ndarray, step: Sequence[int]) -> list[int] | None:
        """Allowed ids after what was said of a step; None where everything is."""
        match = _NAME.search(self.renderer.decode(list(step)))
        return None if match is None else self.after(match[1], self.listed(context)) or None

    def after(self, said: str, names: Sequence[str]) -> list[int]:
        """Ids that go on from the beginning of a name; none where no listed name begins so."""
        out: dict[int, None] = {}
        for name in names:
            if not name.startswith(said):
                continue
            rest = name[len(said) :]
            if not rest:
                out.update(dict.fromkeys(self.closing))
            for length in range(1, len(rest) + 1):
                out.update(dict.fromkeys(self.by_text.get(rest[:length], ())))
        return list(out)


def _constrained(world: play.World, tasks: Sequence[str], seed: int) -> list[play.Row]:
    held = DraftedGenerator(world.engine, allowed=ListedNames(world.renderer))
    return play.rows_of(world.suite, replace(world, generator=held).plain(tasks, seed))


# -- a tool renamed ----------------------------------------------------------------------------------------------------


class Renamed(_Suite):
    """In some tasks a tool is listed under another name, by which the environment knows it too."""

    def __init__(self, suite: Any, names: Mapping[str, Mapping[str, str]]) -> None:
        """`names`: by task, what a tool is called there by its right name."""
        super().__init__(suite)
        self.names = names

    def make(self) -> Any:
        """A fresh environment."""
        return _RenamedEnvironment(self.suite.make(), self.names)

    def check(self, trace: Trace) -> Sequence[Finding]:
        """Return what the checker says about the same trace with the right names."""
        back = {said: right for right, said in self.names.get(trace.task_id or "", {}).items()}
        found: Sequence[Finding] = self.suite.check(
            trace.model_copy(update={"messages": tuple(_called(_listed_as(m, back), back) for m in trace.messages)})
        )
        return found


class _RenamedEnvironment:
    def __init__(self, environment: Any, names: Mapping[str, Mapping[str, str]]) -> None:
        self.environment, self.names = environment, names
        self.back: dict[str, str] = {}

    def reset(self, task: str) -> Start:
        start: Start = self.environment.reset(task)
        names = self.names.get(task, {})
        self.back = {said: right for right, said in names.items()}
        return replace(start, messages=tuple(_listed_as(m, names) for m in start.messages))

    def step(self, message: Message) -> Reply:
        reply: Reply = self.environment.step(_called(message, self.back))
        return reply


def _listed_as(message: Message, names: Mapping[str, str]) -> Message:
    if message.role != "system" or not names:
        return message
    text = _LISTED.sub(lambda m: f"{names.get(m[1], m[1])}(city)", message.content or "")
    return message.model_copy(update={"content": text})


def _called(message: Message, names: Mapping[str, str]) -> Message:
    calls = tuple(c.model_copy(update={"name": names.get(c.name, c.name)}) for c in message.tool_calls)
    return message.model_copy(update={"tool_calls": calls}) if calls else message


def said_names(suite: Any, episodes: Sequence[Episode]) -> dict[str, dict[str, str]]:
    """By task, the name that the model made up at its first error for a tool that is listed; absent without such an error."""
    out: dict[str, dict[str, str]] = {}
    for episode in episodes:
        first = min(suite.check(episode.trace), key=lambda f: f.step, default=None)
        if first is None or first.error_class != "unknown_tool" or "right" not in first.facts:
            continue
        said = first.facts["wrong"]
        if re.fullmatch(r"\w+", said):
            out[episode.task] = {first.facts["right"]: said}
    return out


def _renamed(world: play.World, tasks: Sequence[str], seed: int) -> list[play.Row]:
    plain = world.plain(tasks, seed)
    names = said_names(world.suite, plain)
    rows = {e.task: row for e, row in zip(plain, play.rows_of(world.suite, plain), strict=True)}
    again = [t for t in tasks if t in names]
    if again:
        renamed = replace(world, suite=Renamed(world.suite, names))
        for row in play.rows_of(renamed.suite, renamed.plain(again, seed)):
            rows[row["task"]] = row
    return [rows[t] for t in tasks]
