"""Turn model calls into conversations: the recorded input and output of each call are assembled into the traces of a
run.

A tracing tool records each call separately, with the conversation so far, and often twice (the framework's span around
the provider's). The calls are ordered by time and folded into their longest chains; a call that repeats the content of
its parent span is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.calls import name_and_arguments
from hintdistill.traces.formats.observed import MISSING, Messages, schema_in
from hintdistill.traces.formats.openai_chat import loads
from hintdistill.traces.options import Failure, ReadOptions
from hintdistill.traces.repeats import HELD, chains
from hintdistill.traces.turns import GIVEN, build_trace
from hintdistill.traces.values import as_text, listed


@dataclass
class Exchange:
    """Hold one call of a model, or a span that records an agent's input and output."""

    id: str
    parent: str | None
    start: Any
    read: Messages
    said: Messages
    is_call: bool
    """Whether this is a model call; spans of agents are used only if no call is readable."""
    tools: list[Any] = field(default_factory=list)
    model: str | None = None


@dataclass(frozen=True)
class ToolRun:
    """Hold a tool's execution, if a span of its own recorded it."""

    start: Any
    call_id: str | None
    name: str | None
    result: str | None
    arguments: Any = None


def conversations(
    exchanges: Sequence[Exchange], runs: Sequence[ToolRun] = ()
) -> list[tuple[Messages, list[Any], str | None]]:
    """Return the messages, tool schemas and model of each conversation, in the order in which they began."""
    for e in exchanges:
        e.tools = [*e.tools, *(s for m in e.read if (s := schema_in(m)))]
        e.read = [m for m in e.read if schema_in(m) is None]
    usable = [e for e in exchanges if any(m.get("role") in ("assistant", "model", "ai") for m in e.said)]
    calls = [e for e in usable if e.is_call]
    everyone = {e.id: e for e in exchanges}
    for e in calls:
        e.read = [*_told_above(e, everyone), *e.read]
    chosen = sorted(_once(calls or usable), key=_when)
    joined = _join(chosen, sorted(runs, key=_when))
    by_id = {e.id: e for e in exchanges}
    found = []
    shown = {id(e): e.tools or _above(e, by_id) for _, e in joined}
    for messages in chains([c for c, _ in joined], [shown[id(e)] for _, e in joined]):
        own = [(c, e) for c, e in joined if len(c) <= len(messages) and _starts(c, messages)]
        # the schemas of the last call that notes any; what was said under others was read in another prompt
        tools = next((t for _, e in reversed(own) if (t := shown[id(e)])), [])
        other = {len(c) - 1 for c, e in own if shown[id(e)] and shown[id(e)] != tools}
        model = next((e.model for _, e in reversed(own) if e.model), None)
        found.append((_under_other_schemas(_marked(messages, joined), other), tools, model))
    return found


def _under_other_schemas(messages: Messages, places: set[int]) -> Messages:
    """Return the turns produced under tool schemas other than the trace's, marked as given."""
    return [
        {**m, GIVEN: "said under other tool schemas"} if i in places and m.get("role") == "assistant" else m
        for i, m in enumerate(messages)
    ]


def _when(item: Exchange | ToolRun) -> tuple[str, Any]:
    start = item.start
    return ("number", start) if isinstance(start, int | float) else ("text", str(start))


def _told_above(e: Exchange, by_id: Mapping[str, Exchange]) -> Messages:
    """Return the system prompt that only the agent's span around a call shows, if both have the same words after it."""
    if not e.read or e.read[0].get("role") in _TELLING:
        return []
    at, hops = by_id.get(e.parent or ""), 0
    while at is not None and hops <= len(by_id):
        told = list(takewhile(lambda m: m.get("role") in _TELLING, at.read))
        rest = at.read[len(told) :]
        if told and rest and _said_key(rest[0]) == _said_key(e.read[0]):
            return told
        at, hops = by_id.get(at.parent or ""), hops + 1
    return []


_TELLING = ("system", "developer")


def _above(e: Exchange, by_id: Mapping[str, Exchange]) -> list[Any]:
    """Return the schemas recorded in the agent's span around a call."""
    at, hops = by_id.get(e.parent or ""), 0
    while at is not None and hops <= len(by_id):
        if at.tools:
            return at.tools
        at, hops = by_id.get(at.parent or ""), hops + 1
    return []


def _marked(messages: Messages, joined: list[tuple[Messages, Exchange]]) -> Messages:
    """Mark turns as given if a recorded call of another conversation produced them."""
    said_here = {len(c) - 1 for c, _ in joined if len(c) <= len(messages) and _starts(c, messages)}
    elsewhere = {_turn(m) for _, e in joined for m in e.said}
    calls = {c for _, e in joined for m in e.said for c in _turn(m)[1]}
    out = []
    for i, m in enumerate(messages):
        text, made = _turn(m)
        known = (text, made) in elsewhere or bool(made and set(made) <= calls)
        out.append({**m, GIVEN: HELD} if m.get("role") == "assistant" and i not in said_here and known else m)
    return out


