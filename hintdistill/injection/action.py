"""Find the token of a step at which its reasoning ends and its action begins: the boundary of the loss span `action`.

The boundary is determined from the step's own tokens, recorded or rendered, and never estimated. Reasoning is
recognised by its words, which are in a field or in the content of the trace, and by the mark that ends it. If the two
disagree, or if one token covers both the end of the reasoning and the beginning of the action, the boundary is
`UNKNOWN`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hintdistill.core.types import UNKNOWN_ACTION as UNKNOWN
from hintdistill.core.types import Message
from hintdistill.injection.printed import END_OF_REASONING, split_reasoning, squeezed, without_mark
from hintdistill.injection.token_text import TokenText

_OPEN = re.compile(
    r"<think(?:ing)?>|<reasoning>|\[THINK\]|<\|START_THINKING\|>|<\|channel\|>analysis(?:<\|message\|>)?|<\|channel>thought"
)
_LEAD = re.compile(r"(?:\s|<[^<>\s]{1,40}>|\[THINK\]|analysis|thought)*")
"""Text that may precede the first word of the reasoning: white space, marks, or the name of a channel."""
_CLOSE = re.compile(r"\s*(?:" + END_OF_REASONING.pattern + r"|<\|end\|>)")
_LINE = 12
"""Shortest line of the reasoning, in characters, that counts as printed if it occurs in the step."""


def action_start(tokens: TokenText, message: Message, step_ids: Sequence[int]) -> int:
    """Return the index of the first step token that belongs to the action: 0 without reasoning, `UNKNOWN` if it cannot
    be determined.

    White space between reasoning and action counts as reasoning, as far as tokens allow; so does the mark that ends the
    reasoning. A step that consists of reasoning only has no action; this is `UNKNOWN` as well.
    """
    text = tokens.decode(step_ids)
    if not split_reasoning(message)[0].strip() and not (_OPEN.search(text) or END_OF_REASONING.search(text)):
        return 0
    text, spans = tokens.token_spans(step_ids)
    place = reasoning_end(text, message)
    if place is None:
        return UNKNOWN
    begins = [i for i, s in enumerate(spans) if i == 0 or s != spans[i - 1]]
    inside = [i for i in begins if place[0] <= spans[i][0] <= place[1]]
    return inside[-1] if inside else UNKNOWN


def below(start: int | None, above: int) -> int | None:
    """Return the start of the action among the step's tokens after the first `above` ones."""
    return start if start is None or start == UNKNOWN else max(0, start - above)


def reasoning_end(text: str, message: Message) -> tuple[int, int] | None:
    """Return the range of characters in which the action of a step's text begins: the end of the reasoning, and the end
    of the white space after it.

    None if the words of the reasoning and its marks disagree.
    """
    reasoning, content = split_reasoning(message)
    if not content.strip() and not message.tool_calls:
        return None
    body = without_mark(reasoning).strip()
    at = text.find(body) if body else -1
    if at >= 0:
        end = at + len(body)
        closed = _CLOSE.match(text, end)
        end = closed.end() if closed else end
        sure = _LEAD.fullmatch(text, 0, at) is not None and _marks(text[end:]) <= _marks_of_action(message, content)
    elif _OPEN.search(text) or END_OF_REASONING.search(text):
        found = _by_mark(text, message, content)
        end, sure = found or 0, found is not None
    else:
        # nothing of the reasoning is printed
        lines = [line.strip() for line in body.splitlines() if len(line.strip()) >= _LINE]
        end, sure = 0, squeezed(body) not in squeezed(text) and not any(line in text for line in lines)
    if not sure or not _begins_below(text, end, message, content):
        return None
    # nothing was printed: the action begins with the step, whatever white space that is
    return (end, end + len(text[end:]) - len(text[end:].lstrip())) if end else (0, 0)


def _marks(text: str) -> int:
    return len(END_OF_REASONING.findall(text))


def _marks_of_action(message: Message, content: str) -> int:
    """Return the marks that belong to the action, because they occur in the content after the reasoning or in
    arguments."""
    return _marks(content) + sum(_marks(c.arguments_raw) for c in message.tool_calls)


def _by_mark(text: str, message: Message, content: str) -> int | None:
    """Return the end of an empty reasoning block that the template printed, or of the step's only mark; None if there
    are several marks."""
    lead = _OPEN.match(text.lstrip())
    start = len(text) - len(text.lstrip()) + (lead.end() if lead else 0)
    empty = re.compile(r"\s*(?:" + END_OF_REASONING.pattern + ")").match(text, start)
    if empty and _marks(text[empty.end() :]) <= _marks_of_action(message, content):
        return empty.end()
    ends = list(END_OF_REASONING.finditer(text))
    return ends[0].end() if len(ends) == 1 else None


def _begins_below(text: str, end: int, message: Message, content: str) -> bool:
    """Return whether the step's action is printed after a position: its content, if it is printed verbatim, and the
    names of its calls."""
    words = content.strip()
    if words and words in text and text.find(words, end) < 0:
        return False
    return all(text.find(c.name, end) >= 0 for c in message.tool_calls)
