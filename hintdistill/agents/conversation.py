"""Convert an agent's conversation to a Trace with the trace readers.

A conversation is a list of chat messages, Responses items or Anthropic messages: mappings, `Message`s, or objects with
`model_dump` (the classes of the openai, anthropic and langchain packages). A whole request (`{system, messages,
tools}`, `{input, output}`) and a `Trace` are conversations, too. Any other type is refused with an error that names it;
a string is never read letter by letter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hintdistill.core.errors import ArgumentError, TraceError
from hintdistill.core.text import HALF_A_PAIR, holds_half_a_pair
from hintdistill.core.types import Message, Source, Trace
from hintdistill.traces.formats import anthropic, openai_chat, openai_responses
from hintdistill.traces.formats.observed import messages_in
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.schemas import parse_tools

MessageLike = Any
"""A `Message`, a mapping, or an object with `model_dump`."""
Conversation = Sequence[MessageLike] | Mapping[str, Any] | Trace
"""A list of messages or items, a whole request, or a trace."""
SOURCE = Source(file="call", position="record 1")
LANGCHAIN_TYPES = frozenset(("human", "ai", "system", "tool", "AIMessageChunk", "HumanMessageChunk"))


def conversation(messages: Any, tools: Any = None) -> Trace:
    """Return the trace of a conversation.

    Args:
        messages: a list of messages or items, a whole request, or a `Trace`.
        tools: tool schemas in any form that the trace readers accept; None for those of the request or trace.

    Raises:
        ArgumentError: `messages` or `tools` is not a list of messages or schemas.
        TraceError: a message is malformed, or the list contains several conversations.
    """
    schemas = schemas_of(tools)
    if isinstance(messages, Trace):
        return _with(messages, tools=schemas) if schemas else messages
    record, typed = _record(messages)
    if schemas:
        record["tools"] = list(schemas)
    if holds_half_a_pair(record):
        raise TraceError(f"a message or a tool {HALF_A_PAIR}")
    traces = list(_read(record))
    if len(traces) != 1:
        raise TraceError(f"`messages` contains {len(traces)} conversations, not one")
    trace = traces[0]
    if isinstance(trace, Failure):
        raise TraceError(trace.message)
    if not typed:
        return trace
    if len(trace.messages) != len(messages):
        raise ArgumentError("hd.Message objects are mixed with messages of another kind; pass only one kind")
    # what a Message knows beyond a chat message (ids, fidelity) is kept as it is
    kept = tuple(m if isinstance(m, Message) else t for m, t in zip(messages, trace.messages, strict=True))
    return _with(trace, messages=kept)


def _with(trace: Trace, **fields: Any) -> Trace:
    """Return the trace with other fields. It is built anew, because a copy would keep values derived from the old
    fields."""
    return Trace(**{**{name: getattr(trace, name) for name in Trace.model_fields}, **fields})


def step_of(trace: Trace, step: Any) -> int:
    """Return the number of a step, counted from 0; None means the student's last step, and negative numbers count from
    the end.

    Raises:
        ArgumentError: `step` is not a whole number.
        TraceError: there is no such step, it is only context (`Message.given`), or the conversation has no steps.
    """
    if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
        raise ArgumentError(f"`step` is {step!r}, not a whole number")
    count = len(trace.step_indices)
    if not trace.own_steps:
        raise TraceError("the messages contain no step of the student, i.e. no complete assistant message of its own")
    if step is None:
        return trace.own_steps[-1]
    at = step + count if step < 0 else step
    if not 0 <= at < count:
        raise TraceError(f"the messages contain steps 0..{count - 1}, not {step}")
    if at in trace.given_steps:
        raise TraceError(f"step {at} is only context (`given`), not a step of the student")
    return at


def schemas_of(tools: Any) -> tuple[dict[str, Any], ...]:
    """Return tool schemas as the trace readers make them. Raises ArgumentError for another type, TraceError for a
    schema without a name."""
    if tools is None:
        return ()
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence | Mapping):
        raise ArgumentError(f"`tools` is {_kind(tools)}, not a list of tool schemas")
    return parse_tools(
        dict(tools) if isinstance(tools, Mapping) else [_plain(t, "tool", i) for i, t in enumerate(tools)]
    )


def texts_of(name: str, values: Any) -> list[str]:
    """Return a list of strings. Raises ArgumentError for anything else, including a single string."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise ArgumentError(f"`{name}` is {_kind(values)}, not a list of strings")
    for i, value in enumerate(values):
        text_of_type(f"{name}[{i}]", value)
    return list(values)


