"""Define the shipped maker of twins for a step that ends its task too early: it writes edits that make the end right.

There are two kinds of edits. In the first, the request does not ask for the missing thing: its words are removed
(`unasked`), it is not needed (`waived`), or the user already has it (`had`). In the second, an observation above the
step contains it. Observations are not invented: the added text comes from a later observation of the same trace. So a
trace that never finds the missing thing has no such edit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hintdistill.core.errors import TwinError
from hintdistill.core.types import Replacement, TwinEdit
from hintdistill.injection.twin_makers import FAILS, Edits, TwinCase

_JOINT = re.compile(r"(, and |, or |, | and | or )")
_DETERMINER = r"(?i:an?|the|some|any|my|your|one)"
_ITEM = rf"{_DETERMINER} [\w-]+(?: [\w-]+)?"
"""Pattern of a list item, like the items next to the missing one: `a park`, `the old bank`."""


def stopped_early(case: TwinCase) -> list[TwinEdit]:
    """Yield edits after which the missing thing is not requested, not needed, already there, or in an observation above
    the step."""
    if case.message.tool_calls:
        raise TwinError("no_edit", "the step calls a tool, so it does not end the task")
    at = case.last("user")
    if at is None:
        raise TwinError("no_edit", "there is no request above the step")
    missing, edits = missing_things(case), Edits("stopped_early")
    request = case.before[at].content or ""
    shorter = without_things(request, missing)
    if shorter is not None:
        edits.add("unasked", smallest_change(request, shorter, at))
    named = _listed([f"the {thing}" for thing in missing])
    verb = "is" if len(missing) == 1 else "are"
    edits.add("waived", case.say("user", f"{named[0].upper()}{named[1:]} {verb} not needed."))
    edits.add("had", case.say("user", f"I have {named}."))
    results = [i for i in range(at + 1, len(case.before)) if case.before[i].role == "tool"]
    found = _found_later(case, missing)
    if found is None or not results:
        return edits.made
    first, last = results[0], results[-1]
    edits.add("observation", _held(case, last, found))
    edits.add("nested", _held(case, last, found, lambda both: {"status": "ok", "result": both}))
    if "done" not in found:
        edits.add("done", _held(case, last, found, lambda both: {**both, "done": True}))
    if first != last:
        edits.add("earlier", _held(case, first, found))
    return edits.made


def missing_things(case: TwinCase) -> tuple[str, ...]:
    """Return the missing things, in the words of the finding's facts: `missing` (all of them), else `thing`, else
    `expected`.

    Raises:
        TwinError: the facts do not name a missing thing (`no_edit`).
    """
    facts = case.finding.facts
    said = next((facts[name] for name in ("missing", "thing", "expected") if facts.get(name)), ())
    things = [said] if isinstance(said, str) else said if isinstance(said, list | tuple) else []
    words = tuple(str(thing).strip() for thing in things)
    if not words or not all(words):
        raise TwinError("no_edit", "the finding does not say what is missing (facts missing, thing or expected)")
    return words


def _listed(words: Sequence[str]) -> str:
    """Return the things as a list in words: `the map, the park and the bell`."""
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


# -- the request ---------------------------------------------------------------------------------------------------------


def without_things(request: str, things: Sequence[str]) -> str | None:
    """Return a request without some of the things that it lists; None if one of them is not a list item, or if no item
    is left.

    `I need a box, a map and a bell in Porto.` without the bell is `I need a box and a map in Porto.`
    """
    for thing in things:
        shorter = _without(_JOINT.split(request), thing)
        if shorter is None or re.search(rf"(?<!\w){re.escape(thing)}(?!\w)", shorter):
            return None
        request = shorter
    return request


def _without(parts: list[str], thing: str) -> str | None:
    """Remove one item from a list in a sentence; `parts` alternates between the texts and the words that join them."""
    item = rf"{_DETERMINER} {re.escape(thing)}"
    for i in range(0, len(parts), 2):
        text, before, after = parts[i], parts[i - 2 : i - 1], parts[i + 2 : i + 3]
        if before and after and re.fullmatch(item, text):
            return "".join(parts[: i - 1] + parts[i + 1 :])
        if before and re.search(rf"(?<!\w){_ITEM}$", before[0]) and (match := re.match(rf"{item}(?!\w)", text)):
            kept = parts[: i - 1]
            if len(kept) > 1 and kept[-2] == ", " and re.fullmatch(_ITEM, kept[-1]):
                kept[-2] = parts[i - 1]  # the item before is the last one now
            return "".join([*kept, text[match.end() :], *parts[i + 1 :]])
        if after and re.match(_ITEM, after[0]) and (match := re.search(rf"(?<!\w){item}$", text)):
            return "".join([*parts[:i], text[: match.start()], *parts[i + 2 :]])
    return None


def smallest_change(old: str, new: str, index: int) -> tuple[Replacement, ...]:
    """Return the difference between two texts of a message as the words that differ, with enough context to make them
    unique."""
    start = next((i for i, (x, y) in enumerate(zip(old, new, strict=False)) if x != y), min(len(old), len(new)))
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    while old.count(old[start : len(old) - end]) != 1 or start == len(old) - end:
        start = max(0, start - 1)
        end = max(0, end - 1) if start == 0 else end
    return (
        Replacement(where="message", index=index, old=old[start : len(old) - end], new=new[start : len(new) - end]),
    )


# -- the observations ----------------------------------------------------------------------------------------------------


def _found_later(case: TwinCase, things: Sequence[str]) -> dict[str, Any] | None:
    """Return what later observations of the trace contain about every missing thing; None if one thing is not found
    there."""
    found: dict[str, Any] = {}
    for thing in things:
        of_thing = next(filter(None, (_says(case, i, thing) for i in _later(case))), None)
        if of_thing is None:
            return None
        found |= of_thing
    return found


def _later(case: TwinCase) -> list[int]:
    """Return the numbers of the observations below the step that are not failures."""
    messages = case.trace.messages
    below = range(len(case.before) + 1, len(messages))
    return [i for i in below if messages[i].role == "tool" and not FAILS.search(messages[i].content or "")]


def _says(case: TwinCase, index: int, thing: str) -> dict[str, Any]:
    """Return the fields of an observation that describe a thing: the field with its name, or all fields if the call
    names it."""
    messages = case.trace.messages
    held = _object(messages[index].content or "")
    if thing in held:
        return {thing: held[thing]}
    calls = next((m.tool_calls for m in reversed(messages[:index]) if m.role == "assistant"), ())
    named = re.compile(rf"(?<![^\W_]){re.escape(thing)}(?![^\W_])", re.IGNORECASE)
    # a step of several calls does not say which of them an observation answers
    asked = len(calls) == 1 and named.search(f"{calls[0].name} {calls[0].arguments_raw}")
    return held if asked else {}


def _object(text: str) -> dict[str, Any]:
    """Return a text as a JSON object; empty if it is not one."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _held(
    case: TwinCase,
    index: int,
    found: Mapping[str, Any],
    form: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> tuple[Replacement, ...]:
    """Return the change that adds things to an observation; empty if it is not a JSON object, is a failure, or already
    contains some of them."""
    text = case.before[index].content or ""
    own = _object(text)
    if not own or FAILS.search(text) or {*own} & {*found}:
        return ()
    spaced = (", ", ": ") if '": ' in text else (",", ":")
    new = json.dumps(form({**own, **found}), ensure_ascii=False, separators=spaced)
    return (Replacement(where="message", index=index, old=text, new=new),)
