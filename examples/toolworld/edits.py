"""One-edit changes of toolworld tasks under which a habit's behaviour is right, and the environment that plays them.

An edited task is named like the task it changes, with the edit's name behind it: `weather.alias.none.new.1042.beside` is
`weather.alias.none.new.1042` with `get_forecast` listed beside `get_weather`. Which habit the edit is about follows from
the task's trigger. Names without an edit mean what they mean in world.py.

Rewards are stricter here than in world.py, for tasks with and without an edit: every call must be the plan's next one, so
that neither a call that is corrected after an error message nor a needless second call counts as right.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from world import SYSTEM, Call, Task, Toolworld, ToolworldEnvironment, call_schema, label_steps, tool_schema

from hintdistill.core.types import Finding, Message, Trace
from hintdistill.rollouts.environment import Reply, Start

Schema = dict[str, Any]
Result = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Scene:
    """A task as the student meets it, and what an edit may change of it."""

    task: Task
    system: str = SYSTEM
    announced: tuple[Schema, ...] = ()
    """Tools that the text tells of and the list does not; they can be called."""
    result: Result | None = None
    """The form of the last call's result; None leaves it unchanged."""


@dataclass(frozen=True)
class Edit:
    """A change in one place under which a habit's behaviour is right."""

    habit: str
    name: str
    where: str
    """`tools`, `request`, `system` or `observation`: the only part of the context that differs from the trigger's."""
    says: str
    """The change in words, for readers."""
    apply: Callable[[Task], Scene]

    @property
    def family(self) -> str:
        """Name among all habits' edits, e.g. `unknown_tool.beside`."""
        return f"{self.habit}.{self.name}"


def habit_of(task: Task) -> str:
    """The habit that a trigger task provokes. Raises ValueError for a task without a trigger."""
    if task.trigger == "none" and task.fault == "timeout":
        return "ignored_error"
    found = {"alias": "unknown_tool", "noun": "wrong_argument", "urgent": "skipped_lookup"}.get(task.trigger)
    if found is None or task.fault != "none":
        raise ValueError(f"{task.name} provokes no single habit, so no edit applies to it")
    return found


# -- unknown_tool: the tool that the request's word suggests exists -----------------------------------------------------


def signature(schema: Schema) -> str:
    """A tool as the student's template lists it: `get_weather(city:string)`."""
    function = schema["function"]
    params = ",".join(f"{k}:{v['type']}" for k, v in function["parameters"]["properties"].items())
    return f"{function['name']}({params})"


def _alias(task: Task) -> Schema:
    return call_schema(task.kind.calls[0], tool=task.kind.alias_tool)


def _calls_alias(task: Task, **changes: Any) -> Task:
    return replace(task, plan=((task.kind.alias_tool, task.plan[0][1]), *task.plan[1:]), **changes)


def _first(task: Task) -> int:
    """Where the list has the plan's first tool."""
    return next(i for i, s in enumerate(task.tools) if s["function"]["name"] == task.kind.calls[0].tool)


def _other(task: Task) -> int:
    """Where the list has a tool that the plan does not use. Raises ValueError where there is none."""
    used = {c.tool for c in task.kind.calls}
    found = [i for i, s in enumerate(task.tools) if s["function"]["name"] not in used]
    if not found:
        raise ValueError(f"{task.name} lists no tool beside those of its plan")
    return found[0]


def _put(task: Task, at: int, *schemas: Schema) -> tuple[Schema, ...]:
    """The tool list with `schemas` in place of the one at `at`."""
    return (*task.tools[:at], *schemas, *task.tools[at + 1 :])


def _alias_renamed(task: Task) -> Scene:
    return Scene(_calls_alias(task, tools=_put(task, _first(task), _alias(task))))


def _alias_beside(task: Task) -> Scene:
    at = _first(task)
    return Scene(_calls_alias(task, tools=_put(task, at, task.tools[at], _alias(task))))


def _alias_displaces(task: Task) -> Scene:
    return Scene(_calls_alias(task, tools=_put(task, _other(task), _alias(task))))


def _alias_in_request(task: Task) -> Scene:
    said = f"{task.request} The tool is {signature(_alias(task))}."
    return Scene(_calls_alias(task, request=said), announced=(_alias(task),))


def _alias_in_system(task: Task) -> Scene:
    return Scene(_calls_alias(task), system=f"{signature(_alias(task))}\n{SYSTEM}", announced=(_alias(task),))


# -- wrong_argument: the argument has the name that the request's noun suggests ------------------------------------------


def _calls_noun(task: Task, tools: tuple[Schema, ...]) -> Scene:
    return Scene(replace(task, tools=tools, plan=((task.plan[0][0], {task.kind.noun: task.entity}), *task.plan[1:])))


def _with(call: Call, params: dict[str, str], required: tuple[str, ...]) -> Schema:
    schema = tool_schema(call.tool, params, f"Gives the {call.gives}.")
    schema["function"]["parameters"]["required"] = list(required)
    return schema


