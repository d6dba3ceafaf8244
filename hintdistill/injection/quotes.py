"""Map a quote to tokens: find the wrong words in a step's own text.

A step's text is the decoding of its ids, so that a character range maps to token indices exactly, whatever the
tokenizer. The search tries the exact quote first, then the quote with white space and JSON escapes normalised, then its
best match if that is close enough (rapidfuzz: share of matching characters, indel distance). `quote_in` and `call`
limit the search to a tool call's name or arguments, or to the reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz import fuzz

from hintdistill.core.types import Finding, Message, QuoteField, ToolCall

Span = tuple[int, int]
QuoteMatch = Literal["exact", "normalised", "fuzzy"]
SHORTEST_FUZZY = 8
"""Shortest quote, in characters, for a fuzzy match; shorter ones match too much by chance."""


@dataclass(frozen=True)
class CallRegion:
    """Hold the character ranges of one tool call inside the step's text; None if it is not printed verbatim."""

    name: Span
    arguments: Span | None


def call_regions(text: str, message: Message) -> list[CallRegion | None]:
    """Return the ranges of each tool call of the message in the step's text, in order."""
    regions: list[CallRegion | None] = []
    cursor = 0
    for call in message.tool_calls:
        at = _find_word(text, call.name, cursor)
        if at < 0:
            regions.append(None)
            continue
        name = (at, at + len(call.name))
        start = text.find(call.arguments_raw, name[1]) if call.arguments_raw.strip() else -1
        arguments = (start, start + len(call.arguments_raw)) if start >= 0 else None
        regions.append(CallRegion(name, arguments))
        cursor = arguments[1] if arguments else name[1]
    return regions


def locate(finding: Finding, text: str, message: Message, threshold: float = 1.0) -> tuple[Span, QuoteMatch] | None:
    """Return the character range of the finding's quote in the step's text; None if it does not occur.

    Args:
        threshold: least share of matching characters for a fuzzy match, 0 to 1; 1 disables fuzzy matches.
    """
    quote = finding.quote
    if not quote:
        return None
    regions = list(_regions(finding, text, message))
    for start, end in regions:
        if finding.quote_in == "arguments":
            # a key or a string value is meant with its quotation marks before it is meant inside a longer word
            at = text.find(f'"{quote}"', start, end)
            if at >= 0:
                return (at + 1, at + 1 + len(quote)), "exact"
        at = _find_word(text, quote, start, end)
        if at < 0:
            at = text.find(quote, start, end)
        if at >= 0:
            return (at, at + len(quote)), "exact"
    for start, end in regions:
        folded = _find_folded(text[start:end], quote)
        if folded is not None:
            return (folded[0] + start, folded[1] + start), "normalised"
    found = [m for start, end in regions if (m := _find_fuzzy(text[start:end], quote, start, threshold)) is not None]
    return (max(found)[1], "fuzzy") if found else None


def is_in_step(finding: Finding, message: Message) -> bool:
    """Return whether the quote occurs in the step, verbatim or up to white space and JSON escapes; True for a finding
    without a quote."""
    if not finding.quote:
        return True
    parts = [message.reasoning, message.content, message.raw_text]
    parts += [p for call in message.tool_calls for p in _spellings(call)]
    return _stands_in(finding.quote, parts)


def placed(
    quote: str | None, quote_in: QuoteField | None, call: int | None, message: Message
) -> tuple[QuoteField | None, int | None]:
    """Return the place that a critic states for its quote, if it matches the step; otherwise (None, None)."""
    calls = message.tool_calls if call is None else message.tool_calls[call : call + 1]
    if quote is None or (call is not None and (not calls or quote_in in ("content", "reasoning"))):
        return None, None
    parts: dict[QuoteField, list[str | None]] = {
        "content": [message.content, message.raw_text],
        "reasoning": [message.reasoning],
        "tool_name": [c.name for c in calls],
        "arguments": [c.arguments_raw for c in calls],
    }
    looked = parts[quote_in] if quote_in is not None else [p for c in calls for p in _spellings(c)]
    if (quote_in is None and call is None) or _stands_in(quote, looked):
        return quote_in, call
    return None, None


def _spellings(call: ToolCall) -> list[str]:
    name, arguments = call.name, call.arguments_raw
    return [name, arguments, f"{name} {arguments}", f"{name}({arguments})"]


