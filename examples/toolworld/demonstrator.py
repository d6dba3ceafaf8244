"""The policy behind the student's training corpus: right actions, four bad habits at fixed rates; it follows hints.

The student learns from these episodes alone. A relevant hint in context always prevents the habit it speaks of; any
other hint (generic, another task's, another habit's, shuffled words) leaves the habit at its rate. Relevant and
irrelevant hints are balanced: in a prototype where relevant ones prevailed, any hint at all halved the errors.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hints import TRAINED, shuffled, slots, spoken
from world import (
    GIVE_UP,
    HABITS,
    HELD_OUT_KINDS,
    KINDS,
    Kind,
    Task,
    ToolworldEnvironment,
    compact,
)

from hintdistill.core.types import Message, ToolCall

RATES = {"unknown_tool": 0.61, "wrong_argument": 0.40, "skipped_lookup": 0.85, "ignored_error": 1.0}
"""How often each habit fires at its trigger without a relevant hint. The trained student overshoots by a tenth or so,
which is why these are below the rates aimed at (.75, .6, .9, 1)."""

TRIGGER_HABIT = {"alias": "unknown_tool", "noun": "wrong_argument", "urgent": "skipped_lookup"}
TRIGGER_MIX = {
    "none": 0.17,
    "given": 0.08,
    "alias": 0.21,
    "noun": 0.21,
    "urgent": 0.19,
    "near_alias": 0.05,
    "near_noun": 0.05,
    "near_urgent": 0.04,
}
"""The natural mix of tasks."""
CORPUS_MIX = {
    "none": 0.08,
    "given": 0.06,
    "renamed": 0.13,
    "alias": 0.18,
    "noun": 0.18,
    "urgent": 0.17,
    "near_alias": 0.07,
    "near_noun": 0.08,
    "near_urgent": 0.05,
}
"""The mix of the student's corpus: more near-misses, so that it knows for sure when a habit's behaviour is right."""
FAULT_MIX = {"none": 0.55, "timeout": 0.30, "busy": 0.09, "warning": 0.06}
P_RELEVANT = {"unknown_tool": 0.32, "wrong_argument": 0.34, "skipped_lookup": 0.36, "ignored_error": 0.32}
P_PLACEBO = 0.35
P_NORMAL_CONFIRM = 0.06
P_NORMAL_PLACEBO = 0.10
P_SYSTEM_PROMPT = 0.25
P_OBSERVATION = 0.20
P_GIVE_UP = 0.75
P_TWO_SENTENCES = 0.30
"""Share of hints that join two wordings, so that hints in words the corpus never had are heeded too."""
PLACEBO_MIX = {"generic": 0.32, "other_task": 0.18, "other_habit": 0.20, "shuffled": 0.30}

THOUGHTS = {
    True: ("Next I call {tool} with {param}.", "For this I need {tool}, which takes {param}."),
    False: ("I have to look this up.", "A tool can tell me that."),
}
"""What is thought before a call in the variant with reasoning: lines that name the call (true), and lines that do not."""
P_NAMING = 0.5


def draw(rng: random.Random, mix: dict[str, float]) -> str:
    """One key of `mix` by its weight."""
    return rng.choices(list(mix), weights=list(mix.values()))[0]


def draw_task(
    rng: random.Random,
    names: str = "old",
    kinds: tuple[str, ...] = tuple(KINDS),
    mix: dict[str, float] = TRIGGER_MIX,
    **fixed: str,
) -> str:
    """A task name from a mix of triggers; `trigger` and `fault` can be fixed."""
    kind = KINDS[rng.choice(kinds)]
    while True:
        trigger = fixed.get("trigger") or draw(rng, mix)
        if trigger in ("given", "urgent") and len(kind.calls) == 1:
            if "trigger" in fixed:
                kind = KINDS[rng.choice(kinds)]
            continue
        break
    fault = fixed.get("fault") or draw(rng, FAULT_MIX)
    return f"{kind.name}.{trigger}.{fault}.{names}.{rng.randrange(10**6)}"


@dataclass
class Episode:
    """A demonstrated run, with the habit error of each step (None where the step is right)."""

    task: Task
    messages: list[Message]
    errors: list[str | None] = field(default_factory=list)


class Demonstrator:
    """Plays one task in the environment."""

    def __init__(
        self,
        task: str,
        rng: random.Random,
        rates: dict[str, float] = RATES,
        hints: bool = True,
        thoughts: bool = False,
    ) -> None:
        """`thoughts` puts a line of reasoning before each call, in the content; what is called stays as it is."""
        self.rng, self.rates, self.hints, self.thoughts = rng, rates, hints, thoughts
        self.env = ToolworldEnvironment()
        start = self.env.reset(task)
        self.task = self.env.task
        self.episode = Episode(self.task, list(start.messages))
        self.first_habit = TRIGGER_HABIT.get(self.task.trigger)
        self.modes = {h: self._mode(h) for h in (self.first_habit, "ignored_error") if h}
        if self.task.fault != "timeout":
            self.modes.pop("ignored_error", None)
        for habit, (mode, where) in self.modes.items():
            if mode and where == "system":
                self._append_to(0, self._hint(habit, mode))

    def _mode(self, habit: str) -> tuple[str | None, str]:
        """Choose the hint at the trigger of `habit`, and its place."""
        u = self.rng.random()
        mode = "relevant" if u < P_RELEVANT[habit] else "placebo" if u < P_RELEVANT[habit] + P_PLACEBO else None
        where = "system" if self.rng.random() < P_SYSTEM_PROMPT else "step"
        return (mode if self.hints else None), where

    def play(self) -> Episode:
        """Run to the end."""
        calls = self._calls(skip=False)
        at, value, habit = 0, None, self.first_habit
        while True:
            self._place_hint(habit)
            fires = habit is not None and self.modes[habit][0] != "relevant" and self.rng.random() < self.rates[habit]
            error = habit if fires else None
            if fires and habit == "skipped_lookup":
                calls = self._calls(skip=True)
            if fires and habit == "ignored_error":
                return self._finish(self._invented(), error)
            if at == len(calls):
                return self._finish(self.task.kind.answer.format(entity=self.task.entity, value=value), error)
            result = self._call(calls, at, value, error)
            habit = None
            if "error" not in result:
                value = next(v for k, v in result.items() if k != "warning")
                at += 1
            elif result["error"] == "timeout":
                habit = "ignored_error"
            elif result["error"] != "busy" and self.rng.random() < P_GIVE_UP:
                self._place_hint(None)
                return self._finish(GIVE_UP, None)

    def _calls(self, skip: bool) -> list[tuple[str, str, str | None]]:
        """Tool, first parameter and other parameter of each call on the path taken."""
        offset = len(self.task.kind.calls) - len(self.task.plan)
        path = []
        for (tool, args), call in zip(self.task.plan, self.task.kind.calls[offset:], strict=True):
            path.append((tool, next(iter(args)), call.other))
        return path[1:] if skip else path

    def _call(
        self, calls: list[tuple[str, str, str | None]], at: int, value: str | None, error: str | None
    ) -> dict[str, str]:
        tool, param, other = calls[at]
        if error == "unknown_tool":
            tool = self.task.kind.alias_tool
        if error == "wrong_argument":
            param = self.task.kind.noun
        first = self.task.plan[0][1][calls[0][1]] if len(calls) == len(self.task.plan) else self.task.entity
        args: dict[str, object] = {param: first if at == 0 else value}
        if other:
            args[other] = self.task.n
        thought = self._thought(tool, param) if self.thoughts else None
        calls_made = (ToolCall(name=tool, arguments_raw=compact(args)),)
        message = Message(role="assistant", content=thought, tool_calls=calls_made)
        self.episode.messages.append(message)
        self.episode.errors.append(error)
        reply = self.env.step(message)
        self.episode.messages.extend(reply.messages)
        return json.loads(reply.messages[-1].content or "")

    def _thought(self, tool: str, param: str) -> str:
        """A line of reasoning, which names the call half the time: then an error stands in the reasoning first."""
        line = self.rng.choice(THOUGHTS[self.rng.random() < P_NAMING])
        return f"<think>{line.format(tool=tool, param=param)}</think>"

    def _finish(self, text: str, error: str | None) -> Episode:
        self.episode.messages.append(Message(role="assistant", content=text))
        self.episode.errors.append(error)
        return self.episode

    def _invented(self) -> str:
        digits = self.task.kind.calls[-1].digits
        value = str(self.rng.randint(10 ** (digits - 1), 10**digits - 1))
        return self.task.kind.answer.format(entity=self.task.entity, value=value)

    def _place_hint(self, habit: str | None) -> None:
        """Put the hint of this step, if any, right above it."""
        if not self.hints:
            return
        if habit is not None:
            mode, where = self.modes[habit]
            if mode is None or where == "system":
                return
            text = self._hint(habit, mode)
        else:
            u = self.rng.random()
            if u < P_NORMAL_CONFIRM:
                text = self._confirm()
            elif u < P_NORMAL_CONFIRM + P_NORMAL_PLACEBO:
                text = self._placebo(None)
            else:
                return
        if self.rng.random() < P_OBSERVATION:
            self._append_to(-1, text)
        else:
            self.episode.messages.append(Message(role=self.rng.choice(("user", "system")), content=text))

    def _append_to(self, index: int, text: str) -> None:
        message = self.episode.messages[index]
        self.episode.messages[index] = message.model_copy(update={"content": f"{message.content}\n\n{text}"})

    def _hint(self, habit: str, mode: str) -> str:
        if mode == "placebo":
            return self._placebo(habit)
        return self._say(TRAINED[habit], facts(self.task.kind, habit, self._tools()))

    def _tools(self) -> str:
        return ", ".join(t["function"]["name"] for t in self.task.tools)

    def _confirm(self) -> str:
        """A hint that agrees with what happens anyway."""
        kind = self.task.kind
        habit = self.rng.choice(HABITS if len(kind.calls) > 1 else tuple(h for h in HABITS if h != "skipped_lookup"))
        if self.task.trigger.startswith(("near_", "renamed")) or self.task.trigger in TRIGGER_HABIT:
            return self._placebo(None)
        return self._say(TRAINED[habit], facts(kind, habit, self._tools()))

    def _placebo(self, habit: str | None) -> str:
        """A hint that does not speak of `habit` at this step."""
        kind, tools = self.task.kind, self._tools()
        sort = draw(self.rng, PLACEBO_MIX)
        if sort == "shuffled" and habit is not None:
            return shuffled(self._say(TRAINED[habit], facts(kind, habit, tools)), self.rng)
        if sort == "other_task":
            other = KINDS[self.rng.choice([k for k in KINDS if k != kind.name])]
            about = self.rng.choice([h for h in HABITS if h != "skipped_lookup" or len(other.calls) > 1])
            words = [w for w in TRAINED[about] if about != habit or slots(w) & {"wrong", "right", "tool"}]
            if about == habit == "wrong_argument" and (other.noun == kind.noun or other.entity == kind.entity):
                words = [w for w in words if "tool" in slots(w)]
            return self._say(words, facts(other, about, tools))
        if sort == "other_habit" and habit is not None:
            about = self.rng.choice(
                [
                    h
                    for h in HABITS
                    if h != habit
                    and (h, habit) != ("skipped_lookup", "unknown_tool")
                    and (h != "skipped_lookup" or len(kind.calls) > 1)
                ]
            )
            words = [w for w in TRAINED[about] if about != "unknown_tool" or "right" not in slots(w)]
            return self._say(words, facts(kind, about, tools, self.rng.random() < 0.5))
        return self._say(TRAINED["generic"], {})

    def _say(self, words: Sequence[str], slots: dict[str, str]) -> str:
        count = 2 if len(words) > 1 and self.rng.random() < P_TWO_SENTENCES else 1
        return " ".join(spoken(w, self.rng).format(**slots) for w in self.rng.sample(list(words), count))


def facts(kind: Kind, habit: str, tools: str, misnamed: bool = False) -> dict[str, str]:
    """The facts a hint about `habit` may name. With `misnamed`, the tool slot holds the tool that does not exist."""
    first, last = kind.calls[0], kind.calls[-1]
    tool = last.tool if habit == "ignored_error" else first.tool
    return {
        "wrong": kind.alias_tool if habit == "unknown_tool" else kind.noun,
        "right": first.tool if habit == "unknown_tool" else first.param,
        "tool": kind.alias_tool if misnamed and habit != "skipped_lookup" else tool,
        "tools": tools,
        "argument": first.gives,
    }


def rollout_kinds() -> tuple[str, ...]:
    """The task kinds that may appear in rollouts for distillation."""
    return tuple(k for k in KINDS if k not in HELD_OUT_KINDS)