def text_of_type(name: str, value: Any, optional: bool = False) -> None:
    """Raise ArgumentError if the value is not a string (or None, if that is allowed)."""
    if not isinstance(value, str) and not (optional and value is None):
        raise ArgumentError(f"`{name}` is {_kind(value)}, not a string")
    if isinstance(value, str) and holds_half_a_pair(value):
        raise ArgumentError(f"`{name}` {HALF_A_PAIR}")


def _record(messages: Any) -> tuple[dict[str, Any], bool]:
    """Return a record for the readers, and whether some of its messages are `Message`s."""
    if not isinstance(messages, str | bytes | Mapping | Sequence) and hasattr(messages, "model_dump"):
        messages = _dumped(messages)
    if isinstance(messages, Mapping):
        lists = {k: messages[k] for k in ("messages", "input", "output") if isinstance(messages.get(k), list)}
        return {**messages, **{k: [_plain(m, "message", i) for i, m in enumerate(v)] for k, v in lists.items()}}, False
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise ArgumentError(
            f"`messages` is {_kind(messages)}, not a list of messages",
            hint="pass the conversation as a list: [{'role': 'user', 'content': …}, {'role': 'assistant', …}]",
        )
    return {"messages": [_plain(m, "message", i) for i, m in enumerate(messages)]}, any(
        isinstance(m, Message) for m in messages
    )


def _read(record: dict[str, Any]) -> Any:
    """Return the traces of a record, read with the first API format that fits its messages."""
    items = record.get("messages")
    # asked first: an Anthropic message says `type: message`, as a Responses item does
    if items is not None and (anthropic.fits(items) or anthropic.fits(record)):
        return anthropic.traces(Record(record, SOURCE), ReadOptions())
    if items is None or openai_responses.fits(items):
        answered = {**record, "output": items} if items is not None else record
        answered.pop("messages", None)
        return openai_responses.traces(Record({"input": [], **answered}, SOURCE), ReadOptions())
    return [openai_chat.parse(record, SOURCE, ReadOptions())]


def _plain(value: Any, what: str, index: int) -> dict[str, Any]:
    """Return one message or schema as a mapping. Raises ArgumentError if it is not one."""
    if isinstance(value, Message):
        calls = [{"id": c.id, "name": c.name, "arguments": c.arguments_raw} for c in value.tool_calls]
        return {"role": value.role, "content": value.content, **({"tool_calls": calls} if calls else {})}
    if isinstance(value, Mapping):
        plain = dict(value)
    elif hasattr(value, "model_dump") and not isinstance(value, type):
        plain = _dumped(value)
    else:
        raise ArgumentError(f"{what} {index} is {_kind(value)}", hint="pass a mapping, or an object with model_dump")
    if isinstance(plain.get("content"), list):
        plain["content"] = [
            p if isinstance(p, str | Mapping) else _plain(p, f"a part of {what}", index) for p in plain["content"]
        ]
    if "role" not in plain and plain.get("type") in LANGCHAIN_TYPES:
        return _from_langchain(plain, index)
    return plain


def _dumped(value: Any) -> dict[str, Any]:
    made = value.model_dump(mode="json", exclude_none=True)
    if not isinstance(made, dict):
        raise ArgumentError(f"model_dump of a {type(value).__name__} returns {_kind(made)}, not an object")
    return made


def _from_langchain(plain: dict[str, Any], index: int) -> dict[str, Any]:
    found = messages_in([plain], "user")
    if len(found) != 1:
        raise TraceError(f"message {index}: a langchain message of type {plain['type']!r} that cannot be read")
    return found[0]


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