def _noun_renamed(task: Task) -> Scene:
    return _calls_noun(task, _put(task, _first(task), call_schema(task.kind.calls[0], param=task.kind.noun)))


def _noun_beside(task: Task) -> Scene:
    call, noun = task.kind.calls[0], task.kind.noun
    return _calls_noun(task, _put(task, _first(task), _with(call, {call.param: "string", noun: "string"}, ())))


def _noun_before(task: Task) -> Scene:
    call, noun = task.kind.calls[0], task.kind.noun
    return _calls_noun(task, _put(task, _first(task), _with(call, {noun: "string", call.param: "string"}, ())))


def _noun_with_more(task: Task) -> Scene:
    noun = task.kind.noun
    schema = _with(task.kind.calls[0], {noun: "string", "limit": "integer"}, (noun,))
    return _calls_noun(task, _put(task, _first(task), schema))


def _noun_everywhere(task: Task) -> Scene:
    old, new = json.dumps(task.kind.calls[0].param), json.dumps(task.kind.noun)
    return _calls_noun(task, tuple(json.loads(json.dumps(s).replace(old, new)) for s in task.tools))


def _noun_overloaded(task: Task) -> Scene:
    at = _first(task)
    return _calls_noun(task, _put(task, at, task.tools[at], call_schema(task.kind.calls[0], param=task.kind.noun)))


# -- skipped_lookup: what the habit passes as an id is one ---------------------------------------------------------------


def _by_name(task: Task, **changes: Any) -> Task:
    """The plan without its look-up, the entity's name as the id."""
    (tool, args), *rest = task.plan[1:]
    return replace(task, plan=((tool, {**args, task.kind.calls[1].param: task.entity}), *rest), **changes)


def _id_for_name(task: Task) -> Scene:
    told = task.request.replace(f"of {task.entity}", task.ids[0])
    return Scene(replace(task, request=told, plan=task.plan[1:]))


def _name_in_request(task: Task) -> Scene:
    return Scene(_by_name(task, request=f"The {task.kind.calls[1].param} is {task.entity}. {task.request}"))


def _name_in_system(task: Task) -> Scene:
    return Scene(_by_name(task), system=f"{SYSTEM} {task.entity} is a {task.kind.calls[1].param}.")


def _no_look_up(task: Task) -> Scene:
    return Scene(_by_name(task, tools=_put(task, _first(task))))


def _name_for_id(task: Task) -> Scene:
    return Scene(_by_name(task, request=task.request.replace(f" of {task.entity}", f" {task.entity}")))


# -- ignored_error: the last result is there -----------------------------------------------------------------------------


def _result(form: Result) -> Callable[[Task], Scene]:
    return lambda task: Scene(replace(task, fault="none"), result=form)


_EDITS: tuple[tuple[str, str, str, str, Callable[[Task], Scene]], ...] = (
    ("unknown_tool", "rename", "tools", "the right tool has the called name", _alias_renamed),
    ("unknown_tool", "beside", "tools", "the called tool is listed next to the right one", _alias_beside),
    ("unknown_tool", "request", "request", "the request gives the called tool's signature", _alias_in_request),
    ("unknown_tool", "displace", "tools", "the called tool stands in the place of an unrelated one", _alias_displaces),
    ("unknown_tool", "system", "system", "the system prompt gives the called tool's signature", _alias_in_system),
    ("wrong_argument", "rename", "tools", "the argument has the name that is written", _noun_renamed),
    ("wrong_argument", "beside", "tools", "the name that is written is listed after the right one", _noun_beside),
    ("wrong_argument", "before", "tools", "the name that is written is listed before the right one", _noun_before),
    ("wrong_argument", "more", "tools", "the tool takes that name and a limit", _noun_with_more),
    ("wrong_argument", "everywhere", "tools", "every tool of the list says that name", _noun_everywhere),
    ("wrong_argument", "overload", "tools", "the tool is listed once more, with that name", _noun_overloaded),
    ("skipped_lookup", "given", "request", "the id stands in the request in the place of the name", _id_for_name),
    ("skipped_lookup", "request", "request", "the request says that the name is the id", _name_in_request),
    ("skipped_lookup", "system", "system", "the system prompt says that the name is an id", _name_in_system),
    ("skipped_lookup", "no_lookup", "tools", "the look-up is not listed: names are ids", _no_look_up),
    ("skipped_lookup", "direct", "request", "the request has the name where an id would stand", _name_for_id),
    ("ignored_error", "value", "observation", "the result in place of the error", _result(lambda r: r)),
    (
        "ignored_error",
        "warning",
        "observation",
        "the result, then a warning",
        _result(lambda r: {**r, "warning": "timeout"}),
    ),
    (
        "ignored_error",
        "error_last",
        "observation",
        "the result, then the error",
        _result(lambda r: {**r, "error": "timeout"}),
    ),
    (
        "ignored_error",
        "no_error",
        "observation",
        "an empty error, then the result",
        _result(lambda r: {"error": None, **r}),
    ),
    (
        "ignored_error",
        "nested",
        "observation",
        "the result one level down, then the error",
        _result(lambda r: {"result": r, "error": "timeout"}),
    ),
    (
        "ignored_error",
        "list",
        "observation",
        "a list of the result and the error",
        _result(lambda r: [r, {"error": "timeout"}]),
    ),
)
EDITS: dict[str, Edit] = {e.family: e for e in (Edit(*row) for row in _EDITS)}


