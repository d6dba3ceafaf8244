"""Determine the tokens that a tool schema allows at each position of a step.

Schemas restrict three places: the name of a tool, the key of an argument, and the value of an argument with an enum. At
each token of such a place, the legal continuations are the vocabulary entries that continue the text so far towards an
allowed word. They show whether the probability that the hint takes from the sampled token goes to a right continuation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hintdistill.core.json_spans import members
from hintdistill.core.types import Message, Trace
from hintdistill.injection.quotes import Span, call_regions
from hintdistill.injection.rendering import Renderer

MAX_IDS_PER_POSITION = 256


def legal_continuations(
    trace: Trace, message: Message, renderer: Renderer, step_ids: Sequence[int], text: str, spans: Sequence[Span]
) -> dict[int, tuple[int, ...]]:
    """Return step position → ids of the legal continuations there, without the sampled id.

    Positions that no schema restricts are absent. A position may map to an empty tuple: only the sampled token is legal
    there.
    """
    out: dict[int, tuple[int, ...]] = {}
    for (start, end), words in _governed(trace, message, text):
        closing = text[end : end + 1]
        for t, (left, right) in enumerate(spans):
            if right <= start or left >= end or right == left:
                continue
            ids: dict[int, None] = {}
            for word in words:
                candidate = text[:start] + word + closing
                if candidate[:left] == text[:left]:
                    ids.update(dict.fromkeys(_first_tokens(renderer, candidate[left:])))
            ids.pop(step_ids[t], None)
            out[t] = tuple(ids)[:MAX_IDS_PER_POSITION]
    return out


def _first_tokens(renderer: Renderer, rest: str) -> Iterator[int]:
    """Return the vocabulary entries that `rest` begins with."""
    for length in range(1, min(len(rest), 64) + 1):
        token = renderer.vocabulary.get(rest[:length])
        if token is not None:
            yield token


def _governed(trace: Trace, message: Message, text: str) -> Iterator[tuple[Span, list[str]]]:
    """Return the character ranges that a schema restricts, each with the allowed words."""
    schemas = trace.tool_schemas
    if not schemas:
        return
    for call, region in zip(message.tool_calls, call_regions(text, message), strict=True):
        if region is None:
            continue
        yield region.name, list(schemas)
        properties = schemas.get(call.name, {}).get("properties", {})
        if region.arguments is None or not isinstance(properties, dict):
            continue
        used: set[str] = set()
        offset = region.arguments[0]
        for member in members(call.arguments_raw):
            yield (member.key_span[0] + offset, member.key_span[1] + offset), [p for p in properties if p not in used]
            used.add(member.key)
            enum = properties[member.key].get("enum") if isinstance(properties.get(member.key), dict) else None
            if member.is_string and isinstance(enum, list) and all(isinstance(v, str) for v in enum):
                # inside the quotation marks
                yield (member.value_span[0] + 1 + offset, member.value_span[1] - 1 + offset), list(enum)
