"""Train each turn once: prefixes that a log repeats are found, and only their longest form is trained.

There are two cases. A format whose records are calls of a growing conversation is folded into its longest chains
(`chains`). Across records and files, traces are yielded while reading, so a trace that another one continues is marked:
if the longer one comes second, the shared turns are `given` in it; if the shorter one comes second, it is left out
(`Repeats`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hintdistill.core.types import Message, Trace
from hintdistill.traces.calls import name_and_arguments
from hintdistill.traces.guards import marked_given
from hintdistill.traces.options import Failure
from hintdistill.traces.reasoning import reasoning_of
from hintdistill.traces.turns import GIVEN, TOKEN_KEYS

Mark = int
Held = tuple[str, Mark]
"""A trace's id, and the mark of everything rendered besides its messages."""
HELD = "another trace holds it"


WINDOW = 200_000
"""Repetitions are found at least this many messages back; repeated messages are usually close together."""


class _Recent:
    """Remember the latest notes in two generations of at most `WINDOW` marks; the older generation is dropped as a
    whole.

    Deleting a dict's oldest entries one by one takes quadratic time.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._young: dict[Mark, Held] = {}
        self._old: dict[Mark, Held] = {}

    def note(self, marks: Sequence[Mark], held: Held) -> None:
        """Remember that these marks belong to this trace."""
        self._young.update(dict.fromkeys(marks, held))
        if len(self._young) >= self._window:
            self._old, self._young = self._young, {}

    def any_of(self, marks: Sequence[Mark]) -> bool:
        """Return whether one of the marks was noted."""
        return not self._young.keys().isdisjoint(marks) or not self._old.keys().isdisjoint(marks)

    def get(self, mark: Mark) -> Held | None:
        """Return the trace for which a mark was noted."""
        found = self._young.get(mark)
        return self._old.get(mark) if found is None else found


class Repeats:
    """Remember the traces read last, as one number per message."""

    def __init__(self, window: int = WINDOW) -> None:
        self._inner, self._ends, self._called = _Recent(window), _Recent(window), _Recent(window)

    def check(self, trace: Trace, marks: Sequence[Mark], context: Mark = 0, calls: bool = False) -> Trace | Failure:
        """Return the trace with turns marked that an earlier trace contains; return a failure if an earlier trace
        contains all of them.

        Two identical traces are two samples, and so are two traces that diverge after a common beginning, unless one of
        them is the log of a single call (`calls`): everything in such a log before its answer was produced in another
        call.

        Args:
            trace: the trace as it was read.
            marks: the marks of its messages, see `marks_of`.
            context: the mark of everything rendered besides them, see `context_of`; the same words under other tool
                schemas are not a repetition.
            calls: whether its format logs single calls.
        """
        steps = trace.step_indices
        if not steps:
            return trace
        last = marks[-1]
        longer = self._inner.get(last)
        if longer is not None and longer[1] == context:
            text = f"every message is at the start of the longer trace {longer[0]!r}, which is kept"
            assert trace.source is not None
            return Failure(trace.source, "repeated_prefix", text)
        held = (self._ends, self._called, self._inner) if calls else (self._ends, self._called)
        until = -1
        if any(h.any_of(marks) for h in held):
            until = max((i for i, m in enumerate(marks[:-1]) if any(h.get(m) is not None for h in held)), default=-1)
        inner = marks[steps[0] : -1]
        self._inner.note(inner, (trace.id, context))
        if calls:
            self._called.note(inner, (trace.id, context))
        self._ends.note([last], (trace.id, context))
        if until < steps[0]:
            return trace
        messages = [
            marked_given(m, HELD) if m.role == "assistant" and i <= until and not m.given else m
            for i, m in enumerate(trace.messages)
        ]
        return trace.model_copy(update={"messages": tuple(messages)})


def marks_of(messages: Sequence[Message]) -> list[Mark]:
    """Return a running hash over all rendered parts of each message. It has 64 bits, so a million messages collide once
    in ten million runs."""
    out, mark = [], 0
    for m in messages:
        # the fields as they are held: every message of every trace comes here
        of = m.__dict__
        if calls := of["tool_calls"]:
            said = tuple([(c.name, c.arguments_raw, c.id) for c in calls])
            mark = hash((mark, of["role"], of["content"], of["reasoning"], said, of["name"]))
        else:
            mark = hash((mark, of["role"], of["content"], of["reasoning"], of["tool_call_id"], of["name"]))
        out.append(mark)
    return out


OPTION_KEYS = ("chat_template_kwargs", "template_options", "chat_template", "template", "request_options")
"""Keys in a trace's `extra` under which sources record how the prompt was rendered."""


