"""Tasks of several turns: calls on fresh instances of the package's APIs, judged turn by turn by the package's own checks.

A call is made with the arguments that its JSON holds, and only of a function that the APIs describe; no text of the student is ever
evaluated, as the package's runner would. Each episode has instances of its own. The right calls of the package are Python source: they
are parsed, their arguments are literals, and they are made in the same way on instances of their own.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from bfcl_compare import Said
from bfcl_data import Talk, read, talks, tool_of

from hintdistill.core.types import Message, ToolCall
from hintdistill.rollouts.environment import Reply, Start

MOST_STEPS = 20
"""Steps with calls that a turn may have; the package ends an episode that needs more."""
LATE = "These functions can be called from now on as well:\n{functions}\nPlease try again with them."
"""The user's message when functions are added."""


class Apis:
    """The APIs of one task in their first state; nothing is shared with another instance."""

    def __init__(self, talk: Talk) -> None:
        config = importlib.import_module("bfcl_eval.constants.executable_backend_config")
        self.instances: dict[str, Any] = {}
        self._methods: dict[str, Callable[..., Any]] = {}
        for name in talk.classes:
            made = getattr(importlib.import_module(config.CLASS_FILE_PATH_MAPPING[name]), name)()
            if name not in config.STATELESS_CLASSES:
                made._load_scenario(copy.deepcopy(talk.state.get(name, {})), long_context=talk.long_context)
            self.instances[name] = made
            self._methods |= {f["name"]: getattr(made, f["name"]) for f in described(name)}

    def call(self, name: str, arguments: dict[str, Any] | None) -> str:
        """Make one call. What it returns, or why it failed, as the package writes it."""
        try:
            if name not in self._methods:
                raise ValueError(f"there is no function {name}")
            if arguments is None:
                raise ValueError("the arguments are not a JSON object")
            return written(self._methods[name](**arguments))
        except Exception as error:
            return f"Error during execution: {error}"

    def named(self, name: str, positional: Sequence[Any]) -> dict[str, Any]:
        """Positional arguments by the names of the function's parameters."""
        return dict(zip(inspect.signature(self._methods[name]).parameters, positional, strict=False))


def written(result: Any) -> str:
    """A result as text: JSON where it is an object that JSON can hold."""
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            return str(result)
    return str(result)


@cache
def described(name: str) -> tuple[dict[str, Any], ...]:
    """The functions of an API as the package describes them."""
    config = importlib.import_module("bfcl_eval.constants.executable_backend_config")
    return tuple(read(f"multi_turn_func_doc/{config.MULTI_TURN_FUNC_DOC_FILE_MAPPING[name]}"))


def functions_of(talk: Talk) -> dict[str, dict[str, Any]]:
    """The functions that a task may ever list, by name."""
    return {f["name"]: f for c in talk.classes for f in described(c)}


def gold_calls(talk: Talk, apis: Apis, turn: int) -> list[Said]:
    """The right calls of a turn, read from their source. Raises ValueError for anything but a call with literal arguments."""
    out = []
    for source in talk.answer[turn]:
        node = ast.parse(source.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            raise ValueError(f"{talk.id}: {source!r} is no call")
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        arguments = apis.named(name, [ast.literal_eval(a) for a in node.args])
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ValueError(f"{talk.id}: {source!r} unpacks its arguments")
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        out.append(Said(name, arguments))
    return out


def said_call(call: Said) -> ToolCall:
    """A call as a student would make it."""
    return ToolCall(name=call.name, arguments_raw=json.dumps(call.arguments))


class TurnsEnvironment:
    """One task of several turns. A step without a call ends a turn; reward 1 where every turn passed the package's checks."""

    def reset(self, task: str) -> Start:
        """Begin `task`. Raises ValueError for an id that BFCL does not have."""
        if task not in talks():
            raise ValueError(f"BFCL has no task {task!r} of several turns")
        talk = self.talk = talks()[task]
        self.turn = 0
        self.failed: int | None = None
        """The first turn that did not pass."""
        self.why = ""
        self._apis, self._gold = Apis(talk), Apis(talk)
        self._results: list[str] = []
        self._said = 0
        functions = functions_of(talk)
        late = {name for names in talk.late.values() for name in names}
        tools = tuple(tool_of(f) for name, f in functions.items() if name not in late)
        return Start(self._opening(), tools)

    def step(self, message: Message) -> Reply:
        """Make the calls of one assistant message, or end its turn."""
        if message.tool_calls:
            self._said += 1
            answers = tuple(self._answer(c) for c in message.tool_calls)
            if self._said <= MOST_STEPS:
                return Reply(answers, False)
            self.failed, self.why = self.turn, f"more than {MOST_STEPS} steps"
            return Reply(answers, True, 0.0)
        if self.failed is None and (why := self._wrong()):
            self.failed, self.why = self.turn, why
        self.turn, self._said = self.turn + 1, 0
        if self.turn == len(self.talk.turns):
            return Reply((), True, float(self.failed is None))
        return Reply(self._opening(), False)

    def _answer(self, call: ToolCall) -> Message:
        # one that comes later can be called before it is listed, as in the package: the right calls of a task do so
        result = self._apis.call(call.name, call.arguments)
        self._results.append(result)
        return Message(role="tool", content=result, name=call.name, tool_call_id=call.id)

    def _opening(self) -> tuple[Message, ...]:
        said = [Message(role=m["role"], content=m["content"]) for m in self.talk.turns[self.turn]]
        added = self.talk.late.get(self.turn, ())
        if added:
            functions = functions_of(self.talk)
            shown = "\n".join(json.dumps(tool_of(functions[n]), ensure_ascii=False) for n in added)
            said.insert(0, Message(role="user", content=LATE.format(functions=shown)))
        return tuple(said)

    def _wrong(self) -> str:
        """Why this turn does not pass, in the package's words; empty where it does. The right calls of the turn are made first."""
        checks = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
        right = [self._gold.call(c.name, c.arguments) for c in gold_calls(self.talk, self._gold, self.turn)]
        if not right:
            return ""
        if not self._said:
            return "no call in a turn that needs one"
        for found in (
            checks.state_checker(self._apis.instances, self._gold.instances),
            checks.response_checker(self._results, right, self.turn),
        ):
            if not found["valid"]:
                return str(found["error_type"])
        return ""