def _stands_in(quote: str, parts: Iterable[str | None]) -> bool:
    return any(quote in p or _find_folded(p, quote) is not None for p in parts if p)


def tokens_in(span: Span, spans: Sequence[Span]) -> Span | None:
    """Return the half-open range of tokens that overlap a character range; None if there are no such tokens."""
    hit = [i for i, (start, end) in enumerate(spans) if start < span[1] and end > span[0]]
    return (hit[0], hit[-1] + 1) if hit else None


def _regions(finding: Finding, text: str, message: Message) -> Iterator[Span]:
    whole = (0, len(text))
    if finding.quote_in in ("tool_name", "arguments") or finding.call is not None:
        regions = call_regions(text, message)
        wanted = regions if finding.call is None else regions[finding.call : finding.call + 1]
        for region in wanted:
            if region is None:
                continue
            if finding.quote_in == "tool_name":
                yield region.name
            elif region.arguments is not None:
                yield region.arguments if finding.quote_in == "arguments" else (region.name[0], region.arguments[1])
            else:
                yield region.name[1], len(text)
        return
    part = {"reasoning": message.reasoning, "content": message.content}.get(finding.quote_in or "")
    at = text.find(part) if part and part.strip() else -1
    # where the template prints that part verbatim the quote is looked for there first, and then anywhere
    if part is not None and at >= 0:
        yield at, at + len(part)
    yield whole


def _find_word(text: str, word: str, start: int = 0, end: int | None = None) -> int:
    """Find a word like str.find, but not inside a longer word."""
    end = len(text) if end is None else end
    at = text.find(word, start, end)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(word) : at + len(word) + 1]
        if not (_wordy(before) and _wordy(word[:1])) and not (_wordy(after) and _wordy(word[-1:])):
            return at
        at = text.find(word, at + 1, end)
    return -1


def _wordy(char: str) -> bool:
    return bool(char) and (char.isalnum() or char == "_")


_ESCAPE = re.compile(
    r"\\u([dD][89abAB][\da-fA-F]{2})\\u([dD][c-fC-F][\da-fA-F]{2})|\\(?:u([\da-fA-F]{4})|(.))", re.DOTALL
)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def _fold(text: str) -> tuple[str, list[int]]:
    """Undo JSON escapes and merge white space; return the text and the origin of each kept character."""
    out: list[str] = []
    origin: list[int] = []
    i = 0
    while i < len(text):
        match = _ESCAPE.match(text, i)
        char, step = (text[i], 1) if match is None else (_unescape(match), match.end() - i)
        if char.isspace():
            char = " "
        if char != " " or not out or out[-1] != " ":
            out.append(char)
            origin.append(i)
        i += step
    origin.append(len(text))
    return "".join(out), origin


def _unescape(match: re.Match[str]) -> str:
    if match[1]:
        return chr(0x10000 + ((int(match[1], 16) - 0xD800) << 10) + int(match[2], 16) - 0xDC00)
    return chr(int(match[3], 16)) if match[3] else _ESCAPED.get(match[4], match[4])


def _find_folded(text: str, quote: str) -> Span | None:
    haystack, origin = _fold(text)
    needle = _fold(quote)[0].strip()
    at = haystack.find(needle) if needle else -1
    return None if at < 0 else (origin[at], origin[at + len(needle)])


def _find_fuzzy(text: str, quote: str, offset: int, threshold: float) -> tuple[float, Span] | None:
    """Return the best match of the normalised quote in the normalised text: its share of matching characters, and its
    range."""
    haystack, origin = _fold(text)
    needle = _fold(quote)[0].strip()
    if threshold >= 1.0 or len(needle) < SHORTEST_FUZZY or not haystack.strip():
        return None
    if len(needle) > len(haystack):
        score = fuzz.ratio(needle, haystack)
        return (score, (offset, offset + len(text))) if score >= 100 * threshold else None
    match = fuzz.partial_ratio_alignment(needle, haystack, score_cutoff=100 * threshold)
    if match is None or match.dest_end <= match.dest_start:
        return None
    start, end = match.dest_start, match.dest_end
    # the window has the quote's length; a word it cuts in two is taken whole
    while start > 0 and _wordy(haystack[start - 1]) and _wordy(haystack[start]):
        start -= 1
    while end < len(haystack) and _wordy(haystack[end - 1]) and _wordy(haystack[end]):
        end += 1
    return match.score, (origin[start] + offset, origin[end] + offset)
