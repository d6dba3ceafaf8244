"""Determine which parts of a conversation a chat template prints, leaves out or adds.

Both checks use the rendered text. For a context: which of its messages, calls, results, reasoning and tool schemas does
the student not read (`unprinted`)? For a step: does the template print the student's action (`require_printed`), and
does it print more than the trace recorded (`step_notes`), such as an empty think block or the id of a call?
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from hintdistill.core.errors import TemplateError
from hintdistill.core.types import Message, ToolCall

REASONING_UNPRINTED = "reasoning_unprinted"
"""The step's reasoning is in the trace, and the template leaves it out."""
THINKING_PRINTED = "thinking_printed"
"""The template prints a think block or a channel that the trace does not contain."""
CALL_ID_PRINTED = "call_id_printed"
"""The template prints the id of a call, which servers assign after the step was sampled."""
WHITE_SPACE_PRINTED = "white_space_printed"
"""The template prints white space around the step's parts that the trace does not contain."""
WORDS_PRINTED = "words_printed"
"""The template prints additional words before or after the content."""
CONTENT_CHANGED = "content_changed"
"""The template changes characters of the content."""

END_OF_REASONING = re.compile(r"</think(?:ing)?>|</reasoning>|\[/THINK\]|<\|END_THINKING\|>|<channel\|>")
_THINKING = re.compile(
    r"</?think(?:ing)?>|</?reasoning>|\[/?THINK\]|<\|(?:START|END)_THINKING\|>|<\|?channel\|?>|\bto=functions\b"
)


def split_reasoning(message: Message) -> tuple[str, str]:
    """Return the reasoning of an assistant message and the rest of its content.

    Reasoning is taken from its own field, or from the content up to the mark that ends it (`</think>` and its like).
    """
    content = message.content or ""
    if message.reasoning:
        return message.reasoning, content
    ends = list(END_OF_REASONING.finditer(content))
    if not ends:
        return "", content
    return content[: ends[-1].start()], content[ends[-1].end() :]


def _forms(text: str) -> Iterator[str]:
    """Return the spellings in which a template may print a text."""
    bare = text.strip()
    yield bare
    yield json.dumps(bare, ensure_ascii=False)[1:-1]
    yield json.dumps(bare)[1:-1]


def squeezed(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())