def _turn(message: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    text, _ = _said_key(message)
    made = []
    for c in listed(message.get("tool_calls")):
        if isinstance(c, Mapping):
            name, arguments = name_and_arguments(c)
            made.append((str(name), as_text(loads(arguments))))
    return text, tuple(made)


def _name(call: Mapping[str, Any]) -> Any:
    return name_and_arguments(call)[0]


def _said_key(message: Mapping[str, Any]) -> Any:
    names = [_name(c) for c in listed(message.get("tool_calls")) if isinstance(c, Mapping)]
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
    return (content if isinstance(content, str) else as_text(content) or "", tuple(map(str, names)))


def _once(calls: list[Exchange]) -> list[Exchange]:
    """Return the calls without those that an ancestor or a descendant repeats; of each pair, the one with more of the
    conversation stays."""
    by_id = {e.id: e for e in calls}
    dropped: set[str] = set()
    for e in calls:
        above, hops = by_id.get(e.parent or ""), 0
        while above is not None and hops < len(calls):
            if [_said_key(m) for m in above.said] == [_said_key(m) for m in e.said]:
                less, more = (e, above) if _detail(above) >= _detail(e) else (above, e)
                dropped.add(less.id)
                more.tools = more.tools or less.tools
            above, hops = by_id.get(above.parent or ""), hops + 1
    return [e for e in calls if e.id not in dropped]


def _detail(e: Exchange) -> tuple[int, int]:
    return sum(1 for m in (*e.read, *e.said) if m.get("tool_calls")), len(e.read)


def _join(calls: list[Exchange], runs: list[ToolRun]) -> list[tuple[Messages, Exchange]]:
    """Return each call's whole conversation; if a call was given only new messages (because a server keeps the state),
    they are appended to the previous call's conversation."""
    out: list[tuple[Messages, Exchange]] = []
    for e in calls:
        read = _filled(e.read, out[-1][0] if out else [])
        if out and (not read or all(m.get("role") == "tool" for m in read)):
            before = out[-1][0]
            pending = _open_calls(before)
            if pending:
                read = [*before, *(read or _results(pending, runs))]
            elif not read:
                read = before
        out.append(([*read, *e.said], e))
    return out


def _filled(read: Messages, before: Messages) -> Messages:
    """Fill gaps of a flattened log from the conversation that it repeats."""
    return [
        before[i] if MISSING in m else m
        for i, m in enumerate(read)
        if MISSING not in m or (i < len(before) and before[i].get("role") == "assistant")
    ]


def _open_calls(messages: Messages) -> list[Mapping[str, Any]]:
    last = messages[-1] if messages else {}
    calls = last.get("tool_calls") if last.get("role") == "assistant" else None
    return [c for c in listed(calls) if isinstance(c, Mapping)]


def _results(pending: list[Mapping[str, Any]], runs: list[ToolRun]) -> Messages:
    """Return the tools' answers from their own spans: matched by id, else by name and arguments; each span is used
    once."""
    left = list(runs)
    out: Messages = []
    for call in pending:
        name, arguments = name_and_arguments(call)
        run = next((r for r in left if r.call_id is not None and r.call_id == call.get("id")), None)
        run = run or next((r for r in left if r.name == name and loads(r.arguments) == loads(arguments)), None)
        run = run or next((r for r in left if r.name == name), None)
        if run is not None:
            left.remove(run)
            out.append({"role": "tool", "tool_call_id": call.get("id"), "name": name, "content": run.result})
    return out


def _starts(prefix: Messages, messages: Messages) -> bool:
    return all(_said_key(a) == _said_key(b) for a, b in zip(prefix, messages, strict=False))


def traces_of(
    key: str,
    exchanges: Sequence[Exchange],
    runs: Sequence[ToolRun],
    source: Source,
    options: ReadOptions,
    extra: Mapping[str, Any],
    reward: Any = None,
) -> Iterator[Trace | Failure]:
    """Yield the traces of one run. Raises TraceError if no call contains an answer of the model."""
    found = conversations(exchanges, runs)
    if not found:
        raise TraceError(
            f"no answer of a model in {len(exchanges)} spans of {key}: content capture was off, or the answers "
            "are under keys that this release does not know"
        )
    for n, (messages, tools, model) in enumerate(found, 1):
        record = {"trace_id": key, **extra}
        suffix = f"/{n}" if len(found) > 1 else ""
        try:
            yield build_trace(
                record,
                messages,
                source,
                options,
                known={"trace_id"},
                tools=tools,
                suffix=suffix,
                model=model,
                reward=reward,
            )
        except TraceError as error:
            yield Failure.of(source, error)
