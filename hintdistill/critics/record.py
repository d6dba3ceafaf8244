"""Write a trace in the form that a critic reads: one JSON object per line, in windows if it exceeds the critic's
context.

Each line is JSON, so no text in it can end the record or pass for the prompt: line breaks and quotes in a message are
escaped. Two things that JSON allows are escaped as well: control characters (terminal sequences, Unicode line ends,
bidirectional overrides) and the turn markers of chat templates, which a server would take for the end of the prompt.
Undoing the JSON escapes restores every message exactly.

Nothing is left out. A record that does not fit is read in windows that overlap by whole messages. Each window begins
with the system prompt and the first request. A message that does not fit into a window is split into numbered parts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hintdistill.core.errors import ContextLengthError
from hintdistill.core.extra_keys import CONTINUATION
from hintdistill.core.types import Message, Trace

Count = Callable[[str], int]
"""Function that counts the tokens of a text."""

_MARKER = re.compile(
    r"<\|[^|>\s]{1,40}\|?>|<｜[^｜>\s]{1,40}｜>|</?(?:start_of_turn|end_of_turn|s|bos|eos|turn|channel)>|\[/?INST\]|<</?SYS>>|\[gMASK\]|<sop>"
)
_CONTROL = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


@dataclass(frozen=True)
class ExcerptLine:
    """Hold one line of a record, with the message and step that it represents."""

    text: str
    message: int
    step: int | None = None


@dataclass(frozen=True)
class Excerpt:
    """Hold the lines that a critic reads at once, and the steps that it may name."""

    lines: tuple[ExcerptLine, ...]
    window: int = 0
    windows: int = 1

    @property
    def steps(self) -> tuple[int, ...]:
        """The step numbers in the excerpt, each once, in order."""
        return tuple(dict.fromkeys(line.step for line in self.lines if line.step is not None))

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(line.text for line in self.lines)

    def until(self, step: int) -> Excerpt:
        """Return the record up to and including a step; it is a byte-exact prefix of the whole record."""
        last = max(i for i, line in enumerate(self.lines) if line.step == step)
        return Excerpt(self.lines[: last + 1], self.window, self.windows)


def encode(value: Any) -> str:
    """Return compact JSON on one line, without anything that a terminal or a chat template would interpret."""
    return harmless(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def harmless(text: str) -> str:
    """Return text in which JSON escapes replace control characters and turn markers; line breaks stay."""
    text = _CONTROL.sub(lambda m: f"\\u{ord(m.group()):04x}", text)
    return _MARKER.sub(lambda m: f"\\u{ord(m.group()[0]):04x}{m.group()[1:]}", text)


def _shown(message: Message, step: int | None) -> dict[str, Any]:
    line: dict[str, Any] = {} if step is None else {"step": step}
    line["role"] = message.role
    if message.reasoning:
        line["reasoning"] = message.reasoning
    if message.content is not None:
        line["content"] = message.content
    if message.tool_calls:
        line["tool_calls"] = [{"name": c.name, "arguments": c.arguments_raw} for c in message.tool_calls]
    return line


FOLLOWED = (
    "In the recording, the last step above was a different one. The next lines show that step and what followed it. "
    "They show how the environment answers; do not judge them."
)
"""Heading of the recorded continuation of a trace whose last step was sampled again."""


def whole(trace: Trace) -> Excerpt:
    """Return the whole trace as one excerpt. The student's lines carry step numbers, except given ones (demonstrations,
    greetings).

    If the last step was sampled again, the recorded continuation follows.
    """
    steps = {at: k for k, at in enumerate(trace.step_indices) if k not in trace.given_steps}
    lines = [ExcerptLine(encode(_shown(m, steps.get(i))), i, steps.get(i)) for i, m in enumerate(trace.messages)]
    if recorded := _continuation(trace):
        last = len(trace.messages) - 1
        lines.append(ExcerptLine(encode({"note": FOLLOWED}), last))
        lines += [ExcerptLine(encode({"recorded": True, **_shown(m, None)}), last) for m in recorded]
    return Excerpt(tuple(lines))


def _continuation(trace: Trace) -> list[Message]:
    """Return the messages recorded from the original last step on; empty if another program wrote something else under
    this key."""
    try:
        return [Message.model_validate(m) for m in trace.extra.get(CONTINUATION, ())]
    except (ValidationError, TypeError):
        return []


def windows(trace: Trace, count: Count, room: int | None, overlap: int) -> list[Excerpt]:
    """Return the trace in as many excerpts as needed, each of at most `room` tokens; with `room` None, in one.

    Raises:
        ContextLengthError: `room` is too small for any message.
    """
    record = whole(trace)
    if room is None or count(record.text) <= room:
        return [record]
    if room < 64:
        raise ContextLengthError(
            f"trace {trace.id}: only {room} tokens are left for it after instructions, tools and answer",
            hint="use a critic with a longer context, fewer tools, or a lower critic.llm.max_tokens",
        )
    size = room // 3
    lines = [part for line in record.lines for part in _parts(line, count, size)]
    opening = _opening(lines, trace, count, size)
    budget = room - sum(_cost(line, count) for line in opening)
    bodies: list[tuple[ExcerptLine, ...]] = []
    at = 0
    while at < len(lines):
        end, used = at, 0
        while end < len(lines) and (end == at or used + _cost(lines[end], count) <= budget):
            used += _cost(lines[end], count)
            end += 1
        bodies.append(tuple(lines[at:end]))
        if end == len(lines):
            break
        # whole messages are shared, as long as the window still moves on and they leave room for something new
        back = end
        while (
            back > at + 1
            and end - back < overlap
            and sum(_cost(x, count) for x in lines[back - 1 : end]) <= budget // 2
        ):
            back -= 1
        at = back
    records = []
    for n, body in enumerate(bodies):
        head = tuple(line for line in opening if line not in body)
        records.append(Excerpt(head + body, n, len(bodies)))
    return records


def note(records: list[Excerpt]) -> tuple[str, ...]:
    """Return a note on how a trace was read, if it was read in more than one window."""
    if len(records) == 1:
        return ()
    ranges = ", ".join(f"{r.lines[-1].message}" for r in records)
    parts = Counter(message for message, _ in {(line.message, line.text) for r in records for line in r.lines})
    split = [f"message {m} in {n} parts" for m, n in sorted(parts.items()) if n > 1]
    return ("; ".join((f"read in {len(records)} windows, ending at messages {ranges}", *split)),)


def _cost(line: ExcerptLine, count: Count) -> int:
    return count(line.text) + 1


def _opening(lines: list[ExcerptLine], trace: Trace, count: Count, room: int) -> list[ExcerptLine]:
    """Return the system prompt and the first request, as far as they fit."""
    out: list[ExcerptLine] = []
    for line in lines:
        role = trace.messages[line.message].role
        if role not in ("system", "developer", "user") or sum(_cost(x, count) for x in [*out, line]) > room:
            break
        out.append(line)
        if role == "user":
            break
    return out


def _parts(line: ExcerptLine, count: Count, room: int) -> Iterator[ExcerptLine]:
    """Yield the line itself, or its message in numbered parts of about `room` tokens."""
    if count(line.text) <= room:
        yield line
        return
    value = json.loads(line.text)
    fields = [("reasoning", value.pop("reasoning", None)), ("content", value.pop("content", None))]
    fields += [("tool_call", f"{c['name']} {c['arguments']}") for c in value.pop("tool_calls", ())]
    per_token = max(1, len(line.text) // max(1, count(line.text)))
    width = max(1, (room - count(encode(value)) - 16) * per_token // 2)
    pieces = [(name, text[i : i + width]) for name, text in fields if text for i in range(0, len(text), width)]
    for n, (name, text) in enumerate(pieces, 1):
        yield ExcerptLine(encode({**value, "part": f"{n}/{len(pieces)}", name: text}), line.message, line.step)