def context_of(trace: Trace) -> Mark:
    """Return a hash of everything rendered besides the messages: the tool schemas and the template's options."""
    options = [trace.template] if trace.template else []
    options += [trace.extra[k] for k in OPTION_KEYS if k in trace.extra]
    schemas = _SCHEMAS.of(trace.tools)
    return hash((schemas, json.dumps(options, sort_keys=True, default=str))) if options else schemas


class _LastSchemas:
    """Cache the hash of the latest schemas, because most traces of a file have the same ones."""

    def __init__(self) -> None:
        self._tools: tuple[dict[str, Any], ...] = ()
        self._mark: Mark = 0

    def of(self, tools: tuple[dict[str, Any], ...]) -> Mark:
        """Return the hash of the schemas; the order of the schemas and of their keys matters, because both are
        rendered."""
        if tools != self._tools:
            self._tools, self._mark = tools, hash(json.dumps(tools, default=str)) if tools else 0
        return self._mark


_SCHEMAS = _LastSchemas()


def chains(conversations: Sequence[list[dict[str, Any]]], contexts: Sequence[Any] = ()) -> list[list[dict[str, Any]]]:
    """Return the longest conversations of a log of calls, in the order in which they began.

    Args:
        conversations: chat messages of each call, its answer last; later calls repeat earlier messages.
        contexts: what each call saw besides its messages, e.g. tool schemas; calls with the same messages but different
            contexts are distinct. Empty: the same for all.

    Returns:
        Every conversation that no other continues. Token ids recorded with a call are put on its turn in the chain that
        continues; a turn that an earlier chain already contains is marked as given.
    """
    shown = [_canonical(c) for c in contexts] or [""] * len(conversations)
    shown = [s for s, c in zip(shown, conversations, strict=True) if isinstance(c, list)]
    conversations = [c for c in conversations if isinstance(c, list)]
    marks = [_running(c) for c in conversations]
    prefixes = {m for run in marks for m in run[:-1]}
    ended = [(run[-1], c[-1]) for run, c in zip(marks, conversations, strict=True) if run]
    tokens = {mark: _tokens(last) for mark, last in ended if isinstance(last, dict)}
    kept: list[list[dict[str, Any]]] = []
    seen: set[Mark] = set()
    ends: set[Mark] = set()
    for run, conversation, beside in zip(marks, conversations, shown, strict=True):
        if not run or run[-1] in prefixes:
            continue
        end = hash((run[-1], beside, _thinking(conversation[-1])))
        if end in ends or (run[-1] in seen and not beside and not _thinking(conversation[-1])):
            continue
        ends.add(end)
        made = []
        for mark, message in zip(run, conversation, strict=True):
            if not isinstance(message, dict):
                made.append(message)
                continue
            message = {**message, **tokens.get(mark, {}), **_tokens(message)}
            if message.get("role") == "assistant" and mark in seen and mark != run[-1]:
                message[GIVEN] = HELD
            made.append(message)
        seen.update(run)
        kept.append(made)
    return kept


def _canonical(context: Any) -> str:
    return json.dumps(context, sort_keys=True, default=str) if context else ""


def _thinking(message: Any) -> str | None:
    """Return the thinking behind a turn: two answers with the same words may be two samples."""
    return reasoning_of(message)[0] if isinstance(message, Mapping) else None


def _running(messages: Sequence[Any]) -> list[Mark]:
    out, mark = [], 0
    for message in messages:
        mark = hash((mark, _key(message)))
        out.append(mark)
    return out


def _tokens(message: Mapping[str, Any]) -> dict[str, Any]:
    return {n: message[n] for names in TOKEN_KEYS.values() for n in names if message.get(n)}


def _key(message: Any) -> Any:
    """Return the content of a message, regardless of other notes in the log."""
    if not isinstance(message, Mapping):
        return repr(message)
    calls = (
        [_call_key(c) for c in message.get("tool_calls") or ()] if isinstance(message.get("tool_calls"), list) else ()
    )
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(p.get("text", p)) if isinstance(p, Mapping) else str(p) for p in content)
    legacy = _call_key(message["function_call"]) if message.get("function_call") else None
    return (str(message.get("role")), str(content) if content else "", tuple(calls), legacy)


def _call_key(call: Any) -> tuple[str, str]:
    name, arguments = name_and_arguments(call)
    return (str(name or ""), str(arguments))
