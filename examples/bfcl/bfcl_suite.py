"""BFCL v4 as task suites: `CALLS` (one turn), `CALLS_AS_TEXT` (the same for models whose template has no tools), `TURNS` (stateful APIs).

    rollout.environment=examples/bfcl/bfcl_suite.py:CALLS

needs `pip install --no-deps -r requirements-bfcl.txt`. docs/bfcl.md has the splits and what was measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bfcl_compare import Mismatch, Said, mismatch
from bfcl_data import NO_CALLS, Entry, entries, splits, tool_of
from bfcl_effects import CHANGES, READS
from bfcl_turns import TurnsEnvironment

from hintdistill.core.types import Finding, Message, ToolEffect, Trace
from hintdistill.rollouts.environment import Reply, Start

DECLINE = "No function fits."
"""How a student that is warmed up here says that no call is due; any other text without a call counts as well."""
HEAD = (
    'Answer with <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one for each call. '
    f"Where none of the functions does what is asked, answer: {DECLINE}\nFunctions:\n"
)
TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def said(message: Message) -> list[Said]:
    """The calls of a message that can be read."""
    return [Said(c.name, c.arguments) for c in message.tool_calls if c.arguments is not None]


def broken(message: Message) -> bool:
    """Whether the message contains a call that cannot be parsed."""
    unread = "tool_call>" in (message.content or "")
    return unread or any(c.arguments is None for c in message.tool_calls)


def wrong(entry: Entry, message: Message) -> Mismatch | None:
    """What is wrong with the one step of a task; None where it is right. A call that cannot be read is no call to the package."""
    found = mismatch(entry, said(message))
    if broken(message) and entry.category not in NO_CALLS:
        return Mismatch("unparsable_call", right=found.right if found else None)
    return found


class CallsEnvironment:
    """One task of a single turn; its first step ends it, with reward 1 where the calls are right."""

    def __init__(self, as_text: bool) -> None:
        """`as_text` writes the functions into the system prompt."""
        self.as_text = as_text

    def reset(self, task: str) -> Start:
        """Begin `task`. Raises ValueError for an id that BFCL does not have."""
        if task not in entries():
            raise ValueError(f"BFCL has no task {task!r} of one turn")
        self.entry = entries()[task]
        tools = tuple(tool_of(f) for f in self.entry.functions)
        return Start(opening(self.entry, self.as_text), tools)

    def step(self, message: Message) -> Reply:
        """Judge the one assistant message."""
        return Reply((), True, float(wrong(self.entry, message) is None))


def opening(entry: Entry, as_text: bool) -> tuple[Message, ...]:
    """Return the messages that the student reads for a task; earlier assistant messages are context."""
    told = [Message(role=m["role"], content=m["content"], given=m["role"] == "assistant") for m in entry.messages]
    if not as_text:
        return tuple(told)
    listed = HEAD + "\n".join(signature(f) for f in entry.functions)
    if told[0].role == "system":
        return (Message(role="system", content=f"{told[0].content}\n\n{listed}"), *told[1:])
    return (Message(role="system", content=listed), *told)


def signature(function: dict[str, Any]) -> str:
    """A function in a few lines: what it does, and its arguments with type, choices and the beginning of their description."""
    parameters = function["parameters"]
    needed = set(parameters.get("required", ()))
    lines = [f"{function['name']}: {beginning(function['description'], 100)}"]
    for name, described in parameters["properties"].items():
        kind = _kind(described) + ("" if name in needed else ", optional")
        choices = described.get("enum") or (described.get("items") or {}).get("enum") or ()
        about = beginning(described.get("description", ""), 60)
        chosen = f" one of {', '.join(map(str, choices[:8]))}" if choices else ""
        lines.append(f"- {name} ({kind}): {about}{chosen}".rstrip())
    return "\n".join(lines)


def _kind(described: dict[str, Any]) -> str:
    kind = described.get("type", "any")
    inner = described.get("items")
    of = f" of {_kind(inner)}" if kind in ("array", "tuple") and isinstance(inner, dict) else ""
    return TYPES.get(kind, kind) + of


def beginning(text: str, most: int) -> str:
    """The first sentence, cut at a word where it is longer than `most` characters."""
    first = " ".join(text.split()).split(". ")[0].rstrip(".")
    return first if len(first) <= most else first[:most].rsplit(" ", 1)[0]


def finding_of(entry: Entry, step: int, message: Message) -> Finding | None:
    """What is wrong with a step as a finding, from the possible answers: an upper bound for critics, which do not have them."""
    found = wrong(entry, message)
    if found is None:
        return None
    calls = message.tool_calls
    at = found.call if found.call is not None and found.call < len(calls) else None
    facts: dict[str, Any] = {"tools": list(entry.names)}
    if found.right:
        ((name, allowed),) = found.right.items()
        facts["right"] = name
        if found.argument is not None:
            facts["argument"] = found.argument
            values = [v for v in allowed.get(found.argument, ()) if v != ""]
            facts["expected"] = json.dumps(values[0], ensure_ascii=False) if values else "left out"
    quote: dict[str, Any] = {}
    if at is not None and found.error_class in ("unneeded_call", "wrong_tool"):
        quote = {"quote": calls[at].name, "quote_in": "tool_name", "call": at}
        facts["wrong"] = calls[at].name
    elif at is not None and found.argument in (calls[at].arguments or {}):
        value = (calls[at].arguments or {})[found.argument]
        facts["wrong"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Finding(step=step, error_class=found.error_class, facts=facts, critic="checker", **quote)


class Calls:
    """The tasks of one turn."""

    def __init__(self, as_text: bool = False) -> None:
        """`as_text` writes the functions into the system prompt, for templates that know no tools."""
        self.as_text = as_text

    def splits(self) -> dict[str, Sequence[str]]:
        """Task ids by split; `irrelevance` is the package's whole category, in which no call is right."""
        return {name: ids for name, ids in splits().items() if not name.startswith("multi_turn_")}

    def make(self) -> CallsEnvironment:
        """A fresh environment."""
        return CallsEnvironment(self.as_text)

    def check(self, trace: Trace) -> list[Finding]:
        """The error of the one step, by the possible answers."""
        entry = entries()[trace.task_id or trace.id]
        found = [finding_of(entry, k, trace.step(k)) for k in trace.own_steps[:1]]
        return [f for f in found if f is not None]

    def tool_effects(self) -> dict[str, ToolEffect]:
        """Nothing is executed in these tasks, so that no function has an effect."""
        return {}