def scene_of(name: str) -> Scene:
    """The scene of a task name, with or without an edit behind it.

    Raises:
        ValueError: no such task, no such edit, or the edit cannot be made in this task.
    """
    parts = name.split(".")
    if len(parts) != 6:
        return Scene(Task.parse(name))
    task = Task.parse(".".join(parts[:5]))
    edit = EDITS.get(f"{habit_of(task)}.{parts[5]}")
    if edit is None:
        raise ValueError(f"{name!r}: no edit {parts[5]!r} of {habit_of(task)}")
    scene = edit.apply(task)
    return replace(scene, task=replace(scene.task, name=name))


class EditedEnvironment(ToolworldEnvironment):
    """Plays tasks with and without an edit; see the module for what counts as right."""

    def reset(self, task: str) -> Start:
        """Begin `task`; see `Environment`."""
        self.scene = scene_of(task)
        self.task = self.scene.task
        self.listed: dict[str, list[Schema]] = {}
        for schema in (*self.task.tools, *self.scene.announced):
            function = schema["function"]
            self.listed.setdefault(function["name"], []).append(function["parameters"])
        self.progress = self.steps = self.needless = 0
        self.fault_pending = self.task.fault != "none"
        opening = Message(role="system", content=self.scene.system), Message(role="user", content=self.task.request)
        return Start(opening, self.task.tools)

    def step(self, message: Message) -> Reply:
        """Answer one assistant message; see `Environment`."""
        reply = super().step(message)
        if reply.done and self.needless:
            return Reply(reply.messages, True, 0.0)
        return reply

    def _call(self, tool: str, args: dict[str, Any] | None) -> dict[str, Any]:
        if self.progress == len(self.task.plan) or (tool, args) != self.task.plan[self.progress]:
            self.needless += 1
        if tool not in self.listed:
            return {"error": f"unknown tool {tool}"}
        if args is None:
            return {"error": "arguments are not JSON"}
        problems = [_problem(parameters, args) for parameters in self.listed[tool]]
        if all(problems):
            return {"error": problems[0]}
        answer = self._answer(tool, args)
        last = tool == self.task.plan[-1][0] and "error" not in answer
        return self.scene.result(answer) if last and self.scene.result else answer


def _problem(parameters: Schema, args: dict[str, Any]) -> str | None:
    """What the arguments violate, in the world's words; None where they fit."""
    for name in args:
        if name not in parameters["properties"]:
            return f"unknown argument {name}"
    return next((f"missing argument {name}" for name in parameters["required"] if name not in args), None)


def label_stated(trace: Trace) -> list[Finding]:
    """The world's findings, but for ids that the system prompt or the request states: those need no look-up.

    Stated is `hotel_id Paris`, or `The hotel_id is Paris`, in any message of system or user. Toolworld's own texts state none.
    """
    said = "\n".join(m.content or "" for m in trace.messages if m.role in ("system", "user"))

    def stated(finding: Finding) -> bool:
        facts = finding.facts
        words = rf"\b{re.escape(facts['argument'])}( is)? {re.escape(facts['wrong'])}\b"
        return re.search(words, said) is not None

    return [f for f in label_steps(trace) if f.error_class != "skipped_lookup" or not stated(f)]


def check_edited(trace: Trace) -> list[Finding]:
    """The world's findings, without those on steps that the task's own edit makes right."""
    found = label_stated(trace)
    if len((trace.task_id or "").split(".")) != 6:
        return found
    task = scene_of(trace.task_id or "").task
    return [f for f in found if not _licensed(trace.step(f.step), task)]


def _licensed(message: Message, task: Task) -> bool:
    if message.tool_calls:
        return all((c.name, c.arguments) in task.plan for c in message.tool_calls)
    return message.content == task.answer


class EditedToolworld(Toolworld):
    """Toolworld whose tasks may carry an edit; the splits are Toolworld's."""

    def make(self) -> EditedEnvironment:
        """A fresh environment."""
        return EditedEnvironment()

    def check(self, trace: Trace) -> list[Finding]:
        """The habit errors of a trace."""
        return check_edited(trace)


class StatedToolworld(Toolworld):
    """Toolworld, whose checker also knows that an id which a text states needs no look-up; episodes and rewards are Toolworld's."""

    def check(self, trace: Trace) -> list[Finding]:
        """The habit errors of a trace."""
        return label_stated(trace)