class _Page:
    """Hold a rendered text whose parts are marked as they are found."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.taken: list[tuple[int, int]] = []
        self.at = 0
        self._lean: str | None = None

    def has(self, words: str) -> bool:
        """Return whether the text contains these words, ignoring white space, and mark them."""
        if not words.strip():
            return True
        for form in _forms(words):
            place = self.text.find(form, self.at)
            if place >= 0:
                self.at = place + len(form)
            else:
                place = self.text.find(form)
            if place >= 0:
                self.taken.append((place, place + len(form)))
                return True
        if self._lean is None:
            self._lean = squeezed(self.text)
        return any(squeezed(form) in self._lean for form in _forms(words))

    def rest(self) -> str:
        """Return the unmarked rest of the text."""
        out, end = [], 0
        for start, stop in sorted(self.taken):
            if start >= end:
                out.append(self.text[end:start])
            end = max(end, stop)
        return "\0".join([*out, self.text[end:]])


def _named(name: str) -> re.Pattern[str]:
    return re.compile(r"(?<![\w.-])" + re.escape(name) + r"(?![\w-])")


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


class _Walked:
    """Search a text for words in their usual order: from the last position on, then from the beginning."""

    def __init__(self, text: str) -> None:
        self.text, self._at = text, 0

    def has(self, words: str) -> bool:
        """Return whether the text contains these words."""
        place = self.text.find(words, self._at)
        if place < 0:
            place = self.text.find(words)
        if place >= 0:
            self._at = place + len(words)
        return place >= 0


def _arguments_printed(call: ToolCall, text: _Walked, lean: _Walked) -> bool:
    """Return whether a text contains the arguments of a call, either as written or as all their keys and strings.

    Args:
        lean: the text without its white space.
    """
    if lean.has(squeezed(call.arguments_raw)):
        return True
    if call.arguments is None:
        return any(text.has(form) for form in _forms(call.arguments_raw))
    return all(any(text.has(form) for form in _forms(leaf)) for leaf in _leaves(call.arguments) if leaf.strip())


def unprinted(before: Sequence[Message], tools: Sequence[dict[str, Any]], text: str) -> tuple[str, ...]:
    """Name the parts of a context that the template does not print.

    Args:
        before: the messages above the step.
        tools: the tool schemas that the student had.
        text: the context as rendered.

    Returns:
        One note per part, beginning with `unprinted: `: the system prompt, the tools, or the content, a call, a call's
            arguments or the reasoning of a message. Messages are counted from 0.
    """
    page, missing, calls, lost_reasoning = _Page(text), [], [], []
    for i, message in enumerate(before):
        reasoning, content = split_reasoning(message) if message.role == "assistant" else ("", message.content or "")
        if reasoning.strip() and not page.has(without_mark(reasoning)):
            lost_reasoning.append(i)
        if not page.has(content):
            what = {"system": "system prompt", "developer": "developer message", "tool": "tool result"}
            missing.append(f"{what.get(message.role, f'{message.role} content')} (message {i})")
        calls += [(i, c) for c in message.tool_calls]
    rest = page.rest()
    hidden, listed = _tools(tools, calls, rest)
    if hidden:
        missing.append(f"tools {', '.join(hidden)}")
    missing += list(_missing_calls(calls, listed, rest))
    if lost_reasoning:
        missing.append(f"reasoning of message {', '.join(map(str, lost_reasoning))}")
    return tuple(f"unprinted: {m}" for m in missing)


def without_mark(reasoning: str) -> str:
    """Return reasoning without its opening mark."""
    return re.sub(r"^\s*(?:<think(?:ing)?>|<reasoning>|\[THINK\]|<\|START_THINKING\|>)", "", reasoning)


def _tools(
    tools: Sequence[dict[str, Any]], calls: Sequence[tuple[int, ToolCall]], rest: str
) -> tuple[list[str], set[str]]:
    """Return the names of tools whose schemas are missing from the text, and of those whose schemas are in it.

    A name that occurs no more often than the tool is called may belong to the calls. It counts as listed if another
    tool is listed.
    """
    functions = [f for f in (t.get("function") or t for t in tools) if isinstance(f.get("name"), str)]
    counts = {f["name"]: len(_named(f["name"]).findall(rest)) for f in functions}
    called = {name: sum(c.name == name for _, c in calls) for name in counts}
    sure = {n for n in counts if counts[n] > called[n]}
    sure |= {f["name"] for f in functions if any(x and x in rest for x in _forms(str(f.get("description") or "")))}
    listed = sure | {n for n in counts if sure and counts[n]}
    return [n for n in counts if n not in listed], listed


def _missing_calls(calls: Sequence[tuple[int, ToolCall]], listed: set[Any], rest: str) -> Iterator[str]:
    """Return the calls whose name occurs too rarely in the text, and the calls whose arguments are missing from it."""
    by_name: dict[str, list[int]] = {}
    for i, call in calls:
        by_name.setdefault(call.name, []).append(i)
    few = {}
    for name, where in by_name.items():
        shown = len(_named(name).findall(rest)) - (name in listed)
        if shown < len(where):
            few[name] = shown
            yield f"{len(where) - max(shown, 0)} of {len(where)} calls of {name} (message {where[0]})"
    walked, lean = _Walked(rest), _Walked(squeezed(rest))
    for i, call in calls:
        if call.name not in few and not _arguments_printed(call, walked, lean):
            yield f"arguments of {call.name} (message {i})"


def require_printed(message: Message, tail: str, where: str) -> None:
    """Refuse a template that leaves out part of the student's step: a call, one of several calls, its arguments, or the
    content.

    Args:
        tail: the template's text for the step.
        where: trace and step, for the message.

    Raises:
        TemplateError: a part is missing; the message names it.
    """
    missing = []
    for name in dict.fromkeys(c.name for c in message.tool_calls):
        wanted = sum(c.name == name for c in message.tool_calls)
        shown = tail.count(name)
        if shown < wanted:
            missing.append(f"the call of {name}" if not shown else f"{wanted - shown} of {wanted} calls of {name}")
    walked, lean = _Walked(tail), _Walked(squeezed(tail))
    if not missing:
        missing += [
            f"the arguments of {c.name}"
            for c in message.tool_calls
            if not _arguments_printed(c, walked, lean) and c.arguments
        ]
    words = split_reasoning(message)[1].split()
    if words and (words[0] not in tail or words[-1] not in tail):
        missing.append("the content")
    if missing:
        raise TemplateError(f"{where}: the chat template does not print {' or '.join(missing)} of this step")


def step_notes(message: Message, tail: str, leads: Sequence[str], ends: Sequence[str]) -> tuple[str, ...]:
    """Name the additions and omissions of the template around a step; see the constants above.

    Args:
        tail: the template's text for the step, up to the text that closes the conversation.
        leads: texts that this template may print between the assistant header and the content.
        ends: texts of the tokenizer's special tokens.
    """
    notes: list[str] = []
    reasoning, content = split_reasoning(message)
    if reasoning.strip() and squeezed(without_mark(reasoning)) not in squeezed(tail):
        notes.append(REASONING_UNPRINTED)
    pieces = _pieces(message, content, tail)
    if pieces is None:
        return (*notes, CONTENT_CHANGED)
    lead, between, after = pieces
    if not reasoning.strip():
        if any(_THINKING.search(p) for p in (lead, *between)):
            notes.append(THINKING_PRINTED)
        elif any(x.strip() and lead.startswith(x) for x in leads) or (content.strip() and lead.strip()):
            notes.append(WORDS_PRINTED)
    if any(c.id and c.id in p for c in message.tool_calls for p in (lead, *between, after)):
        notes.append(CALL_ID_PRINTED)
    if not message.tool_calls and after.strip() and not after.lstrip().startswith(tuple(ends)):
        notes.append(WORDS_PRINTED)
    if not reasoning.strip() and _white_space(message, content, lead, between, after):
        notes.append(WHITE_SPACE_PRINTED)
    return tuple(dict.fromkeys(notes))


def _pieces(message: Message, content: str, tail: str) -> tuple[str, list[str], str] | None:
    """Return the text that the template prints before, between and after a step's content and calls; None if the
    content is not verbatim."""
    at, cuts = 0, []
    if content.strip():
        start = tail.find(content)
        if start < 0:
            return None
        at = start + len(content)
        cuts.append((start, at))
    for call in message.tool_calls:
        start = tail.find(call.name, at)
        if start < 0:
            return None
        end = start + len(call.name)
        raw = tail.find(call.arguments_raw, end)
        at = raw + len(call.arguments_raw) if raw >= 0 else end
        cuts.append((start, end))
        if raw >= 0:
            cuts.append((raw, at))
    if not cuts:
        return tail, [], ""
    between = [tail[a[1] : b[0]] for a, b in pairwise(cuts)]
    return tail[: cuts[0][0]], between, tail[cuts[-1][1] :]


def _white_space(message: Message, content: str, lead: str, between: Sequence[str], after: str) -> bool:
    """Return whether the template prints white space that the trace lacks: before the first part, between content and
    call, or between calls."""
    if lead[:1].isspace():
        return True
    if not message.tool_calls:
        return bool(after.strip()) and after[:1].isspace()
    if content.strip():
        return between[0][:1].isspace()
    if len(message.tool_calls) == 1:
        return False
    # name, arguments, name, arguments, ...: every second piece is what stands between two calls
    return any(piece[:1].isspace() or _loose(piece, lead) for piece in between[1::2])


def _loose(piece: str, lead: str) -> bool:
    """Return whether white space separates the end of one call's frame from the beginning of the next one, which is
    `lead`."""
    return piece.endswith(lead) and piece.removesuffix(lead)[-1:].isspace()


def verbatim(message: Message, arguments_kept: bool) -> bool:
    """Return whether the trace contains the student's own text of a step, and not a server's parsed form.

    Args:
        arguments_kept: whether the template prints argument strings as they are.
    """
    if message.reasoning:
        # a server cut the reasoning out; the white space around it is the template's guess
        return False
    if message.tool_calls:
        return arguments_kept and all(c.arguments_form == "string" for c in message.tool_calls)
    return bool(message.content)