class Turns:
    """The tasks of several turns."""

    def splits(self) -> dict[str, Sequence[str]]:
        """Task ids by split: `train`, `validation` and `test` by their main API."""
        start = "multi_turn_"
        return {name.removeprefix(start): ids for name, ids in splits().items() if name.startswith(start)}

    def make(self) -> TurnsEnvironment:
        """A fresh environment."""
        return TurnsEnvironment()

    def check(self, trace: Trace) -> list[Finding]:
        """The step that ended the first turn that did not pass; the calls are made once more for that."""
        environment = TurnsEnvironment()
        environment.reset(trace.task_id or trace.id)
        for k in trace.own_steps:
            reply = environment.step(trace.step(k))
            if environment.failed is not None:
                facts = {"turn": environment.failed, "why": environment.why}
                return [Finding(step=k, error_class="turn_failed", facts=facts, critic="checker")]
            if reply.done:
                break
        return []

    def tool_effects(self) -> dict[str, ToolEffect]:
        """Which functions of the APIs change their state."""
        return dict.fromkeys(READS, "reads") | dict.fromkeys(CHANGES, "changes")


CALLS, CALLS_AS_TEXT, TURNS = Calls(), Calls(as_text=True), Turns()


def check_calls(trace: Trace) -> list[Finding]:
    """Return what `CALLS` finds in a trace, for `critic.checker`; it knows the answers."""
    return CALLS.check(trace)


def check_turns(trace: Trace) -> list[Finding]:
    """Return what `TURNS` finds in a trace, for `critic.checker`; it knows the answers."""
    return TURNS.check(trace)
