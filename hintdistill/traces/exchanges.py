"""Model calls to conversations: what was read and answered, call by call, becomes the traces of a run.

A tracing tool records each call on its own, with the conversation so far, often twice (the framework's span around the
provider's). The calls are ordered by time, folded into their longest chains, and a call that repeats what its parent
already shows is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hintdistill.errors import TraceError
from hintdistill.traces.observed import Messages
from hintdistill.traces.options import Failure, ReadOptions
from hintdistill.traces.repeats import chains
from hintdistill.traces.turns import build_trace
from hintdistill.types import Source, Trace


@dataclass
class Exchange:
    """One call of a model, or a span that says what an agent was asked and answered."""

    id: str
    parent: str | None
    start: Any
    read: Messages
    said: Messages
    is_call: bool
    """A model call; spans of agents only count where no call is readable."""
    tools: list[Any] = field(default_factory=list)
    model: str | None = None


@dataclass(frozen=True)
class ToolRun:
    """A tool's execution, where its own span recorded it."""

    start: Any
    call_id: str | None
    name: str | None
    result: str | None
    arguments: Any = None


def conversations(exchanges: Sequence[Exchange], runs: Sequence[ToolRun] = ()) -> list[tuple[Messages, list[Any], str | None]]:
    """Messages, tool schemas and model of each conversation, in the order in which they began."""
    usable = [e for e in exchanges if any(m.get("role") in ("assistant", "model", "ai") for m in e.said)]
    calls = [e for e in usable if e.is_call]
    chosen = sorted(_once(calls or usable), key=lambda e: (str(type(e.start)), e.start))
    joined = _join(chosen, sorted(runs, key=lambda r: (str(type(r.start)), r.start)))
    found = []
    for messages in chains([c for c, _ in joined]):
        # the schemas of any call of the chain; a later one may have been shown more tools
        own = [e for c, e in joined if len(c) <= len(messages) and _starts(c, messages)]
        tools = max((e.tools for e in own), key=len, default=[])
        found.append((messages, tools, next((e.model for e in reversed(own) if e.model), None)))
    return found


def _said_key(message: Mapping[str, Any]) -> Any:
    calls = message.get("tool_calls") or ()
    names = [c.get("name") or (c.get("function") or {}).get("name") for c in calls if isinstance(c, Mapping)]
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
    return (content or "", tuple(map(str, names)))


def _once(calls: list[Exchange]) -> list[Exchange]:
    """Without the calls that an ancestor or a descendant shows as well; the one that shows more of the conversation stays."""
    by_id = {e.id: e for e in calls}
    dropped: set[str] = set()
    for e in calls:
        above, hops = by_id.get(e.parent or ""), 0
        while above is not None and hops < len(calls):
            if [_said_key(m) for m in above.said] == [_said_key(m) for m in e.said]:
                dropped.add(e.id if _detail(above) >= _detail(e) else above.id)
            above, hops = by_id.get(above.parent or ""), hops + 1
    return [e for e in calls if e.id not in dropped]


def _detail(e: Exchange) -> tuple[int, int]:
    return sum(1 for m in (*e.read, *e.said) if m.get("tool_calls")), len(e.read)


def _join(calls: list[Exchange], runs: list[ToolRun]) -> list[tuple[Messages, Exchange]]:
    """Each call's whole conversation; where a call was shown only what is new (state kept by a server), the one before goes on."""
    out: list[tuple[Messages, Exchange]] = []
    for e in calls:
        read = e.read
        if out and (not read or all(m.get("role") == "tool" for m in read)):
            before = out[-1][0]
            pending = _open_calls(before)
            if pending:
                read = [*before, *(read or _results(pending, runs))]
            elif not read:
                read = before
        out.append(([*read, *e.said], e))
    return out


def _open_calls(messages: Messages) -> list[Mapping[str, Any]]:
    last = messages[-1] if messages else {}
    calls = last.get("tool_calls") if last.get("role") == "assistant" else None
    return [c for c in calls or () if isinstance(c, Mapping)]


def _results(pending: list[Mapping[str, Any]], runs: list[ToolRun]) -> Messages:
    """What the tools answered, from their own spans: by id, else by name and arguments, each span once."""
    left = list(runs)
    out: Messages = []
    for call in pending:
        name = call.get("name") or (call.get("function") or {}).get("name")
        run = next((r for r in left if r.call_id is not None and r.call_id == call.get("id")), None)
        run = run or next((r for r in left if r.name == name and r.arguments == call.get("arguments")), None)
        run = run or next((r for r in left if r.name == name), None)
        if run is not None:
            left.remove(run)
            out.append({"role": "tool", "tool_call_id": call.get("id"), "name": name, "content": run.result})
    return out


def _starts(prefix: Messages, messages: Messages) -> bool:
    return all(_said_key(a) == _said_key(b) for a, b in zip(prefix, messages, strict=False))


def traces_of(
    key: str, exchanges: Sequence[Exchange], runs: Sequence[ToolRun], source: Source, options: ReadOptions,
    extra: Mapping[str, Any], reward: Any = None,
) -> Iterator[Trace | Failure]:  # fmt: skip
    """The traces of one run. Raises TraceError where no call shows an answer of the model."""
    found = conversations(exchanges, runs)
    if not found:
        raise TraceError(
            f"no answer of a model in {len(exchanges)} spans of {key}: content capture was off, or it stands under keys this "
            "release does not know"
        )
    for n, (messages, tools, model) in enumerate(found, 1):
        record = {"trace_id": key, **extra}
        suffix = f"/{n}" if len(found) > 1 else ""
        try:
            yield build_trace(
                record, messages, source, options, known={"trace_id"}, tools=tools, suffix=suffix, model=model, reward=reward
            )
        except TraceError as error:
            yield Failure.of(source, error)
